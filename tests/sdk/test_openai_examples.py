"""The SDK's own examples, over both client paths, on a SIMULATED node.

`openai_examples/` has their text unmodified. Over the local endpoint they run as they are, with
nothing but the two environment variables that `confide proxy` prints. With the client, one line
changes: the one that makes it. The node serves a model of the name that each example asks for.

Left out are those that need what only the vendor runs (Azure, Bedrock, workload identities, state
kept by the service), web sockets, or a loudspeaker.
"""

from __future__ import annotations

import base64
import gc
import io
import json
import os
import re
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import openai
import pytest
from aiohttp import web
from inference_stub import StubEngine
from local_proxy import TOKEN, running_proxy
from nodes import roots as simulated_roots
from proven_place import inference_policy, running_place

import confide
from confide.adapters.receipt_db import list_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from proven_place import Place

EXAMPLES = Path(__file__).parent / "openai_examples"
PICTURE = base64.b64encode(b"a picture").decode()

# The example, how many calls it makes, and what it prints when they were answered as it asks.
SHOWN = {
    "demo": (3, "The answer is blue."),
    "async_demo": (1, "The answer is blue."),
    "httpx2_client": (1, "The answer is blue."),
    "streaming": (2, '"content": " blue."'),
    "parsing": (1, "answer:  some final_answer"),
    "parsing_stream": (1, "answer: some final_answer"),
    "parsing_tools": (1, "Table.orders"),
    "parsing_tools_stream": (1, "GetWeather(city='Oslo', country='some country')"),
    "picture": (1, "pictures.invalid"),
    "image_stream": (1, "Final image completed!"),
    "responses_streaming": (1, "final_answer='some final_answer'"),
    "responses_structured_outputs": (1, "answer:  some final_answer"),
    "responses_structured_outputs_tools": (1, "table name: Table.orders"),
    "responses_streaming_tools": (1, "ResponseCompletedEvent"),
}
MAKES_A_CLIENT = re.compile(r"\b(Async)?OpenAI\(.*\)$", re.MULTILINE)


class PaintingEngine(StubEngine):
    """An engine that paints, too: whole pictures and streamed ones."""

    def app(self) -> web.Application:
        app = super().app()
        app.router.add_post("/v1/images/generations", self.paint)
        return app

    async def paint(self, http: web.Request) -> web.StreamResponse:
        request = await http.json()
        if not isinstance(request, dict):
            return web.json_response({"detail": "not an object"}, status=422)
        if not request.get("stream"):
            data = [{"url": "https://pictures.invalid/1.png", "revised_prompt": request["prompt"]}]
            return web.json_response({"created": 1, "data": data})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(http)
        facts = {"b64_json": PICTURE, "created_at": 1, "size": "1024x1024", "quality": "low",
                 "background": "opaque", "output_format": "png"}  # fmt: skip
        kinds = ["partial_image"] * request["partial_images"] + ["completed"]
        for index, kind in enumerate(kinds):
            event = {"type": f"image_generation.{kind}", "partial_image_index": index, **facts}
            await response.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        return response


def model_of(source: str) -> str:
    """The one model that an example asks for."""
    (name,) = set(re.findall(r'\bmodel ?= ?"([^"]+)"', source))
    return str(name)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with running_place(PaintingEngine()) as running:
        yield running


@pytest.fixture(scope="module")
def node_for(place: Place) -> Callable[[str], str]:
    """The address of the node that serves a model of this name."""
    return cache(lambda model: place.node(model=model).url)


@pytest.mark.parametrize("name", SHOWN)
def test_with_one_line_changed(
    name: str,
    place: Place,
    node_for: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = (EXAMPLES / f"{name}.py").read_text()
    (calls, printed), store, model = SHOWN[name], tmp_path / "kept" / "receipts", model_of(source)
    made: list[openai.OpenAI | openai.AsyncOpenAI] = []

    def confide_client(*, asynchronous: bool) -> openai.OpenAI | openai.AsyncOpenAI:
        make = confide.async_openai_client if asynchronous else confide.openai_client
        client = make(
            node_for(model),
            policy=inference_policy(model),
            roots=simulated_roots(),
            receipts=store,
            clock=place.clock,
        )
        made.append(client)
        return client

    def changed(found: re.Match[str]) -> str:
        return f"confide_client(asynchronous={found[1] is not None})"

    program, lines = MAKES_A_CLIENT.subn(changed, source)
    assert lines == source.count("OpenAI(") > 0
    told = run(program, {"confide_client": confide_client}, tmp_path, monkeypatch)
    end(made)
    assert printed in told
    assert len(list_rows(store, limit=99)) == calls


def end(clients: list[openai.OpenAI | openai.AsyncOpenAI]) -> None:
    """Close what the examples leave open; the event loops of the asynchronous ones have ended."""
    for client in clients:
        if isinstance(client, openai.OpenAI):
            client.close()
    clients.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def run(program: str, names: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run `program` as the main module, in `folder`; return what it printed."""
    main = ModuleType("__main__")
    main.__dict__.update(names)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.chdir(folder)
    told = io.StringIO()
    with redirect_stdout(told):
        exec(compile(program, "example", "exec"), main.__dict__)  # noqa: S102 - the SDK's own text
    main.__dict__.clear()
    return told.getvalue()


@pytest.mark.parametrize("name", SHOWN)
def test_unchanged_over_the_local_endpoint(
    name: str, place: Place, node_for: Callable[[str], str], tmp_path: Path
) -> None:
    file = EXAMPLES / f"{name}.py"
    (calls, printed), store = SHOWN[name], tmp_path / "kept" / "receipts"
    model = model_of(file.read_text())
    expectation = inference_policy(model)
    with running_proxy(place, [node_for(model)], store, expectation=expectation) as proxy:
        ran = run_as_it_is(file, tmp_path, f"{proxy.url}/v1")
    assert ran.returncode == 0, ran.stderr
    assert printed in ran.stdout
    assert len(list_rows(store, limit=99)) == calls


def run_as_it_is(file: Path, folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": TOKEN,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, str(file)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
