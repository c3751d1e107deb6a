"""What an agent node says to the model node beside what its agent said. tenancy.md §2.2."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from nodes import roots

from confide.node.model_link import ModelLink, ModelNodeAddress

_GIVEN = (("content-type", "application/json"),)


class _Sealed:
    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    async def request(self, *said: Any) -> None:
        self.sent.append(said)


@pytest.mark.parametrize(
    ("key", "own"), [("", ()), ("cfd_planted", (("authorization", "Bearer cfd_planted"),))]
)
def test_the_key_is_put_on_after_the_agent_has_spoken(
    key: str, own: tuple[tuple[str, str], ...]
) -> None:
    sealed = _Sealed()
    nothing: Any = None
    link = ModelLink(nothing, nothing, b"", cast("Any", sealed), api_key=key)
    asyncio.run(link.request("POST", "/v1/chat/completions", list(_GIVEN), b"{}"))
    assert sealed.sent == [("POST", "/v1/chat/completions", (*_GIVEN, *own), b"{}")]
    assert "planted" not in repr(link)
    assert "planted" not in repr(ModelNodeAddress("http://127.0.0.1", roots(), key))
