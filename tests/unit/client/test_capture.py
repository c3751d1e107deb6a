"""Capturing a service: docs/protocols/services.md 3, docs/protocols/fetching.md 1 to 5."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from http_stand_ins import (
    Asked,
    FakeClock,
    FixedEntropy,
    NoSleep,
    Reply,
    StandIn,
    client_context,
    server_spki,
)
from vendors import NOW

from confide.adapters.bounded_http import Received, open_http
from confide.adapters.service_http import ServiceHttp
from confide.client.capture import capture
from confide.errors import ConfigurationError, Unavailable
from confide.formats.format import Format, Request
from confide.wire.service import Capture, Evidence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_NONCE = bytes(range(32))


def _plan(nonce: bytes) -> tuple[Request, ...]:
    return (
        Request(
            document="report",
            path=f"/attest?nonce={nonce.hex()}",
            keeps_query=True,
            defaults=(("algo", "ed25519"),),
            max_bytes=100,
        ),
        Request(
            document="keys",
            path="/keys",
            method="POST",
            body=b'{"a":1}',
            content_type="application/json",
        ),
        Request(document="extra", path="/extra", optional=True),
    )


def _read(found: Capture) -> Evidence:
    return Evidence(format=found.format, attesters=())


_FORMAT = Format(name="test", title="Test", recognise=bool, read=_read, plan=_plan)
_NEVER_SERVED = Format(name="bare", title="Bare", recognise=bool, read=_read)


def _answer(asked: Asked) -> Reply:
    return Reply(status=404) if asked.path == "/extra" else Reply(f"{asked.method}!".encode())


@asynccontextmanager
async def _http() -> AsyncIterator[ServiceHttp]:
    async with open_http(tls=client_context()) as http:
        yield ServiceHttp(http, clock=FakeClock(NOW), entropy=FixedEntropy(), sleeper=NoSleep())


def _capture(
    server: StandIn, at: str = "", *, tls: bool = True, form: Format | None = _FORMAT, **more: Any
) -> Capture:
    async def main() -> Capture:
        async with server.running(tls=tls), _http() as http:
            return await capture(
                server.url + at,
                format=form,
                http=http,
                clock=FakeClock(NOW),
                entropy=FixedEntropy(7),
                **{"nonce": _NONCE, **more},
            )

    return asyncio.run(main())


def test_the_requests_of_the_format_are_made_and_their_bytes_kept() -> None:
    server = StandIn(_answer)
    found = _capture(server)
    assert found == Capture(
        documents={"report": b"GET!", "keys": b"POST!"},
        format="test",
        nonce=_NONCE,
        url=server.url,
        tls_spki_sha256=hashlib.sha256(server_spki()).digest(),
        at=NOW,
    )
    report, keys, _ = server.asked
    assert report.target == f"/attest?nonce={_NONCE.hex()}&algo=ed25519"
    assert (keys.body, keys.headers["content-type"]) == (b'{"a":1}', "application/json")


def test_a_fresh_nonce_is_drawn_where_none_is_given() -> None:
    server = StandIn(_answer)
    found = _capture(server, nonce=None)
    assert found.nonce == b"\x07" * 32
    assert found.nonce.hex() in server.asked[0].target


@pytest.mark.parametrize(
    ("at", "model", "query"),
    [
        ("", "", "algo=ed25519"),
        ("/", "", "algo=ed25519"),
        ("?algo=ecdsa", "", "algo=ecdsa"),
        ("?model=a%2Fb", "", "model=a%2Fb&algo=ed25519"),
        ("?model=x", "a/b c", "model=a%2Fb+c&algo=ed25519"),
        ("/attest?model=x", "", "model=x&algo=ed25519"),
        # The nonce that was drawn wins over one in the URL.
        ("?nonce=00", "", "algo=ed25519"),
    ],
)
def test_the_query_of_the_user_goes_along(at: str, model: str, query: str) -> None:
    server = StandIn(_answer)
    _capture(server, at, model=model)
    assert server.asked[0].target == f"/attest?nonce={_NONCE.hex()}&{query}"
    assert server.asked[1].target == "/keys"


def test_the_capture_says_which_model_was_asked_for() -> None:
    server = StandIn(_answer)
    assert _capture(server, "?model=x").url.endswith("?model=x")
    assert _capture(server, "?model=x", model="a/b").url == f"{server.url}?model=a%2Fb"


def test_a_service_below_a_path_is_asked_there() -> None:
    server = StandIn(lambda _: Reply(b"x"))
    _capture(server, "/team/7/")
    assert [each.path for each in server.asked] == [
        "/team/7/attest",
        "/team/7/keys",
        "/team/7/extra",
    ]


def test_without_a_format_the_url_is_fetched_as_it_is() -> None:
    server = StandIn(_answer)
    found = _capture(server, "/a/b?c=d", form=None, nonce=None)
    assert server.targets() == ["/a/b?c=d"]
    assert (found.documents, found.format, found.nonce) == ({"report": b"GET!"}, "", None)


def test_without_a_format_a_nonce_counts_only_if_it_was_sent() -> None:
    server = StandIn(_answer)
    found = _capture(server, f"/a?nonce={_NONCE.hex().upper()}", form=None)
    assert found.nonce == _NONCE
    with pytest.raises(ConfigurationError, match="stands in the URL"):
        _capture(server, "/a", form=None)


def test_over_plain_http_there_is_no_key() -> None:
    assert _capture(StandIn(_answer), tls=False).tls_spki_sha256 is None


def test_through_a_proxy_the_key_is_still_that_of_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = StandIn(_answer)

    async def main() -> Capture:
        async with server.running(), server.proxied() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            monkeypatch.setenv("NO_PROXY", "")
            async with _http() as http:
                return await capture(
                    "https://pccs.example/",
                    format=_FORMAT,
                    nonce=_NONCE,
                    http=http,
                    clock=FakeClock(NOW),
                    entropy=FixedEntropy(),
                )

    assert asyncio.run(main()).tls_spki_sha256 == hashlib.sha256(server_spki()).digest()


def test_a_service_with_two_keys_is_not_one_connection() -> None:
    class TwoKeys:
        """Answers under another key each time."""

        def __init__(self) -> None:
            self.count = 0

        async def ask(self, url: str, request: Request) -> Received:
            del url, request
            self.count += 1
            return Received(200, {}, b"x", bytes([self.count]) * 32)

    with pytest.raises(Unavailable, match="two TLS keys"):
        asyncio.run(
            capture(
                "https://service.example",
                format=_FORMAT,
                nonce=_NONCE,
                http=TwoKeys(),  # type: ignore[arg-type]
                clock=FakeClock(NOW),
                entropy=FixedEntropy(),
            )
        )


@pytest.mark.parametrize("status", [201, 204, 400, 401, 403, 404, 405, 418])
def test_a_document_that_is_not_there_is_unavailable(status: int) -> None:
    server = StandIn(lambda _: Reply(b"peer text", status=status))
    with pytest.raises(Unavailable, match=f"status {status} instead of the document report") as no:
        _capture(server)
    assert "peer text" not in str(no.value)


def test_an_optional_document_may_be_absent_and_not_broken() -> None:
    server = StandIn(_answer)
    server.always["/extra"] = Reply(status=405)
    assert "extra" not in _capture(server).documents
    server.always["/extra"] = Reply(status=403)
    with pytest.raises(Unavailable, match="document extra"):
        _capture(server)


def test_a_document_that_is_too_large_is_unavailable() -> None:
    server = StandIn(lambda _: Reply(b"x" * 101))
    with pytest.raises(Unavailable, match="no document report: an answer of more than 100 bytes"):
        _capture(server)


def test_documents_that_are_too_large_together_are_unavailable() -> None:
    large = Format(
        name="test",
        title="Test",
        recognise=bool,
        read=_read,
        plan=lambda _: tuple(Request(document=f"d{n}", path=f"/{n}") for n in range(3)),
    )
    server = StandIn(lambda _: Reply(bytes(4 << 20)))
    with pytest.raises(Unavailable, match="presents more than"):
        _capture(server, form=large)


def test_what_may_pass_is_tried_again() -> None:
    server = StandIn(_answer)
    server.script["/attest"] = [Reply(status=503), Reply(hangs_up=True), Reply(status=429)]
    assert _capture(server).documents["report"] == b"GET!"


@pytest.mark.parametrize(
    "url",
    [
        "service.example",
        "ftp://service.example",
        "https://",
        "https://user:pw@service.example",
        "https://service.example/#top",
        "https://[",
        "",
    ],
)
def test_a_url_that_is_none_is_a_matter_of_configuration(url: str) -> None:
    server = StandIn(_answer)
    server.url = ""

    async def main() -> None:
        async with _http() as http:
            await capture(
                url,
                format=_FORMAT,
                nonce=None,
                http=http,
                clock=FakeClock(NOW),
                entropy=FixedEntropy(),
            )

    with pytest.raises(ConfigurationError):
        asyncio.run(main())


def test_a_format_that_is_not_served_cannot_be_captured() -> None:
    with pytest.raises(ConfigurationError, match="not served"):
        _capture(StandIn(_answer), form=_NEVER_SERVED)


@pytest.mark.parametrize("nonce", [b"", bytes(31), bytes(33)])
def test_a_nonce_of_another_size_is_refused(nonce: bytes) -> None:
    with pytest.raises(ConfigurationError, match="32 bytes"):
        _capture(StandIn(_answer), nonce=nonce)


def test_a_model_without_a_format_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="model"):
        _capture(StandIn(_answer), form=None, nonce=None, model="m")
