"""A client as a process of its own, so that a test can interrupt it as a person does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx2

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.client.agent import AgentClient, InputFile
from confide.expectation import parse_expectation
from confide.trust.roots import parse_roots_file


def main(plan_path: Path) -> None:
    """Do what the JSON file says: prove, run, receive."""
    plan = json.loads(plan_path.read_text())

    raw = Path(plan["expectation"]).read_bytes()
    roots = parse_roots_file(Path(plan["roots"]).read_bytes())

    async def work() -> None:
        async with httpx2.AsyncClient(timeout=90, trust_env=False) as http:
            client = AgentClient(
                plan["url"],
                roots=roots,
                http=http,
                clock=SystemClock(),
                entropy=SystemEntropy(),
            )
            proven = await client.prove(parse_expectation(raw))
            inputs = [InputFile(name, Path(path), size) for name, path, size in plan["inputs"]]
            await client.run(
                proven,
                inputs,
                destination=Path(plan["destination"]),
                on_progress=lambda _progress: None,
            )

    asyncio.run(work())
