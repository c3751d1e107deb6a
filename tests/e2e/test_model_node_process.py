"""A model node as a process, in front of engines on real sockets: pools, routes, draining."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from deployment import AGENTS, Installation, Node
from engine_peers import Engine, Peer, routed

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.image_build import read_agent_manifest
from confide.adapters.prove import SealedNode, prove_node
from confide.adapters.software import running_kernel
from confide.adapters.upstream_serve import BUNDLED_WEIGHTS
from confide.client.expect import expectation_for
from confide.client.local import local_reference
from confide.inference.digest import Finish, parse_record
from confide.rats import Status
from confide.reasons import Reason
from confide.receipts.inline import RECEIPT_HEADER, ReceiptStripper, decode_inline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from confide.inference.digest import InferenceRecord

_MODEL = "m"
_JSON = (("content-type", "application/json"),)
_ASKED = {"model": _MODEL, "messages": [{"role": "user", "content": "hi"}]}
_EVENT = b'data: {"choices":[]}\n\n'


@dataclass
class Proven:
    """A node process and the sealed way to it."""

    node: Node
    link: SealedNode

    async def ask(self, path: str, body: Any) -> tuple[int, bytes, InferenceRecord]:
        """Return status, body and the record of the receipt."""
        raw = json.dumps(body).encode()
        async with await self.link.sealed.request("POST", path, _JSON, raw) as answer:
            given = await answer.aread()
        headers = dict(answer.headers)
        if RECEIPT_HEADER in headers:
            envelope = decode_inline(headers[RECEIPT_HEADER])
        else:
            stripper = ReceiptStripper()
            given = stripper.feed(given)
            rest, text = stripper.finish()
            assert text is not None
            given, envelope = given + rest, decode_inline(text)
        value = json.loads(envelope.payload)["predicate"]["record"]
        record = parse_record(value, what="record", reason=Reason.RECEIPT_FORMAT)
        return answer.status, given, record


@asynccontextmanager
async def node_before(
    tmp: Path,
    *talks: Callable[[Peer], Awaitable[None]],
    weights: Path | None = None,
    more: tuple[str, ...] = (),
) -> AsyncIterator[Proven]:
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(Engine(talk).serving()) for talk in talks]
        installation = Installation(tmp, "")
        installation.paths.make_private()
        words = [word for url in urls for word in ("--upstream", url)]
        if weights is not None:
            words += ["--weights", str(weights)]
        node = await asyncio.to_thread(
            installation.start, "model", "--model", _MODEL, *words, *more
        )
        stack.callback(node.stop)
        reference = local_reference(
            seed=installation.engine.seed(),
            roots=installation.roots,
            software=installation.software,
            kernel=running_kernel(),
            model=_MODEL,
            weights=weights,
            now=SystemClock().now(),
        )
        expectation = expectation_for(read_agent_manifest(AGENTS / "probe"), "00" * 32, reference)
        if weights is not None and urls:
            hardware = expectation.hardware
            accepted = (*hardware.accept_not_proven, "model-weights")
            hardware = replace(hardware, accept_not_proven=accepted)
            expectation = replace(expectation, hardware=hardware)
        http = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False))
        link = await prove_node(
            node.url,
            role="model",
            expectation=expectation,
            roots=installation.roots,
            http=http,
            clock=SystemClock(),
            entropy=SystemEntropy(),
        )
        yield Proven(node, link)


def saying(word: bytes) -> Any:
    async def answer(peer: Peer, _body: bytes) -> None:
        await peer.answer(word, head="content-type: application/json\r\n")

    return answer


def test_a_node_drains_on_sigterm(tmp_path: Path) -> None:
    async def main() -> None:
        begun, opened = asyncio.Event(), asyncio.Event()

        async def held(peer: Peer, _body: bytes) -> None:
            head = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n"
            await peer.send(head + b"content-length: %d\r\n\r\n" % (2 * len(_EVENT)) + _EVENT)
            begun.set()
            await opened.wait()
            await peer.send(_EVENT)

        async with node_before(tmp_path, routed(held)) as proven:
            path = "/v1/chat/completions"
            stream = asyncio.ensure_future(proven.ask(path, {**_ASKED, "stream": True}))
            await begun.wait()
            proven.node.process.send_signal(signal.SIGTERM)
            status = 0
            while status != 503:
                asking = asyncio.ensure_future(proven.ask("/v1/embeddings", _ASKED))
                status, body, record = await asking
                assert status in (404, 503)
            assert json.loads(body)["error"]["code"] == "node_draining"
            assert record.upstream_digest is None
            assert not stream.done()
            opened.set()
            status, body, record = await stream
            assert (status, body, record.finish) == (200, _EVENT * 2, Finish.COMPLETE)
            assert await asyncio.to_thread(proven.node.process.wait) == 0

    asyncio.run(main())


def test_a_pool_goes_on_without_an_engine_that_died(tmp_path: Path) -> None:
    async def main() -> None:
        async def dying(_peer: Peer, _body: bytes) -> None:
            raise ConnectionError

        async with node_before(tmp_path, routed(dying), routed(saying(b"{}"))) as proven:
            for _ in range(4):
                status, body, record = await proven.ask("/v1/chat/completions", _ASKED)
                assert (status, body, record.carriage.member) == (200, b"{}", 1)

    asyncio.run(main())


def test_a_listed_route_passes_and_an_unlisted_does_not(tmp_path: Path) -> None:
    async def main() -> None:
        more = ("--pass-route", "POST /v1/thing")
        async with node_before(tmp_path, routed(saying(b"{}")), more=more) as proven:
            status, body, record = await proven.ask("/v1/thing", {"model": _MODEL})
            assert (status, body, record.endpoint) == (200, b"{}", "/v1/thing")
            for path in ("/v1/other", "/sleep", "/v1/load_lora_adapter", "/v1/thing/../../sleep"):
                status, _body, record = await proven.ask(path, {"model": _MODEL})
                assert (status, record.endpoint) == (404, "unlisted")

    asyncio.run(main())


def test_weights_beside_the_engines_are_named_and_watched(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_bytes(
        b'{"quantization_config":{"quant_method":"awq","bits":4}}'
    )
    # In shards, of which an index says where they are.
    (weights / "pytorch_model.bin").write_bytes(b"weights")
    _lead(weights, "pytorch_model.bin")

    async def main() -> None:
        home = tmp_path / "home-of-the-node"
        home.mkdir()
        async with node_before(home, routed(saying(b"{}")), weights=weights) as proven:
            model = proven.link.node.events.model
            assert model is not None
            assert model.quantisation is not None
            assert (model.loaded, model.quantisation.method, model.quantisation.bits) == (
                False,
                "awq",
                4,
            )
            claim = proven.link.node.result.claim("model-weights")
            assert claim.status is Status.NOT_PROVEN
            raw = json.dumps(_ASKED).encode()
            path = "/v1/chat/completions"
            async with await proven.link.sealed.request("POST", path, _JSON, raw) as answer:
                await answer.aread()
            named = json.loads(decode_inline(dict(answer.headers)[RECEIPT_HEADER]).payload)
            assert named["predicate"]["model"] == {
                "name": _MODEL,
                "weights": model.weights and model.weights.hex(),
                "quantisation": model.quantisation.as_json(),
            }
            (weights / "config.json").write_bytes(b"{}")
            async with httpx2.AsyncClient(trust_env=False) as http:
                again = await http.post(
                    f"{proven.node.url}/confide/v1/evidence",
                    json={"nonce": "00" * 32, "expectation": "00" * 32},
                )
            assert again.status_code == 503

    asyncio.run(main())


@pytest.mark.model
@pytest.mark.slow
def test_the_bundled_model_is_served_over_every_endpoint_its_engine_has(tmp_path: Path) -> None:
    async def main() -> None:
        async with node_before(tmp_path, weights=BUNDLED_WEIGHTS) as proven:
            model = proven.link.node.events.model
            assert model is not None
            assert model.loaded
            assert model.quantisation is not None
            assert (model.quantisation.method, model.quantisation.bits) == ("none", None)
            assert proven.link.node.result.claim("model-weights").status is Status.PASS
            served: list[tuple[str, dict[str, Any]]] = [
                ("/v1/chat/completions", {**_ASKED, "max_tokens": 2}),
                ("/v1/completions", {"model": _MODEL, "prompt": "hi", "max_tokens": 2}),
                ("/v1/responses", {"model": _MODEL, "input": "hi", "max_output_tokens": 16}),
            ]
            for path, body in served:
                status, given, record = await proven.ask(path, body)
                assert (status, record.finish) == (200, Finish.COMPLETE)
                assert json.loads(given)["model"] == _MODEL
            absent: list[tuple[str, dict[str, Any]]] = [
                ("/v1/embeddings", {"model": _MODEL, "input": "hi"}),
                ("/v1/rerank", {"model": _MODEL, "query": "a", "documents": ["b"]}),
                ("/load_model", {"model": _MODEL}),
                ("/reset", {"model": _MODEL}),
            ]
            for path, body in absent:
                status, _given, record = await proven.ask(path, body)
                assert (status, record.upstream_digest) == (404, None)

    asyncio.run(main())


def _lead(weights: Path, place: str) -> None:
    """Have the index of `weights` say that a tensor is in the file `place`."""
    index = weights / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": place}}))


def _refused(tmp_path: Path, *words: str) -> str:
    installation = Installation(tmp_path, "")
    installation.paths.make_private()
    node = installation.launch("model", "--model", _MODEL, *words)
    assert node.process.wait(60) == 2
    return node.log.read_text()


def test_what_is_misconfigured_does_not_start(tmp_path: Path) -> None:
    route = "POST /v1/load_lora_adapter"
    url = "http://127.0.0.1:9"
    (tmp_path / "a").mkdir()
    assert "administers" in _refused(tmp_path / "a", "--upstream", url, "--pass-route", route)
    (tmp_path / "b").mkdir()
    assert "not on loopback" in _refused(tmp_path / "b", "--upstream", "http://192.0.2.1")
    (tmp_path / "c").mkdir()
    assert "--weights or --upstream" in _refused(tmp_path / "c")


@pytest.mark.parametrize("engine", [(), ("--upstream", "http://127.0.0.1:9")])
def test_weights_that_lead_elsewhere_are_not_served(
    tmp_path: Path, engine: tuple[str, ...]
) -> None:
    """docs/protocols/weights.md §10: by the embedded engine, or by one beside the node."""
    weights, home = tmp_path / "weights", tmp_path / "home"
    shutil.copytree(BUNDLED_WEIGHTS, weights)
    home.mkdir()
    shutil.copyfile(weights / "model.safetensors", tmp_path / "other.bin")
    _lead(weights, "../other.bin")
    said = _refused(home, "--weights", str(weights), *engine)
    assert "'pytorch_model.bin.index.json': it names a file that is not in the folder" in said
    assert "weights.md §10" in said
