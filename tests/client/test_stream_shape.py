"""Cells and a cadence through a whole session: what is seen from outside. channel.md 5.2, 5.4."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from in_path import InPath, SealedResponses
from test_session import ask

from confide.adapters.receipt_db import UnsafeKeepNone
from confide.channel.padding import StreamShape, parse_cadence, shape_of
from confide.errors import ConfigurationError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proven_place import Place


class Sizes(SealedResponses):
    """The lengths of the sealed chunks, as who watches the wire sees them."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def chunks(self, chunks: Iterator[bytes]) -> Iterable[bytes]:
        for chunk in chunks:
            self.seen.append(len(chunk))
            yield chunk


def sizes_of(place: Place, shape: StreamShape, *, stream: bool = True) -> list[int]:
    async def work() -> list[int]:
        sizes = Sizes()
        with InPath(place.node().url, sizes) as path:
            session = place.session([path.url], UnsafeKeepNone(), shape=shape)
            answer = await ask(session, stream=stream)
            assert answer.receipt is not None
            await session.close()
        # Without the nonce, the chunk with the head, and the final chunk with its padding.
        return sizes.seen[2:-1]

    return asyncio.run(work())


@pytest.mark.parametrize("shape", [StreamShape(256), StreamShape(256, 10)])
def test_every_chunk_of_a_stream_is_one_cell(place: Place, shape: StreamShape) -> None:
    seen = sizes_of(place, shape)
    assert len(seen) > 1
    assert len(set(seen)) == 1


def test_a_whole_answer_is_not_slowed_by_a_cadence(place: Place) -> None:
    paced, cells = (
        sizes_of(place, shape, stream=False) for shape in (StreamShape(64, 1000), StreamShape(64))
    )
    # The same cells, and none without content.
    assert set(paced) == set(cells)
    assert abs(len(paced) - len(cells)) <= 1


@pytest.mark.parametrize("value", [b"", b"9", b"1001", b"010", b"+10", b"1e2", b"10.0"])
def test_a_cadence_is_a_number_in_its_bounds(value: bytes) -> None:
    with pytest.raises(FormatError):
        parse_cadence(value)


@pytest.mark.parametrize(("cells", "cadence"), [(None, 50), (63, None), (16129, 50), (64, 9)])
def test_a_shape_that_cannot_be_is_refused_at_once(cells: int | None, cadence: int) -> None:
    with pytest.raises(ConfigurationError):
        shape_of(cells, cadence)
