"""`confide relay serve` as a process in front of a model node that is one: blind, and silent.

Canaries are in the prompt and in the API key. Looked for in every byte that the relay received and
sent, in its memory, its log and its command line. docs/protocols/relay.md §1.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest
from deployment import MODEL, WAIT_SECONDS, Installation, until
from in_path import InPath, Meddler
from leaks import Canaries

from confide.adapters.answer_transport import Request
from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.receipt_db import UnsafeKeepNone
from confide.adapters.software import running_kernel
from confide.channel.padding import StreamShape
from confide.client.expect import inference_expectation_for
from confide.client.held import TrustPolicy
from confide.client.local import local_reference
from confide.client.relayed import relay_of
from confide.client.session import Session
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from deployment import Node
    from stub_openai import StubOpenAI


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, stub: StubOpenAI) -> Installation:
    return Installation(tmp_path_factory.mktemp("relay"), stub.url)


@pytest.fixture(scope="module")
def node(installation: Installation) -> Iterator[Node]:
    with installation.model_node() as running:
        yield running


class Records(Meddler):
    """Keeps every byte that passes."""

    def __init__(self) -> None:
        self.passed = bytearray()

    def request(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
        self.passed += path.encode()
        return self._kept(pieces)

    def response(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
        del path
        return self._kept(pieces)

    def _kept(self, pieces: Iterable[bytes]) -> Iterable[bytes]:
        for piece in pieces:
            self.passed += piece
            yield piece


def confide(installation: Installation, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "confide", *words],
        env=installation.environment, capture_output=True, text=True, check=False,
        timeout=WAIT_SECONDS,
    )  # fmt: skip


@contextlib.contextmanager
def relaying(
    installation: Installation, *words: str
) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = installation.root / "relay.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "confide", "relay", "serve", *words, "--port", str(port)],
            env=installation.environment, stdout=output, stderr=output,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def serves() -> bool:
        if process.poll() is not None:
            raise AssertionError(log.read_text())
        try:
            return bool(
                httpx2.get(f"{url}/confide/v1/health", trust_env=False, timeout=60).json()["ready"]
            )
        except httpx2.HTTPError:
            return False

    try:
        until(serves, "the relay serves")
        yield url, process, log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT_SECONDS)


def memory_of(pid: int) -> bytes:
    """Every readable byte of a process (proc(5))."""
    found = bytearray()
    place = Path("/proc") / str(pid)
    with (place / "maps").open(encoding="ascii") as maps, (place / "mem").open("rb") as mem:
        for line in maps:
            spans = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if spans is None:
                continue
            begin, end = (int(text, 16) for text in spans.groups())
            with contextlib.suppress(OSError, ValueError, OverflowError):
                mem.seek(begin)
                found += mem.read(end - begin)
    return bytes(found)


@pytest.mark.parametrize("signed", ["here", "elsewhere"])
def test_it_forwards_what_it_cannot_read_and_says_nothing(
    installation: Installation, node: Node, tmp_path: Path, signed: str
) -> None:
    nodes, key, directory = (tmp_path / name for name in ("nodes.json", "key", "directory"))
    entry = {"url": node.url, "role": "model", "model": MODEL, "roots": installation.roots.name}
    nodes.write_bytes(jcs({"type": "confide/relay-nodes/v1", "nodes": [entry]}))
    made = confide(installation, "relay", "keygen", "relay.tests", str(key), "--json")
    public = json.loads(made.stdout.splitlines()[-1])["key"]
    assert key.stat().st_mode & 0o777 == 0o600
    source = ["--key", str(key)]
    if signed == "elsewhere":
        words = ["--key", str(key), "--output", str(directory)]
        done = confide(installation, "relay", "sign-directory", str(nodes), *words)
        assert done.returncode == 0, done.stderr
        assert node.url.encode() not in directory.read_bytes()
        source = ["--directory", str(directory)]
    canaries = Canaries(2, SystemEntropy().token)
    prompt, api_key = canaries.words
    with relaying(installation, str(nodes), *source) as (url, process, log):
        records = Records()
        with InPath(url, records) as path:
            asyncio.run(_ask(installation, path.url, public, prompt, api_key))
        try:
            memory = memory_of(process.pid)
        except PermissionError:
            pytest.skip("the memory of another process cannot be read here")
        assert confide(installation, "relay", "serve", str(nodes), "--port", "0").returncode == 2
    assert process.returncode == 0
    assert log.read_bytes() == b""
    assert len(records.passed) > 4096
    assert not canaries.inside(bytes(records.passed))
    assert not canaries.inside(memory)
    # It was the memory that was looked at: what the relay does know is there.
    assert node.url.removeprefix("http://").encode() in memory


async def _ask(
    installation: Installation, url: str, public: str, prompt: str, api_key: str
) -> None:
    reference = local_reference(
        seed=installation.engine.seed(), roots=installation.roots, software=installation.software,
        kernel=running_kernel(), model=MODEL, weights=None, now=SystemClock().now(),
    )  # fmt: skip
    policy = TrustPolicy(inference_expectation_for(reference), installation.roots)
    session = Session(
        [], policy, keeper=UnsafeKeepNone(), clock=SystemClock(), entropy=SystemEntropy(),
        relay=relay_of(url, public), shape=StreamShape(512, 20),
    )  # fmt: skip
    headers = (("content-type", "application/json"), ("authorization", f"Bearer {api_key}"))
    for stream in (False, True):
        body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": stream}
        request = Request("POST", "/v1/chat/completions", headers, jcs(body))
        answer = await session.send(request)
        assert answer.status == 200
        assert await answer.aread()
        assert answer.receipt is not None
        await answer.aclose()
    await session.close()
