"""A model node and a local endpoint as processes, before an engine of the test that does harm.

Every byte between them is real: the test is the program that asks `confide proxy`, and the engine
that answers `confide node model`. What was promised is read where a user reads it: the answer, the
line that the proxy tells of the call, and the receipt that it kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import queue
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import httpx2
from deployment import MODEL, WAIT_SECONDS, Installation, until
from engine_peers import Engine, routed

from confide.adapters.clock import SystemClock
from confide.adapters.receipt_db import list_rows, load_file
from confide.adapters.software import running_kernel
from confide.client.expect import inference_expectation_for
from confide.client.local import local_reference
from confide.inference.digest import InferenceRecord, parse_record
from confide.reasons import Reason
from confide.trust.roots import encode_roots_file
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from deployment import Node
    from engine_peers import Answer, Peer

    from confide.expectation import Expectation

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
STREAMED = {**QUESTION, "stream": True}
WHOLE = json.dumps({"object": "chat.completion", "model": MODEL, "choices": []}).encode()
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"blue"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 X\r\ncontent-type: %b\r\n"
JSON_HEAD = HEAD % b"application/json"
EVENTS_HEAD = HEAD % b"text/event-stream" + b"transfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of HTTP's transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def says(*pieces: bytes, hangs: bool = False) -> Answer:
    """An engine that sends these bytes, then closes; or says nothing more until it is left."""

    async def answer(peer: Peer, _body: bytes) -> None:
        for piece in pieces:
            await peer.send(piece)
        if hangs:
            await peer.gone()
        raise ConnectionAbortedError

    return answer


async def well(peer: Peer, body: bytes) -> None:
    """What a good engine answers: events where they are asked for."""
    if json.loads(body).get("stream"):
        await peer.send(EVENTS_HEAD + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n")
    else:
        await peer.answer(WHOLE, head="content-type: application/json\r\n")


class HostileEngine:
    """An engine on loopback, in a thread of its own; `answer` is what it does with model calls."""

    def __init__(self, answer: Answer = well) -> None:
        self.answer = answer
        self.calls = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        async def dispatch(peer: Peer, body: bytes) -> None:
            self.calls += 1
            await self.answer(peer, body)

        async with Engine(routed(dispatch, model=MODEL)).serving() as self.url:
            self._ready.set()
            await self._stop.wait()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            # Their connections close in the next turns of the loop.
            await asyncio.sleep(0.05)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(WAIT_SECONDS)
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_SECONDS)
        self._loop.close()


class Gate:
    """Where an engine stands until the test lets it go on; knows that it was left."""

    def __init__(self, *before: bytes, after: bytes = b"") -> None:
        self.reached, self.opened, self.left = (threading.Event() for _ in range(3))
        self._before, self._after = before, after

    async def answer(self, peer: Peer, _body: bytes) -> None:
        """Send what comes before, wait, send what comes after; or notice that nobody is there."""
        for piece in self._before:
            await peer.send(piece)
        self.reached.set()
        leaving = asyncio.ensure_future(peer.gone())
        opening = asyncio.ensure_future(self._opened())
        await asyncio.wait({leaving, opening}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            self.left.set()
        else:
            await peer.send(self._after)
        for task in (leaving, opening):
            task.cancel()
        raise ConnectionAbortedError

    async def _opened(self) -> None:
        while not self.opened.is_set():  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Heard:
    """One call as the program saw it; `whole` is False where its body was cut."""

    status: int
    body: bytes
    whole: bool
    headers: dict[str, str]

    @property
    def code(self) -> str:
        """The error's code, in an error body or in the last event of a stream."""
        last = self.body.rstrip().rpartition(b"\n")[2].removeprefix(b"data: ")
        return str(json.loads(last)["error"]["code"])


def hear(
    url: str,
    body: Any,
    *,
    path: str = CHAT,
    headers: dict[str, str] | None = None,
    begun: Callable[[], object] | None = None,
    seconds: float = WAIT_SECONDS,
) -> Heard:
    """Ask, and take what comes as far as it comes; `begun` is called at its first piece."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json", **(headers or {})}
    pieces: list[bytes] = []
    with (
        httpx2.Client(trust_env=False, timeout=seconds) as http,
        http.stream("POST", url + path, content=raw, headers=sent) as answer,
    ):
        try:
            for piece in answer.iter_raw():
                pieces.append(piece)
                if begun is not None:
                    begun()
        except httpx2.RemoteProtocolError:
            return Heard(answer.status_code, b"".join(pieces), False, dict(answer.headers))
    return Heard(answer.status_code, b"".join(pieces), True, dict(answer.headers))


class Proxy:
    """`confide proxy --json` as a process; one line is told for each call."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = ""

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))

    def told(self) -> dict[str, Any]:
        """Return the next line."""
        return self._lines.get(timeout=WAIT_SECONDS)

    def __enter__(self) -> Self:
        try:
            ready = self.told()
        except queue.Empty as error:
            self.__exit__()
            raise AssertionError("the proxy did not come up") from error
        assert (ready["event"], ready["simulated"]) == ("ready", True)
        self.url = ready["url"]
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()
        self._reader.join(WAIT_SECONDS)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def stop(self) -> int:
        """Tell it to stop; return how it ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_SECONDS)


@dataclass
class World:
    """One installation, its engine and what runs before it."""

    installation: Installation
    engine: HostileEngine
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    # Where the proxy keeps receipts.
    receipts: Path = field(init=False)

    def __post_init__(self) -> None:
        self.receipts = self.installation.paths.receipts

    def node(self, *more: str, fault: str = "", port: int = 0) -> Node:
        """Start a model node before the engine."""
        words = ("--model", MODEL, "--upstream", self.engine.url, *more)
        node = self.installation.start("model", *words, fault=fault, port=port)
        self.stack.callback(node.stop)
        return node

    def expectation(self) -> Expectation:
        """What an honest node of this installation meets."""
        return inference_expectation_for(
            local_reference(
                seed=self.installation.engine.seed(),
                roots=self.installation.roots,
                software=self.installation.software,
                kernel=running_kernel(),
                model=MODEL,
                weights=None,
                now=SystemClock().now(),
            )
        )

    def command(self, *words: str) -> list[str]:
        """Return how `confide proxy` is started with what this installation trusts."""
        expectation, roots = (self.installation.root / name for name in ("wanted", "roots"))
        expectation.write_bytes(self.expectation().canonical())
        roots.write_bytes(encode_roots_file(self.installation.roots))
        return [
            *(sys.executable, "-m", "confide", "proxy", "--port", "0", "--json", "--no-token"),
            *("--expectation", str(expectation), "--roots", str(roots), *words),
        ]

    def proxy(self, *words: str, **environment: str) -> Proxy:
        """Start `confide proxy`; it has proven a node when this returns."""
        proxy = Proxy(self.command(*words), {**self.installation.environment, **environment})
        return self.stack.enter_context(proxy)

    def relay(self, *nodes: Node) -> tuple[str, str, subprocess.Popen[bytes]]:
        """Start `confide relay` before `nodes`; return its address, its key and the process."""
        root = self.installation.root
        listed, key = root / "nodes.json", root / "relay.key"
        roots = self.installation.roots.name
        entries = [{"url": n.url, "role": "model", "model": MODEL, "roots": roots} for n in nodes]
        document: Any = {"type": "confide/relay-nodes/v1", "nodes": entries}
        listed.write_bytes(jcs(document))
        confide = [sys.executable, "-m", "confide", "relay"]
        made = subprocess.run(
            [*confide, "keygen", "relay.tests", str(key), "--json"],
            env=self.installation.environment, check=True, capture_output=True,
        )  # fmt: skip
        public = json.loads(made.stdout.splitlines()[-1])["key"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = root / "relay.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*confide, "serve", str(listed), "--key", str(key), "--port", str(port)],
                env=self.installation.environment, stdout=output, stderr=output,
            )  # fmt: skip
        self.stack.callback(process.wait, WAIT_SECONDS)
        self.stack.callback(process.terminate)
        url = f"http://127.0.0.1:{port}"

        def serves() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                health = httpx2.get(f"{url}/confide/v1/health", trust_env=False)
            except httpx2.HTTPError:
                return False
            return bool(health.json()["ready"])

        until(serves, "the relay serves")
        return url, public, process

    def kept(self) -> int:
        """How many receipts are kept."""
        return len(list_rows(self.receipts, limit=10_000))

    def record(self, receipt_id: str) -> InferenceRecord:
        """Return the record of a kept receipt: what the node signed."""
        return record_of(self.statement(receipt_id))

    def statement(self, receipt_id: str) -> dict[str, Any]:
        """Return the predicate of a kept receipt."""
        payload = load_file(self.receipts, receipt_id).envelope.payload
        return dict(json.loads(payload)["predicate"])


def record_of(statement: dict[str, Any]) -> InferenceRecord:
    """Return the record inside an inference statement."""
    return parse_record(statement["record"], what="record", reason=Reason.RECEIPT_FORMAT)


def digest(data: bytes) -> str:
    """SHA-256 as receipts write it."""
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def running_world(root: Path, answer: Callable[..., Any] = well) -> Iterator[World]:
    """An installation in `root` with an engine; the test starts what it needs, all is stopped."""
    with HostileEngine(answer) as engine:
        installation = Installation(root, engine.url)
        installation.paths.make_private()
        world = World(installation, engine)
        with world.stack:
            yield world
