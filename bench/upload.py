"""A large file of rows on its way to a training node: read and committed to, sealed, sent, read
again and kept, end to end, with the memory that it takes.

The node is `confide node train` in its own process, SIMULATED hardware. The peer is the same file
sent as what nobody reads (`fine-tune-state`), sealed and kept in the same way.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
from bench.nodes import MODEL
from bench.rows import MB, Row, cpu_seconds, row

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.software import running_kernel
from confide.adapters.upstream_serve import BUNDLED_WEIGHTS
from confide.client.expect import inference_expectation_for
from confide.client.held import HeldNode, TrustPolicy
from confide.client.local import local_reference
from confide.client.train_folder import OwnedFile
from confide.client.train_node import TrainingNode
from confide.client.train_upload import (
    PartSizes,
    commit_file,
    find_upload,
    send_state,
    send_upload,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.nodes import Place, Server

_SALT = bytes(range(32))
_OWNER = "an-owner-of-rows-in-a-bench"
_SMALL, _LARGE = 32 * MB, 256 * MB
_TEXT = 'She asked: "When does it open?"\nAt nine, and it closes at six. '


def upload_rows(place: Place) -> Iterator[Row]:
    """Yield the rows of this group."""
    node = place.start(
        "-m", "confide", "node", "train", "--port", "PORT",
        "--model", MODEL, "--weights", str(BUNDLED_WEIGHTS), "--threads", "1",
    )  # fmt: skip
    small, large = (_write(place.root / f"{size}.jsonl", size) for size in (_SMALL, _LARGE))
    yield from asyncio.run(_measure(place, node, small, large))


def _write(path: Path, size: int) -> Path:
    """Write rows of about 1,000 bytes, all different."""
    with path.open("wb") as file:
        number = 0
        while file.tell() < size:
            question = {"role": "user", "content": f"{number}: {_TEXT * 7}"}
            answer = {"role": "assistant", "content": _TEXT * 7}
            file.write(json.dumps({"messages": [question, answer]}).encode() + b"\n")
            number += 1
    return path


async def _measure(place: Place, server: Server, small: Path, large: Path) -> list[Row]:
    reference = local_reference(
        seed=place.engine.seed(), roots=place.engine.roots(), software=place.software,
        kernel=running_kernel(), model=MODEL, weights=BUNDLED_WEIGHTS, now=SystemClock().now(),
    )  # fmt: skip
    trust = TrustPolicy(inference_expectation_for(reference), place.engine.roots())
    async with httpx2.AsyncClient(timeout=600, trust_env=False) as http:
        held = HeldNode(server.url, trust, http, SystemClock(), SystemEntropy())
        node = TrainingNode(held, token=_OWNER)
        await _upload(node, small)
        before = _peaks(server.pid)
        start, spent, there = time.perf_counter(), time.process_time(), cpu_seconds(server.pid)
        await _upload(node, large)
        whole = time.perf_counter() - start
        spent, there = time.process_time() - spent, cpu_seconds(server.pid) - there
        after = _peaks(server.pid)
        start, unread_there = time.perf_counter(), cpu_seconds(server.pid)
        await send_state(node, large, entropy=SystemEntropy())
        unread, unread_there = time.perf_counter() - start, cpu_seconds(server.pid) - unread_there
    size = _LARGE / MB
    name = f"{size:,.0f} MB of rows of 1,000 bytes"
    flat = f"{_LARGE // MB} MB beside after {_SMALL // MB} MB"
    return [
        row(
            f"{name}: committed to, sent, committed to again and kept, beside sent unread",
            size / whole, "MB/s", peer=size / unread,
        ),
        row(f"{name}: processor time of the client", spent / size * 1000, "ms/MB"),
        row(
            f"{name}: processor time of the node, beside that of the same unread",
            there / size * 1000, "ms/MB", peer=unread_there / size * 1000,
        ),
        *(
            row(
                f"memory: highest of the {who} after {flat}", high / MB, "MB", peer=low / MB,
                budget="ratio ≤ 1.1", met=high <= 1.1 * low,
            )
            for who, low, high in zip(("client", "training node"), before, after, strict=True)
        ),
    ]  # fmt: skip


async def _upload(node: TrainingNode, path: Path) -> None:
    """Commit and send in parts: what `confide train` does with a large file."""
    entropy = SystemEntropy()
    size, commitment = commit_file(path, _SALT, lambda _bytes, _rows: None)
    owned = OwnedFile(path, size, commitment)
    upload = await find_upload(node, owned, _SALT)
    await send_upload(
        node, owned, upload, sizes=PartSizes(), entropy=entropy, on_sent=lambda _sent: None
    )


def _peaks(pid: int) -> tuple[int, int]:
    """Return the highest resident set so far of this process and of `pid` (proc(5), VmHWM)."""
    ours, theirs = (
        next(
            line for line in Path(f"/proc/{who}/status").read_text().splitlines() if "VmHWM" in line
        )
        for who in ("self", pid)
    )
    return int(ours.split()[1]) * 1024, int(theirs.split()[1]) * 1024
