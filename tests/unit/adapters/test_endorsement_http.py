"""Attempts, limits, redirects, proxies: docs/protocols/fetching.md 1 to 8, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import tracemalloc
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from http_stand_ins import (
    FakeClock,
    FixedEntropy,
    NoSleep,
    Reply,
    StandIn,
    client_context,
)

from confide.adapters.bounded_http import Exchange, FetchLimits, exchange, open_http, plain_url
from confide.adapters.endorsement_http import (
    Answer,
    Ask,
    EndorsementFetcher,
    EndorsementsUnavailable,
    NotThere,
    TryAgain,
    all_of,
)
from confide.errors import ConfigurationError, FormatError, Reason, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
_LIMITS = FetchLimits()
# For servers that stall: long enough for an honest answer on a busy machine.
_IMPATIENT = FetchLimits(read_seconds=0.4)
_MAX = 1000


class World:
    """One server, one client, nothing that sleeps."""

    def __init__(self, *script: Reply) -> None:
        self.server = StandIn(lambda _: Reply(b"good"))
        self.server.script["/"] = list(script)
        self.sleeper = NoSleep()

    @asynccontextmanager
    async def fetcher(
        self, *, tls: bool = True, limits: FetchLimits = _LIMITS, trust: bool = True, byte: int = 0
    ) -> AsyncIterator[EndorsementFetcher]:
        context = client_context() if trust else ssl.create_default_context()
        async with (
            self.server.running(tls=tls),
            # The pool has room: what bounds requests is the fetcher.
            open_http(limits=replace(limits, concurrent=64), tls=context) as http,
        ):
            yield EndorsementFetcher(
                http,
                clock=FakeClock(NOW),
                entropy=FixedEntropy(byte),
                sleeper=self.sleeper,
                limits=limits,
            )

    def ask(self, path: str = "/thing", *, method: str = "GET", url: str = "") -> Ask:
        return Ask(
            service="Service",
            what="thing 7",
            advice="Do something",
            request=Exchange(url=url or self.server.url + path, max_bytes=_MAX, method=method),
        )


def read(answer: Answer) -> tuple[bytes, None]:
    return answer.body, None


def run(main: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


def fetch(world: World, *, tls: bool = True, method: str = "GET") -> bytes:
    """Return what one fetch gives."""
    found: list[bytes] = []
    stalls = any(reply.stalls for reply in world.server.script["/"])
    limits = _IMPATIENT if stalls else _LIMITS

    async def main() -> None:
        async with world.fetcher(tls=tls, limits=limits) as fetcher:
            found.append(await fetcher.fetch(world.ask(method=method), read))

    run(main())
    return found[0]


def refusal(world: World, *, tls: bool = True, method: str = "GET") -> str:
    """Return why one fetch is refused; it names service, thing and advice."""
    with pytest.raises(Unavailable) as caught:
        fetch(world, tls=tls, method=method)
    message = str(caught.value)
    assert message.startswith("Service: no thing 7: ")
    assert message.endswith(". Do something")
    return message.removeprefix("Service: no thing 7: ").removesuffix(". Do something")


_BROKEN = {
    "stalls": (Reply(b"x" * 10, stalls=True), "the connection stalls"),
    "hangs up": (Reply(hangs_up=True), "no connection, or a broken answer"),
    "cut": (Reply(b"x" * 10, cut=5), "no connection, or a broken answer"),
    "a header without end": (
        Reply(b"good", headers=(("x", "a" * 200_000),)),
        "no connection, or a broken answer",
    ),
    "half a gzip": (
        Reply(gzip.compress(b"good")[:-4], headers=(("content-encoding", "gzip"),)),
        "a broken answer",
    ),
    **{
        str(status): (Reply(b"later", status=status), f"status {status}")
        for status in (408, 425, 429, 500, 502, 503, 504)
    },
}


@pytest.mark.parametrize("fault", _BROKEN)
def test_what_may_pass_is_tried_again(fault: str) -> None:
    reply, _ = _BROKEN[fault]
    world = World(reply, reply, reply)
    assert fetch(world) == b"good"
    assert len(world.server.asked) == 4


@pytest.mark.parametrize("fault", _BROKEN)
def test_four_attempts_and_no_more(fault: str) -> None:
    reply, why = _BROKEN[fault]
    world = World(*[reply] * 9)
    assert refusal(world) == f"{why}, 4 times"
    assert len(world.server.asked) == 4


_FINAL = {
    "404": (Reply(status=404), "the service does not know it (status 404)"),
    "403": (Reply(b"no", status=403), "status 403"),
    "204": (Reply(status=204), "status 204"),
    "a web page": (
        Reply(b"<html>", headers=(("content-type", "Text/HTML; charset=utf-8"),)),
        "a web page came instead",
    ),
    "a large length": (Reply(b"x", length=1 << 30), "an answer of more than 1000 bytes"),
    "an absurd length": (Reply(b"x", length=10**15), "an answer of more than 1000 bytes"),
    "one byte too many": (Reply(b"x" * 1001), "an answer of more than 1000 bytes"),
    "a gzip bomb": (
        Reply(gzip.compress(bytes(900_000)), headers=(("content-encoding", "gzip"),)),
        "an answer of more than 1000 bytes",
    ),
    "brotli": (
        Reply(b"x", headers=(("content-encoding", "br"),)),
        "an answer in a coding that was not asked for",
    ),
    "two codings": (
        Reply(gzip.compress(b"good"), headers=(("content-encoding", "gzip, gzip"),)),
        "an answer in a coding that was not asked for",
    ),
}


@pytest.mark.parametrize("fault", _FINAL)
def test_what_will_not_pass_is_not_tried_again(fault: str) -> None:
    reply, why = _FINAL[fault]
    world = World(reply)
    assert refusal(world) == why
    assert len(world.server.asked) == 1
    assert world.sleeper.slept == []


def test_an_answer_that_never_ends_is_left_at_the_limit() -> None:
    world = World(Reply(floods=True))
    assert refusal(world) == "an answer of more than 1000 bytes"
    # What the buffers of two sockets hold, and far from what was on offer.
    assert world.server.sent < 16 << 20


def test_a_bomb_is_never_unpacked() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    server = StandIn(lambda _: Reply(bomb, headers=(("content-encoding", "gzip"),)))
    ask = Exchange(url="", max_bytes=len(bomb))

    async def main() -> None:
        async with server.running(), open_http(tls=client_context()) as http:
            tracemalloc.start()
            with pytest.raises(Unavailable, match="an answer of more than"):
                await exchange(http, replace(ask, url=server.url), limits=_LIMITS)
            assert tracemalloc.get_traced_memory()[1] < 8 << 20

    try:
        run(main())
    finally:
        tracemalloc.stop()


def test_exactly_the_limit_is_accepted_plain_and_compressed() -> None:
    zipped = Reply(gzip.compress(b"x" * _MAX), headers=(("content-encoding", "gzip"),))
    assert fetch(World(Reply(b"x" * _MAX))) == b"x" * _MAX
    assert fetch(World(zipped)) == b"x" * _MAX


def test_the_client_asks_for_no_coding_and_sends_no_credentials() -> None:
    world = World(Reply(b"first", headers=(("set-cookie", "id=7; Path=/"),)))

    async def main() -> None:
        async with world.fetcher() as fetcher:
            await fetcher.fetch(world.ask("/one"), read)
            await fetcher.fetch(world.ask("/two"), read)

    run(main())
    for asked in world.server.asked:
        assert asked.headers["accept-encoding"] == "identity"
        assert not {"cookie", "authorization"} & set(asked.headers)


def test_waits_double_and_are_random_between_half_and_all() -> None:
    for status, byte, expected in (
        (503, 0x00, [0.25, 0.5, 1.0]),
        (503, 0xFF, [0.5, 1.0, 2.0]),
        # Asked too often, by its own word: longer.
        (429, 0x00, [2.0, 4.0, 8.0]),
        (429, 0xFF, [4.0, 8.0, 16.0]),
    ):
        world = World(*[Reply(status=status)] * 9)

        async def main(world: World = world, byte: int = byte) -> None:
            async with world.fetcher(byte=byte) as fetcher:
                with pytest.raises(Unavailable):
                    await fetcher.fetch(world.ask(), read)

        run(main())
        assert world.sleeper.slept == pytest.approx(expected)


def _limited(after: str, status: int = 429) -> Reply:
    return Reply(status=status, headers=(("retry-after", after),))


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("after", ["7", "Sun, 22 Nov 2026 12:00:07 GMT"])
def test_retry_after_is_obeyed(after: str, status: int) -> None:
    world = World(_limited(after, status))
    assert fetch(world) == b"good"
    assert world.sleeper.slept == [7.0]


@pytest.mark.parametrize("after", ["21", "99999999999999999999", "Sun, 22 Nov 2026 13:00:00 GMT"])
def test_a_service_that_wants_to_be_left_alone_is(after: str) -> None:
    world = World(_limited(after))
    assert refusal(world).startswith("status 429; it wants to be asked again in ")
    assert len(world.server.asked) == 1
    assert world.sleeper.slept == []


@pytest.mark.parametrize(
    "after", ["", "soon", "-5", "1e9", "٣", "Sun, 22 Nov 2026 11:00:00 GMT", "Mon, 99 Foo 2026"]
)
def test_a_retry_after_that_says_nothing_changes_nothing(after: str) -> None:
    world = World(Reply(status=503, headers=(("retry-after", after.encode().decode("latin-1")),)))
    assert fetch(world) == b"good"
    assert world.sleeper.slept == [0.25]


def test_a_redirect_to_the_same_https_host_is_followed() -> None:
    world = World(Reply(status=302, headers=(("location", "/elsewhere?a=b"),)))
    assert fetch(world) == b"good"
    assert world.server.targets() == ["/thing", "/elsewhere?a=b"]


@pytest.mark.parametrize(
    "location",
    [
        "https://localhost/thing",
        "https://127.0.0.1:1/thing",
        "//evil.example/thing",
        "http://127.0.0.1/thing",
        "https://user@127.0.0.1/thing",
        "file:///etc/passwd",
        "",
        "https://[",
    ],
)
def test_a_redirect_to_elsewhere_is_refused(location: str) -> None:
    world = World(Reply(status=307, headers=(("location", location),)))
    assert refusal(world) == "redirected to another place"
    assert len(world.server.asked) == 1


def test_a_redirect_is_not_followed_off_tls_nor_for_a_post() -> None:
    same = Reply(status=308, headers=(("location", "/elsewhere"),))
    assert refusal(World(same), tls=False) == "redirected to another place"
    assert refusal(World(same), method="POST") == "redirected to another place"


def test_redirects_in_a_circle_end() -> None:
    world = World(*[Reply(status=301, headers=(("location", "/thing"),))] * 9)
    assert refusal(world) == "redirected too often"
    assert len(world.server.asked) == 3


def test_a_server_that_nobody_vouches_for_is_refused_at_once() -> None:
    world = World()

    async def main() -> None:
        async with world.fetcher(trust=False) as fetcher:
            with pytest.raises(Unavailable, match="certificate of the server is not trusted"):
                await fetcher.fetch(world.ask(), read)

    run(main())
    assert world.sleeper.slept == []


def test_nobody_there_is_unavailable() -> None:
    world = World()

    async def main() -> None:
        async with world.fetcher() as fetcher:
            ask = world.ask(url="https://127.0.0.1:1/thing")
            with pytest.raises(Unavailable, match="no connection"):
                await fetcher.fetch(ask, read)

    run(main())
    assert len(world.sleeper.slept) == 3


@pytest.mark.parametrize(
    "url",
    [
        "http://kdsintf.amd.com",
        "ftp://127.0.0.1",
        "https://user:pw@host",
        "https://host/?q",
        "https://host/#f",
        "kdsintf.amd.com",
        "https://",
        "https://host:port",
        "",
    ],
)
def test_a_base_url_that_is_none_is_a_matter_of_configuration(url: str) -> None:
    with pytest.raises(ConfigurationError):
        plain_url(url, what="the URL")


@pytest.mark.parametrize("url", ["https://host:8081/", "http://127.0.0.1:9", "http://[::1]:9/x"])
def test_https_and_loopback_are_base_urls(url: str) -> None:
    assert plain_url(url, what="the URL") == url.rstrip("/")


def test_one_request_for_many_that_ask_at_once() -> None:
    world = World()

    async def main() -> None:
        async with world.fetcher() as fetcher:
            values = await all_of(fetcher.fetch(world.ask(), read) for _ in range(12))
            assert values == [b"good"] * 12

    run(main())
    assert len(world.server.asked) == 1


def test_one_failure_for_many_that_ask_at_once() -> None:
    world = World(Reply(status=404))

    async def main() -> None:
        async with world.fetcher() as fetcher:
            with pytest.raises(EndorsementsUnavailable) as caught:
                await all_of(fetcher.fetch(world.ask(), read) for _ in range(12))
            assert len(caught.value.failures) == 1

    run(main())
    assert len(world.server.asked) == 1


def test_one_caller_that_leaves_does_not_take_the_others_along() -> None:
    world = World()

    async def main() -> None:
        async with world.fetcher() as fetcher:
            first, second = (
                asyncio.create_task(fetcher.fetch(world.ask(), read)) for _ in range(2)
            )
            await asyncio.sleep(0)
            first.cancel()
            assert await second == b"good"

    run(main())


def test_no_more_at_once_than_the_limit() -> None:
    world = World()

    async def main() -> None:
        limits = FetchLimits(concurrent=3)
        async with world.fetcher(limits=limits) as fetcher:
            await all_of(fetcher.fetch(world.ask(f"/{n}"), read) for n in range(20))

    run(main())
    assert len(world.server.asked) == 20
    assert 1 < world.server.most_busy <= 3


def test_failures_are_told_together_and_not_without_end() -> None:
    async def fails(number: int) -> None:
        raise Unavailable(f"failure {number}")

    async def main() -> None:
        with pytest.raises(EndorsementsUnavailable) as caught:
            await all_of(fails(number) for number in range(6))
        assert len(caught.value.failures) == 6
        assert str(caught.value).endswith("failure 3 (and 2 more)")
        with pytest.raises(EndorsementsUnavailable) as outer:
            await all_of([all_of([fails(1), fails(2)]), all_of([fails(2)])])
        assert outer.value.failures == ("failure 1", "failure 2")

    run(main())


def test_an_error_of_another_kind_stays_what_it_is() -> None:
    async def fails() -> None:
        raise FormatError("x", reason=Reason.CHAIN, clause="y")

    with pytest.raises(FormatError):
        run(all_of([fails()]))  # type: ignore[arg-type]


def test_an_answer_that_is_not_the_thing_is_unavailable_in_our_words() -> None:
    world = World(Reply(b"peer text"))

    def strict(_: Answer) -> tuple[bytes, None]:
        raise FormatError("the thing is another", reason=Reason.CHAIN, clause="x")

    async def main() -> None:
        async with world.fetcher() as fetcher:
            with pytest.raises(Unavailable) as caught:
                await fetcher.fetch(world.ask(), strict)
            assert "the answer is something else (the thing is another)" in str(caught.value)
            assert "peer text" not in str(caught.value)

    run(main())


def test_a_reader_may_ask_for_another_attempt() -> None:
    world = World(Reply(b"busy"))

    def later(answer: Answer) -> tuple[bytes, None]:
        if answer.body == b"busy":
            raise TryAgain("the responder has no answer now")
        return answer.body, None

    async def main() -> None:
        async with world.fetcher() as fetcher:
            assert await fetcher.fetch(world.ask(), later) == b"good"

    run(main())


def test_unknown_is_told_apart_from_unavailable() -> None:
    world = World(Reply(status=404))

    async def main() -> None:
        async with world.fetcher() as fetcher:
            with pytest.raises(NotThere):
                await fetcher.fetch(world.ask(), read)

    run(main())


def test_the_proxy_of_the_environment_carries_tls_to_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()

    async def main() -> None:
        async with world.server.running(), world.server.proxied() as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            monkeypatch.setenv("NO_PROXY", "")
            async with open_http(limits=_LIMITS, tls=client_context()) as http:
                fetcher = EndorsementFetcher(
                    http, clock=FakeClock(NOW), entropy=FixedEntropy(), sleeper=NoSleep()
                )
                ask = world.ask(url="https://kdsintf.amd.com/vcek/v1/Milan/cert_chain")
                assert await fetcher.fetch(ask, read) == b"good"
            assert proxy.asked == ["CONNECT kdsintf.amd.com:443"]
        assert world.server.asked[0].headers["host"] == "kdsintf.amd.com"

    run(main())


def test_no_proxy_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert fetch(World()) == b"good"


def test_a_proxy_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    assert refusal(World()).endswith("4 times")


def test_a_proxy_that_is_none_is_a_matter_of_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY"):
        fetch(World())


def test_an_attempt_ends_though_the_service_keeps_dripping() -> None:
    drip = StandIn(lambda _: Reply(b"x" * 500, stalls=True))
    limits = FetchLimits(read_seconds=5.0, attempt_seconds=0.1, attempts=1)

    async def main() -> None:
        async with drip.running(), open_http(limits=limits, tls=client_context()) as http:
            fetcher = EndorsementFetcher(
                http, clock=FakeClock(NOW), entropy=FixedEntropy(), limits=limits
            )
            ask = World().ask(url=f"{drip.url}/thing")
            with pytest.raises(Unavailable, match="no answer in time, 1 times"):
                await fetcher.fetch(ask, read)

    run(main())
