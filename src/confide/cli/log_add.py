"""`confide log add`: put a receipt into the log, and keep the proof. log.md §1.5, §9.2."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from confide.adapters.files import write_atomically
from confide.cli.places import Places, read_bounded
from confide.cli.receipt_log import log_document
from confide.cli.screen import Screen, fields
from confide.errors import ConfigurationError, Unavailable
from confide.receipts.file import parse_receipt_file

if TYPE_CHECKING:
    from confide.client.finality import LogChoice
    from confide.receipts.file import ReceiptFile
    from confide.tlog.verify import VerifiedInclusion
    from confide.training.record_file import RecordFile
    from confide.wire.tlog_proof import TlogProof

__all__ = ["app"]

app = typer.Typer()
# How long the local log may take to come up.
_LOG_SECONDS = 60.0


@app.command()
def add(
    ctx: typer.Context,
    receipt: Annotated[
        Path, typer.Argument(metavar="RECEIPT", help="Receipt file, or training record.")
    ],
    log: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where the log is served. Default: the local one."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy file of --log: logs, witnesses, quorum.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The proof, in a file. Default: inside RECEIPT."),
    ] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the witnesses.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Log a receipt or a training record, and keep the proof that makes it final.

    The log learns 32 random-looking bytes. Until the proof is there, RECEIPT.tlog-pending holds
    what opens them: run the same command again. Exit codes: 0 final, 10 the log's proof does
    not hold, 20 pending, 30 not a receipt, 2 usage.
    """
    # An HTTP client, which no other verb of the log's needs before it runs.
    from confide.adapters.log_entry import Waiting  # noqa: PLC0415
    from confide.client.finality import finalise, pending_path, store_inside  # noqa: PLC0415

    screen = Screen.of(ctx, as_json=as_json)
    file = _parse(read_bounded(receipt, "receipt"))
    if output is None and file.log is not None:
        raise ConfigurationError(
            f"{receipt} holds a proof already: confide verify --log-policy checks it"
        )
    if output is not None and output.exists():
        raise ConfigurationError(f"{output} is there already: confide verify --log-proof reads it")
    places = Places.here()

    def store_beside(proof: TlogProof) -> None:
        write_atomically(output or receipt, proof.encode(), mode=0o644)

    found = asyncio.run(
        finalise(
            receipt,
            file,
            _choice(places, log, policy),
            clock=places.clock,
            entropy=places.entropy,
            wait_seconds=wait,
            store=store_inside(receipt, file) if output is None else store_beside,
        )
    )
    if isinstance(found, Waiting):
        raise Unavailable(
            f"pending: {found.why}. {pending_path(receipt)} keeps what opens the entry; run the "
            "same command again"
        )
    _show(screen, found.inclusion, output or receipt)


def _parse(raw: bytes) -> ReceiptFile | RecordFile:
    if b'"confide/training-record/v1"' not in raw:
        return parse_receipt_file(raw)
    from confide.training.record_file import parse_record_file  # noqa: PLC0415 - seldom asked for

    return parse_record_file(raw)


def _choice(places: Places, log: str | None, policy: Path | None) -> LogChoice:
    from confide.cli.localnodes import IDLE_SECONDS, local_engine  # noqa: PLC0415 - as above
    from confide.cli.log_choice import local_choice, read_choice  # noqa: PLC0415

    if log is not None and policy is not None:
        return read_choice(log, policy)
    if log is not None or policy is not None:
        raise ConfigurationError("--log and --policy go together: where, and who counts")
    engine = local_engine(places)
    node = engine.up_log(idle_seconds=IDLE_SECONDS, within_seconds=_LOG_SECONDS)
    return local_choice(engine, node.url)


def _show(screen: Screen, found: VerifiedInclusion, proof: Path) -> None:
    head = found.head
    seen = ", ".join(each.witness for each in head.cosigned) or "none"
    moment = "nobody vouches for a time" if head.logged_by is None else f"{head.logged_by:%FT%TZ}"
    rows = [
        ("log", head.origin),
        ("index", str(found.index)),
        ("logged by", moment),
        ("witnesses", seen),
        ("proof in", str(proof)),
    ]
    screen.show(Text.assemble(("✓ final", "green")), fields(rows))
    screen.event("result", {**log_document(found), "proof": str(proof)})
