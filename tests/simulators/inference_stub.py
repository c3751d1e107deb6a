"""A stub chat engine and a bare gateway in front of it, on loopback, for unmodified SDKs.

The gateway is the smallest rim around `confide.inference`: no sealing, no receipts. What it serves
and records goes through `plan_request`, `Exchange` and `HttpUpstream` alone.
"""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from confide.adapters.upstream_http import HttpUpstream, UpstreamConfig
from confide.errors import FormatError, Unavailable
from confide.inference.exchange import Exchange, refusal_record
from confide.inference.faults import RequestRefused
from confide.inference.models import ServedModel, model_answer, models_answer
from confide.inference.routes import Endpoint, EngineRoutes, RequestLimits, plan_request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.inference.digest import InferenceRecord

SERVED = ServedModel(
    name="notes-tiny",
    weights_digest="11" * 32,
    manifest_digest="22" * 32,
    upstream_name="/models/notes",
    created=1_790_000_000,
    max_context=512,
)
_TEXT = "The answer is blue."
_USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def _words(text: str) -> list[str]:
    return [word if at == 0 else " " + word for at, word in enumerate(text.split(" "))]


def fitting(schema: dict[str, Any], root: dict[str, Any] | None = None, name: str = "") -> Any:
    """A value that fits a JSON schema, the same one every time."""
    root = root or schema
    if "$ref" in schema:
        _, group, of = schema["$ref"].split("/")
        return fitting(root[group][of], root, name)
    if "enum" in schema or "const" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if "anyOf" in schema:
        return fitting(schema["anyOf"][0], root, name)
    if schema["type"] == "object":
        inner = schema.get("properties", {})
        return {key: fitting(value, root, key) for key, value in inner.items()}
    if schema["type"] == "array":
        return [fitting(schema["items"], root, name)]
    words = {"city": "Oslo", "colour": "blue"}
    return {"integer": 7, "number": 1.5, "boolean": True}.get(
        schema["type"], words.get(name, f"some {name}")
    )


def _engine_plan(request: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Say what the stub answers: a tool call while a tool is offered and not yet answered."""
    last = request["messages"][-1]
    if last["role"] == "tool":
        return f"The tool said {last['content']}.", []
    if request.get("tools") and request.get("tool_choice") != "none":
        tool = request["tools"][0]["function"]
        arguments = json.dumps(fitting(tool["parameters"]))
        function = {"name": tool["name"], "arguments": arguments}
        return "", [{"id": "call_stub_1", "type": "function", "function": function}]
    if request.get("response_format", {}).get("type") == "json_schema":
        return json.dumps(fitting(request["response_format"]["json_schema"]["schema"])), []
    return _TEXT, []


def _finish(calls: list[dict[str, Any]]) -> str:
    return "tool_calls" if calls else "stop"


def _envelope(request: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "c-1", "object": kind, "created": 1, "model": f"{request['model']}@main"}


class StubEngine:
    """An engine with chat and completions; `seen` holds every request body."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.break_off = False
        # Where set: every whole answer.
        self.whole: str | None = None
        # Where set: the next stream stands before its last words until this is.
        self.held: asyncio.Event | None = None

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.completions)
        return app

    async def chat(self, http: web.Request) -> web.StreamResponse:
        request = await http.json()
        if not isinstance(request, dict):
            return web.json_response({"detail": "not an object"}, status=422)
        self.seen.append(request)
        if request.get("temperature") == 99:
            return web.json_response({"error": {"message": "SECRET trace"}}, status=400)
        if request.get("stream"):
            return await self._stream(http, request)
        if self.whole is not None:
            return web.Response(text=self.whole, content_type="application/json")
        text, calls = _engine_plan(request)
        message: dict[str, Any] = {"role": "assistant", "content": text or None}
        if calls:
            message["tool_calls"] = calls
        return web.json_response(
            {
                **_envelope(request, "chat.completion"),
                "choices": [{"index": 0, "message": message, "finish_reason": _finish(calls)}],
                "usage": _USAGE,
            }
        )

    async def _stream(self, http: web.Request, request: dict[str, Any]) -> web.StreamResponse:
        text, calls = _engine_plan(request)
        deltas: list[dict[str, Any]] = [{"role": "assistant"}]
        deltas += [{"content": word} for word in _words(text)] if text else []
        for index, call in enumerate(calls):
            arguments = call["function"]["arguments"]
            first = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
            deltas.append({"tool_calls": [first]})
            deltas += [
                {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
                for piece in (arguments[:5], arguments[5:])
            ]
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(http)
        envelope = _envelope(request, "chat.completion.chunk")
        choices: list[list[dict[str, Any]]] = [
            [{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas
        ]
        choices.append([{"index": 0, "delta": {}, "finish_reason": _finish(calls)}])
        for choice in choices:
            chunk = json.dumps({**envelope, "choices": choice})
            await response.write(f"data: {chunk}\n\n".encode())
            if self.break_off and choice[0]["delta"].get("content"):
                assert isinstance(http.transport, asyncio.Transport)
                http.transport.abort()
                return response
        held, self.held = self.held, None
        if held is not None:
            await held.wait()
        if (request.get("stream_options") or {}).get("include_usage"):
            chunk = json.dumps({**envelope, "choices": [], "usage": _USAGE})
            await response.write(f"data: {chunk}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def completions(self, http: web.Request) -> web.StreamResponse:
        request = await http.json()
        if not isinstance(request, dict):
            return web.json_response({"detail": "not an object"}, status=422)
        self.seen.append(request)
        envelope = _envelope(request, "text_completion")
        if not request.get("stream"):
            choice = {"index": 0, "text": _TEXT, "finish_reason": "stop", "logprobs": None}
            usage = {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
            return web.json_response({**envelope, "choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(http)
        for word in _words(_TEXT):
            choice = {"index": 0, "text": word, "finish_reason": None, "logprobs": None}
            chunk = json.dumps({**envelope, "choices": [choice]})
            await response.write(f"data: {chunk}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


@dataclass
class Gateway:
    """A running gateway: its URL, its engine, and the record of every exchange."""

    engine: StubEngine
    url: str = ""
    records: list[InferenceRecord] = field(default_factory=list)
    served: ServedModel = SERVED
    routes: EngineRoutes | None = None
    upstream: HttpUpstream | None = None

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 24)
        for endpoint in Endpoint:
            app.router.add_post(endpoint.value, self.serve)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/models/{name}", self.models)
        return app

    async def models(self, http: web.Request) -> web.Response:
        one = http.match_info.get("name") is not None
        body = model_answer(self.served) if one else models_answer(self.served)
        return web.Response(body=body, content_type="application/json")

    async def serve(self, http: web.Request) -> web.StreamResponse:
        assert self.routes is not None
        assert self.upstream is not None
        endpoint, body = Endpoint(http.path), await http.read()
        try:
            plan = plan_request(
                endpoint, body, served=self.served, routes=self.routes, limits=RequestLimits()
            )
        except RequestRefused as refused:
            fault = refused.fault
            self.records.append(refusal_record(endpoint, body, fault, served=self.served))
            headers = {"content-type": "application/json"}
            return web.Response(status=fault.status, body=fault.body(), headers=headers)
        exchange = Exchange(plan, body, token="ab" * 12, created_at=1_790_000_001)
        try:
            answer = await self.upstream.forward(plan.upstream_path, plan.body)
        except Unavailable:
            return self._whole(exchange, exchange.fail())
        try:
            exchange.answer(answer.status, answer.content_type)
            if exchange.streams:
                response = web.StreamResponse(headers=dict(exchange.headers))
                await response.prepare(http)
                held = b""
                async for chunk in answer.chunks():
                    await response.write(held)
                    held = exchange.feed(chunk)
                rest = held + exchange.finish()
                # Recorded before the last bytes go out: a client may look as soon as it has them.
                self.records.append(exchange.record())
                await response.write(rest)
                return response
            async for chunk in answer.chunks():
                exchange.feed(chunk)
            return self._whole(exchange, exchange.finish())
        except (Unavailable, FormatError):
            rest = exchange.fail()
            if not exchange.streams:
                return self._whole(exchange, rest)
            self.records.append(exchange.record())
            await response.write(rest)
            return response
        finally:
            exchange.cancel()
            await answer.close()

    def _whole(self, exchange: Exchange, body: bytes) -> web.Response:
        self.records.append(exchange.record())
        return web.Response(status=exchange.status, body=body, headers=dict(exchange.headers))


async def _serve(app: web.Application) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    return runner, f"http://{host}:{port}"


@contextmanager
def running_gateway() -> Iterator[Gateway]:
    """Run engine and gateway in a thread of their own, so that blocking clients can call them."""
    gateway = Gateway(StubEngine())
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        engine_runner, engine_url = await _serve(gateway.engine.app())
        async with HttpUpstream(UpstreamConfig(base_url=engine_url + "/v1")) as upstream:
            gateway.upstream = upstream
            gateway.routes = await upstream.probe()
            gateway_runner, gateway.url = await _serve(gateway.app())
            ready.set()
            await stop.wait()
            await gateway_runner.cleanup()
        await engine_runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield gateway
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
