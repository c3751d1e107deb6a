"""Where numbers and spans go: loopback or TLS, never in the way of a call. tenancy.md §6, §7."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx2
import pytest
from aiohttp import web

from confide.adapters.metrics_http import metrics_place, serving_metrics
from confide.adapters.traces_http import exporting_spans, traces_url
from confide.errors import ConfigurationError, Unavailable
from confide.telemetry.facts import CallFacts
from confide.telemetry.spans import Span, span_of

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def span(number: int) -> Span:
    facts = CallFacts("/v1/chat/completions")
    return span_of(facts, ids=number.to_bytes(24), begun=NOW, ended=NOW, by_key=False)


@pytest.mark.parametrize("text", ["127.0.0.1:9464", "[::1]:9464", "localhost:9464"])
def test_metrics_are_served_on_this_machine(text: str) -> None:
    assert metrics_place(text)[1] == 9464


@pytest.mark.parametrize(
    "text", ["", "9464", "127.0.0.1", "0.0.0.0:1", "[::]:1", "10.0.0.1:1", "host:1", "a:b", "[:1"]
)
def test_and_nowhere_else(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:9464"):
        metrics_place(text)
    with pytest.raises(ConfigurationError):
        metrics_place(f"{text}/path")


def test_a_scrape_gets_the_numbers_and_nothing_else_is_there() -> None:
    async def main() -> None:
        numbers = iter(("first 1\n", "second 2\n"))
        async with (
            serving_metrics(
                "127.0.0.1", 0, lambda: next(numbers), content_type="text/plain"
            ) as port,
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
        ):
            assert [(await http.get("/metrics")).text for _ in range(2)] == [
                "first 1\n",
                "second 2\n",
            ]
            assert (await http.get("/")).status_code == 404
            assert (await http.post("/metrics", content=b"x")).status_code == 405
            with pytest.raises(Unavailable, match="cannot be served"):
                async with serving_metrics("127.0.0.1", port, str, content_type="text/plain"):
                    pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
        ("https://collector.example/otlp", "https://collector.example/otlp/v1/traces"),
        ("https://collector.example/v1/traces", "https://collector.example/v1/traces"),
    ],
)
def test_where_spans_go(text: str, url: str) -> None:
    assert traces_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:4318",
        "http://",
        "http://10.0.0.1:4318",
        "http://collector.example",
        "ftp://127.0.0.1",
        "https://user:pass@collector.example",
        "https://collector.example?x=1",
        "https://[",
    ],
)
def test_where_spans_do_not_go(text: str) -> None:
    with pytest.raises(ConfigurationError):
        traces_url(text)


async def _collector(answer: Callable[[], int], got: list[bytes]) -> tuple[web.AppRunner, str]:
    async def take(request: web.Request) -> web.Response:
        got.append(await request.read())
        status = answer()
        return web.Response(status=status, headers={"location": "/elsewhere"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"


def _ids(raw: bytes) -> list[int]:
    spans = json.loads(raw)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    return [int(span["traceId"] + span["spanId"], 16) for span in spans]


def test_spans_are_sent_in_order_and_what_waits_at_the_end_too() -> None:
    async def main() -> None:
        got: list[bytes] = []
        runner, url = await _collector(lambda: 200, got)
        async with exporting_spans(url) as exporter:
            for number in range(600):
                exporter.add(span(number))
        await runner.cleanup()
        assert [number for raw in got for number in _ids(raw)] == list(range(600))
        assert len(got) == 3

    asyncio.run(main())


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_collector_that_refuses_gets_it_once_and_nothing_breaks(status: int) -> None:
    async def main() -> None:
        got: list[bytes] = []
        runner, url = await _collector(lambda: status, got)
        async with exporting_spans(url) as exporter:
            exporter.add(span(1))
            await exporter.flush()
            exporter.add(span(2))
        await runner.cleanup()
        assert [_ids(raw) for raw in got] == [[1], [2]]

    asyncio.run(main())


def test_without_a_collector_spans_are_dropped_and_so_many_wait_at_most() -> None:
    async def main() -> None:
        runner, url = await _collector(lambda: 200, [])
        await runner.cleanup()
        async with exporting_spans(url) as exporter:
            for number in range(5000):
                exporter.add(span(number))
            assert len(exporter._waiting) == 2048
            await exporter.flush()
            assert len(exporter._waiting) == 0

    asyncio.run(main())
