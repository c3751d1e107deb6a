"""`confide log add`: put a receipt into the log, and keep the proof. log.md §1.5, §9.2."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.files import write_atomically
from confide.cli.places import read_bounded
from confide.cli.screen import Screen, fields
from confide.errors import ConfigurationError, FormatError, RemoteProtocolError, Unavailable
from confide.receipts.file import parse_receipt_file
from confide.tlog.leaf import LeafOpening, PendingEntry, parse_pending
from confide.wire.tlog_policy import LogPolicy, parse_log_policy

if TYPE_CHECKING:
    from confide.adapters.log_entry import Logged

__all__ = ["app"]

app = typer.Typer()
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 1.0


@app.command()
def add(
    ctx: typer.Context,
    receipt: Annotated[Path, typer.Argument(metavar="RECEIPT", help="Receipt file.")],
    log: Annotated[str, typer.Option(metavar="URL", help="Where the log is served.")],
    policy: Annotated[Path, typer.Option(help="Policy file: logs, witnesses, quorum.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The proof. Default: RECEIPT.tlog-proof."),
    ] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the witnesses.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Log a receipt, and keep the proof that makes it final.

    The log learns 32 random-looking bytes. Until the proof is there, RECEIPT.tlog-pending holds
    what opens them: run the same command again. Exit codes: 0 final, 10 the log's proof does
    not hold, 20 pending, 30 not a receipt, 2 usage.
    """
    screen = Screen.of(ctx, as_json=as_json)
    digest = parse_receipt_file(read_bounded(receipt, "receipt")).run.digest
    proof = output or receipt.with_name(f"{receipt.name}.tlog-proof")
    if proof.exists():
        raise ConfigurationError(f"{proof} is there already: confide verify --log-proof reads it")
    kept = receipt.with_name(f"{receipt.name}.tlog-pending")
    believed = _policy(policy)
    entry = _entry(kept, digest)
    # Before the log hears of it: who loses the blinding can never open this entry.
    write_atomically(kept, entry.encode())
    found = asyncio.run(_settle(log, entry, believed, kept, wait))
    if isinstance(found, PendingEntry):
        raise Unavailable(
            f"pending: the log or its witnesses did not answer within {wait:g} s. {kept} keeps "
            "what opens the entry; run the same command again"
        )
    write_atomically(proof, found.proof.encode())
    kept.unlink()
    head = found.inclusion.head
    seen = ", ".join(each.witness for each in head.cosigned) or "none"
    moment = "nobody vouches for a time" if head.logged_by is None else f"{head.logged_by:%FT%TZ}"
    rows = [
        ("log", head.origin),
        ("index", str(found.inclusion.index)),
        ("logged by", moment),
        ("witnesses", seen),
        ("proof", str(proof)),
    ]
    screen.show(Text.assemble(("✓ final", "green")), fields(rows))
    screen.event(
        "result",
        {
            "log": head.origin,
            "index": found.inclusion.index,
            "size": head.size,
            "witnesses": [each.witness for each in head.cosigned],
            "proof": str(proof),
        },
    )


def _policy(path: Path) -> LogPolicy:
    return parse_log_policy(read_bounded(path, "policy"))


def _entry(kept: Path, digest: bytes) -> PendingEntry:
    if not kept.exists():
        return PendingEntry(LeafOpening(SystemEntropy().token(32), digest))
    entry = parse_pending(read_bounded(kept, "pending entry"))
    if entry.opening.digest != digest:
        raise ConfigurationError(f"{kept} is about another receipt")
    return entry


async def _settle(
    url: str, entry: PendingEntry, policy: LogPolicy, kept: Path, wait: float
) -> Logged | PendingEntry:
    # An HTTP client, which no other verb of the log's needs before it runs.
    from confide.adapters.log_entry import settle_entry  # noqa: PLC0415
    from confide.adapters.log_http import HttpLog, log_client  # noqa: PLC0415

    clock, pause, waited = SystemClock(), _FIRST_WAIT, 0.0
    async with log_client() as client:
        log = HttpLog(client, url)
        while True:
            try:
                found = await settle_entry(log, entry, policy=policy, now=clock.now())
            except (FormatError, RemoteProtocolError) as error:
                raise Unavailable(f"the log answered something else: {error}") from error
            if not isinstance(found, PendingEntry) or waited >= wait:
                return found
            if found != entry:
                write_atomically(kept, found.encode())
                entry = found
            await asyncio.sleep(pause)
            waited += pause
            pause = min(2 * pause, _LONGEST_WAIT)
