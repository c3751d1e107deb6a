"""Agent runs beside the container engine alone, what they leave in memory, and their receipts."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx2
from bench.nodes import AGENT
from bench.rows import MB, Row, absent, resident_bytes, row

from confide.adapters.clock import SystemClock
from confide.adapters.engine import probe_engine
from confide.adapters.entropy import SystemEntropy
from confide.adapters.image_build import build_agent
from confide.client.agent import AgentClient, InputFile
from confide.errors import ConfigurationError
from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.nodes import Place, Server

    from confide.adapters.engine import Engine
    from confide.adapters.image_build import BuiltAgent
    from confide.client.agent import RunOutcome
    from confide.expectation import Expectation

_RUNS = 20
_CALLS = 20
_NAME = "agent run beyond the container engine's own, evidence and receipt included"


def run_rows(place: Place) -> Iterator[Row]:
    """Yield what a run costs, or that no container engine works here."""
    try:
        engine = asyncio.run(probe_engine())
    except ConfigurationError:
        yield absent(_NAME, "ms", "no container engine works here")
        return
    built = asyncio.run(
        build_agent(
            engine, AGENT, store=place.paths.images, cache=place.paths.cache,
            progress=lambda _line: None,
        )
    )  # fmt: skip
    agent = place.start(
        "-m", "confide", "node", "agent", "--port", "PORT", "--model-url", place.model.url
    )
    expectation = place.expectation(built.image.digest)
    started = resident_bytes(agent.pid) / MB
    ours, theirs = _compare(place, agent, engine, built, expectation)
    beyond = statistics.median(a - b for a, b in zip(ours, theirs, strict=True)) * 1000
    yield row(_NAME, beyond, "ms", budget="<= 400", met=beyond <= 400)
    yield row(
        "agent run, all of it, beside the container engine alone",
        statistics.median(ours) * 1000,
        "ms",
        peer=statistics.median(theirs) * 1000,
    )
    resident = resident_bytes(agent.pid) / MB
    yield row("memory: agent node, started", started, "MB", budget="<= 150", met=started <= 150)
    yield row(
        f"memory: agent node after {_RUNS} runs",
        resident,
        "MB",
        budget="<= 150",
        met=resident <= 150,
    )
    yield from _receipt(place, agent, expectation)


def _compare(
    place: Place, agent: Server, engine: Engine, built: BuiltAgent, expectation: Expectation
) -> tuple[list[float], list[float]]:
    _run(place, agent, expectation, ())
    ours, theirs = [], []
    for _ in range(_RUNS - 1):
        start = time.perf_counter()
        _run(place, agent, expectation, ())
        ours.append(time.perf_counter() - start)
        theirs.append(_plain(engine, built))
    return ours, theirs


def _plain(engine: Engine, built: BuiltAgent) -> float:
    words = engine.command(
        "run", "--rm", "--pull", "never", "--network", "none", "--read-only", "--cap-drop", "all",
        "--log-driver", "none", *engine.limits(), built.image.config,
    )  # fmt: skip
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - start


def _run(
    place: Place, agent: Server, expectation: Expectation, inputs: tuple[InputFile, ...]
) -> RunOutcome:
    """Prove, run, receive, verify: what `confide run` does, without starting Python anew."""

    async def work() -> RunOutcome:
        async with httpx2.AsyncClient(timeout=60, trust_env=False) as http:
            client = AgentClient(
                agent.url, roots=place.engine.roots(), http=http,
                clock=SystemClock(), entropy=SystemEntropy(),
            )  # fmt: skip
            proven = await client.prove(expectation)
            return await client.run(
                proven, inputs, destination=place.root / "out", on_progress=lambda _step: None
            )

    outcome = asyncio.run(work())
    if outcome.failure is not None or b"done" not in outcome.stdout:
        raise RuntimeError("a run of the benchmark did not verify") from outcome.failure
    return outcome


def _receipt(place: Place, agent: Server, expectation: Expectation) -> Iterator[Row]:
    path = place.root / "calls"
    path.write_text(str(_CALLS))
    given = InputFile("calls", path, path.stat().st_size)
    outcome = _run(place, agent, expectation, (given,))
    if outcome.verified is None or len(outcome.receipt.inferences) != _CALLS:
        raise RuntimeError("the run did not make its calls")
    receipt, roots = place.root / "receipt.json", place.root / "roots.json"
    receipt.write_bytes(outcome.receipt.encode())
    roots.write_bytes(encode_roots_file(place.engine.roots()))
    found = [_verify(receipt, roots) for _ in range(7)]
    spent = statistics.median(ms for ms, _ in found)
    peak = max(peak for _, peak in found) / MB
    name = f"verify a run receipt offline, {_CALLS} model calls"
    yield row(f"{name}, fresh process", spent, "ms", budget="<= 300", met=spent <= 300)
    yield row(f"{name}: peak memory", peak, "MB", budget="<= 100", met=peak <= 100)


def _verify(receipt: Path, roots: Path) -> tuple[float, int]:
    words = [sys.executable, "-m", "bench.verify_once", str(receipt), str(roots)]
    said = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    return float(said["ms"]), int(said["bytes"])
