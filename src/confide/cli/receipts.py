"""`confide receipts`: the receipts that this user's clients keep (docs/protocols/client.md §5).

Contacts nobody. What is listed was verified when it was kept; `verify` does it again, from what is
kept alone, under roots and an Expectation that the caller names.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from confide.adapters.clock import SystemClock
from confide.adapters.files import write_atomically
from confide.adapters.receipt_db import find_rows, list_rows, load_file
from confide.cli import exits
from confide.cli.expectation_files import read_expectation
from confide.cli.places import Places, read_bounded, read_moment
from confide.cli.screen import Screen, fields, printable, simulated_line
from confide.errors import ConfigurationError, FormatError, Rejected
from confide.expectation import parse_expectation
from confide.receipts.inference import parse_inference_statement
from confide.receipts.inference_file import parse_inference_file, verify_inference_file
from confide.trust.roots import VENDOR_ROOTS, parse_roots_file
from confide.wire.keyset import format_time

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from confide.adapters.receipt_db import ReceiptRow
    from confide.expectation import Expectation
    from confide.receipts.inference_file import InferenceFile
    from confide.trust.roots import Roots
    from confide.wire.json import JsonValue

app = typer.Typer(no_args_is_help=True, add_completion=False)

Store = Annotated[
    Path | None, typer.Option("--store", help="The file of receipts, instead of your own.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Which = Annotated[str, typer.Argument(metavar="ID", help="A receipt: its id, or how that begins.")]
_EVERYTHING = 1 << 31


@app.callback()
def receipts() -> None:
    """List, show, verify and export the receipts that your clients keep."""


@app.command("list")
def list_(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """List the newest receipts."""
    screen = Screen.of(ctx, as_json=as_json)
    rows = list_rows(_path(store), limit=limit)
    table = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        tokens = "" if row.output_tokens is None else f"{row.input_tokens}+{row.output_tokens}"
        cells = (row.taken_at, row.id, row.path, row.model, str(row.status), tokens, row.url)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    screen.show(table if rows else Text("no receipts are kept"))
    screen.event("result", {"receipts": [_row_document(row) for row in rows]})


@app.command()
def show(ctx: typer.Context, receipt: Which, store: Store = None, as_json: AsJson = False) -> None:
    """Show what is kept about one answer. Nothing is verified again."""
    screen = Screen.of(ctx, as_json=as_json)
    path = _path(store)
    row = _one(path, receipt)
    file = load_file(path, row.id)
    document = _row_document(row) | _file_document(file)
    screen.show(fields([(name, printable(str(value))) for name, value in document.items()]))
    screen.event("result", document)


@app.command()
def export(
    ctx: typer.Context,
    receipt: Which,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the file goes.")],
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Write one receipt as a file that anybody can verify offline."""
    screen = Screen.of(ctx, as_json=as_json)
    path = _path(store)
    row = _one(path, receipt)
    raw = load_file(path, row.id).encode()
    write_atomically(output, raw, mode=0o644)
    screen.show(fields([("receipt", row.id), ("file", str(output)), ("bytes", str(len(raw)))]))
    screen.event("result", {"id": row.id, "file": str(output), "bytes": len(raw)})


@app.command()
def verify(
    ctx: typer.Context,
    receipt: Annotated[
        str, typer.Argument(metavar="ID|FILE", help="A receipt that is kept, or an exported file.")
    ] = "",
    everything: Annotated[bool, typer.Option("--all", help="Every receipt that is kept.")] = False,
    simulated_roots: Annotated[
        Path | None, typer.Option(help="Roots file of a SIMULATED platform. For testing.")
    ] = None,
    expectation: Annotated[
        Path | None, typer.Option(help="The Expectation that it must be about.")
    ] = None,
    at: Annotated[
        str, typer.Option(help="Time of the proof: `kept` (when it was made), `now` or UTC.")
    ] = "kept",
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Verify receipts again, offline: the node, its keys, and what was answered.

    Exit codes: 0 accepted, 10 rejected, 30 malformed.
    """
    screen = Screen.of(ctx, as_json=as_json)
    if everything == bool(receipt):
        raise ConfigurationError("name one receipt, or --all")
    judge = _Judge(
        VENDOR_ROOTS
        if simulated_roots is None
        else parse_roots_file(read_bounded(simulated_roots, "roots file")),
        None if expectation is None else read_expectation(expectation),
        at,
    )
    found = _all(_path(store)) if everything else [_read(_path(store), receipt)]
    code = exits.ACCEPTED
    for name, load in found:
        code = max(code, judge.show(screen, name, load))
    screen.show(*exits.advice_lines(judge.advice))
    screen.event("result", {"verified": len(found), "exit": code})
    if code:
        raise typer.Exit(code)


class _Judge:
    def __init__(self, roots: Roots, wanted: Expectation | None, at: str) -> None:
        self._roots = roots
        self._wanted = wanted
        # What to do, each thing once, however many receipts it is about.
        self.advice: dict[str, None] = {}
        self._at: datetime | None = None
        if at != "kept":
            self._at = SystemClock().now() if at == "now" else read_moment(at)

    def show(self, screen: Screen, name: str, load: Callable[[], InferenceFile]) -> int:
        """Load one, verify it and show it; return its exit code."""
        try:
            file = load()
            verified = verify_inference_file(
                file,
                roots=self._roots,
                now=self._at or file.proven_at,
                expectation=self._wanted,
            )
        except (Rejected, FormatError) as error:
            problem = exits.problem_of(error)
            self.advice |= dict.fromkeys(problem.advice)
            screen.show(
                Text.assemble((" ✗ ", "red"), printable(name), f"  {problem.message}"),
                *exits.finding_lines(problem.findings),
            )
            screen.event("receipt", {"id": name, "accepted": False, **problem.document()})
            return problem.code
        statement = verified.inference.statement
        parts = [
            Text.assemble((" ✓ ", "green"), printable(name), f"  {printable(statement.model.name)}")
        ]
        screen.show(*([simulated_line()] if verified.simulated else []), *parts)
        claims: list[JsonValue] = [
            {"name": claim.name, "status": claim.status.value, "value": claim.value}
            for claim in verified.node.result.claims
        ]
        members: dict[str, JsonValue] = {
            "id": name, "accepted": True, "simulated": verified.simulated, "claims": claims
        }  # fmt: skip
        screen.event("receipt", members)
        return exits.ACCEPTED


def _path(store: Path | None) -> Path:
    return store or Places.here().paths.receipts


def _one(path: Path, prefix: str) -> ReceiptRow:
    rows = find_rows(path, prefix)
    exact = [row for row in rows if row.id == prefix]
    if len(rows) != 1 and not exact:
        many = "several receipts begin" if rows else "no receipt begins"
        raise ConfigurationError(f"{many} with {printable(prefix)}")
    return exact[0] if exact else rows[0]


def _read(store: Path, name: str) -> tuple[str, Callable[[], InferenceFile]]:
    if Path(name).is_file():
        file = parse_inference_file(read_bounded(Path(name), "receipt"))
        return parse_inference_statement(file.envelope.payload).id, lambda: file
    row = _one(store, name)
    return row.id, partial(load_file, store, row.id)


def _all(store: Path) -> list[tuple[str, Callable[[], InferenceFile]]]:
    # Each is loaded in its turn: there may be very many, and a damaged one is one.
    rows = list_rows(store, limit=_EVERYTHING)
    return [(row.id, partial(load_file, store, row.id)) for row in rows]


def _row_document(row: ReceiptRow) -> dict[str, JsonValue]:
    return {
        "id": row.id,
        "taken_at": row.taken_at,
        "node": row.url,
        "path": row.path,
        "model": row.model,
        "status": row.status,
        "finish": row.finish,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "roots": row.roots,
    }


def _file_document(file: InferenceFile) -> dict[str, JsonValue]:
    name: JsonValue = None
    with suppress(FormatError):
        name = parse_expectation(file.expectation).name
    return {
        "request": file.facts.request.hex(),
        "response": file.facts.response.hex(),
        "sealed_request": file.facts.sealed_request.hex(),
        "expectation": file.expectation_digest.hex(),
        "expectation_name": name,
        "evidence": file.evidence.digest.hex(),
        "proven_at": format_time(file.proven_at),
    }
