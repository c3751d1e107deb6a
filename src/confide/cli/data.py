"""`confide data`: rows of training data, the commitment to them, proofs of one row. dataset.md."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from confide.adapters.files import write_atomically
from confide.cli.data_files import (
    beside,
    draw_salt,
    pieces_of,
    read_salt,
    require_new,
    write_salt,
)
from confide.cli.places import read_bounded, read_start
from confide.cli.screen import Screen, fields, heading, human_bytes, printable
from confide.errors import ConfigurationError
from confide.training.dataset import (
    DatasetTree,
    RowSalts,
    parse_commitment,
    require_commitment,
)
from confide.training.inclusion import (
    MAX_PROOF_BYTES,
    DatasetProof,
    Opening,
    PathRecorder,
    parse_dataset_proof,
    verify_row,
)
from confide.training.rows import RowError, RowReader, require_rows
from confide.wire.json import is_hex, jcs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.training.dataset import Commitment
    from confide.training.rows import Row
    from confide.wire.json import JsonValue

__all__ = ["app"]

app = typer.Typer(
    help="Rows of training data: check, commit, prove, verify.",
    no_args_is_help=True,
    add_completion=False,
)

Rows = Annotated[Path, typer.Argument(metavar="FILE", help="The rows: JSON lines.")]
Salt = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File of the salt; default: FILE.salt.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]

# More of them help nobody to mend a file: errors that differ, and lines that are named for one.
_MAX_ERRORS: Final = 20
_MAX_LINES: Final = 8
_UNCHECKED: Final = (
    "Not looked at: what the rows say, whose they are, equal rows, and how many tokens they have "
    "(rows beyond the sequence length of a recipe are found when training begins)."
)
_KEEP: Final = (
    "Keep the salt as secret as the rows: with it and the commitment, rows can be guessed. Without "
    "it no row can be proven, and this commitment cannot be made again."
)
_PUBLIC: Final = (
    "The commitment tells the kind and the number of rows, and nothing else about them."
)
_OPEN: Final = (
    "The proof holds this row in plain text and the salt of this row. Whoever gets it reads this "
    "row, and can guess no other."
)
_CLOSED: Final = "The proof holds no row. Only whoever has the row and the salt can compare."
_UNPROVEN: Final = (
    "Not proven: that a model learnt from this row. A training record shows that, and names this "
    "commitment."
)


@dataclass(slots=True)
class _Fault:
    """What is wrong with one line or with many: the first, and some of the others."""

    first: RowError
    lines: list[int] = field(default_factory=list)
    more: int = 0

    def again(self, line: int) -> None:
        """Count another line with the same fault."""
        if len(self.lines) < _MAX_LINES:
            self.lines.append(line)
        else:
            self.more += 1

    def elsewhere(self) -> str:
        """Return on which other lines; nothing where there are none."""
        if not self.lines:
            return ""
        named = ", ".join(map(str, self.lines))
        more = f" and {self.more} more" if self.more else ""
        return f"the same on {'line' if len(self.lines) == 1 else 'lines'} {named}{more}"


@dataclass(slots=True)
class _Survey:
    """What one pass over a file sees."""

    kind: str = ""
    rows: int = 0
    size: int = 0
    longest: tuple[int, int] = (0, 0)
    # Of lines whose fault is none of those kept.
    unnamed: int = 0
    faults: dict[tuple[str, str], _Fault] = field(default_factory=dict)

    def take(self, found: Row | RowError) -> None:
        """Count one line."""
        if isinstance(found, RowError):
            self._take_fault(found)
            return
        self.kind = self.kind or found.kind
        self.rows += 1
        self.size += found.size
        self.longest = max(self.longest, (found.size, -found.index))

    def require_good(self) -> None:
        """Raise the first error, with the others as its notes."""
        if not self.faults:
            return
        worst, *others = self.faults.values()
        if same := worst.elsewhere():
            worst.first.add_note(same)
        for each in others:
            same = each.elsewhere()
            worst.first.add_note(f"{each.first}; {same}" if same else str(each.first))
        if self.unnamed:
            worst.first.add_note(f"{self.unnamed} more lines are refused")
        worst.first.add_note(f"{self.rows} rows are good")
        raise worst.first

    def _take_fault(self, found: RowError) -> None:
        kind = (found.path, str(found).partition(": ")[2])
        if kind in self.faults:
            self.faults[kind].again(found.line)
        elif len(self.faults) < _MAX_ERRORS:
            self.faults[kind] = _Fault(found)
        else:
            self.unnamed += 1


@app.command()
def check(ctx: typer.Context, file: Rows, as_json: Json = False) -> None:
    """Read every row; name the lines that are none. Nothing is written or sent.

    Exit codes: 0 every line is a row, 30 some are not.
    """
    screen = Screen.of(ctx, as_json=as_json)
    survey = _Survey()
    for found in RowReader().read(pieces_of(file)):
        survey.take(found)
    survey.require_good()
    size, at = survey.longest
    longest = f"{human_bytes(size)} (line {1 - at})"
    screen.show(
        Text.assemble(("✓ every line is a row", "green")),
        fields(
            [
                ("kind", survey.kind),
                ("rows", f"{survey.rows:,}"),
                ("bytes", human_bytes(survey.size)),
                ("longest", longest),
            ]
        ),
        Text(_UNCHECKED, style="dim"),
    )
    screen.event(
        "result",
        {
            "kind": survey.kind,
            "rows": survey.rows,
            "bytes": survey.size,
            "longest": {"line": 1 - at, "bytes": size},
        },
    )


@app.command()
def commit(
    ctx: typer.Context,
    file: Rows,
    salt: Salt = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where it goes; default: FILE.commitment."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Commit to the rows and their order, under a salt that is drawn where there is none.

    Nothing is sent. A broken row refuses the file, and nothing is written.
    """
    screen = Screen.of(ctx, as_json=as_json)
    place, kept = output or beside(file, "commitment"), salt or beside(file, "salt")
    require_new(place)
    drawn = not kept.exists()
    secret = draw_salt() if drawn else read_salt(kept)
    tree = DatasetTree(RowSalts(secret))
    for row in _good_rows(file):
        tree.add(row)
    commitment = tree.commitment()
    if drawn:
        # Before the commitment: one whose salt is lost proves nothing.
        write_salt(kept, secret)
    write_atomically(place, commitment.encode() + b"\n", mode=0o644)
    screen.show(
        fields(
            [
                ("data set", commitment.digest.hex()),
                ("rows", f"{commitment.rows:,}, {commitment.kind}"),
                ("commitment", f"{place}  public"),
                ("salt", f"{kept}  {'drawn, ' if drawn else ''}secret"),
            ]
        ),
        Text(_PUBLIC, style="dim"),
        Text(_KEEP, style="dim"),
    )
    screen.event(
        "result",
        {
            **_document(commitment),
            "file": str(place),
            "salt": str(kept),
            "drawn": drawn,
        },
    )


def _good_rows(file: Path) -> Iterator[Row]:
    return require_rows(RowReader().read(pieces_of(file)))


def _document(commitment: Commitment) -> dict[str, JsonValue]:
    return {
        "commitment": commitment.digest.hex(),
        "kind": commitment.kind,
        "rows": commitment.rows,
        "root": commitment.root.hex(),
    }


@app.command()
def prove(
    ctx: typer.Context,
    file: Rows,
    row: Annotated[int, typer.Argument(metavar="ROW", min=1, help="Number of the line, from 1.")],
    salt: Salt = None,
    commitment: Annotated[
        str, typer.Option(metavar="FILE|HEX", help="Refuse when the rows are no longer these.")
    ] = "",
    closed: Annotated[
        bool, typer.Option("--closed", help="Without the row: that something stands there.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where it goes; default: FILE.row-ROW.proof."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove that one row is in the data set, to whoever knows its commitment."""
    screen = Screen.of(ctx, as_json=as_json)
    place = output or beside(file, f"row-{row}.proof")
    require_new(place)
    secret = read_salt(salt or beside(file, "salt"))
    proof = _proof_of(file, row - 1, RowSalts(secret), closed=closed)
    if commitment:
        require_commitment(proof.commitment, _digest_of(commitment))
    write_atomically(place, proof.encode() + b"\n", mode=0o600)
    screen.show(
        fields(
            [
                ("row", f"{row:,} of {proof.commitment.rows:,}, {proof.commitment.kind}"),
                ("data set", proof.commitment.digest.hex()),
                ("proof", str(place)),
            ]
        ),
        Text(_CLOSED if closed else _OPEN, style="dim"),
    )
    document: dict[str, JsonValue] = {"row": row, "file": str(place), "opened": not closed}
    screen.event("result", {**_document(proof.commitment), **document})


def _proof_of(file: Path, index: int, salts: RowSalts, *, closed: bool) -> DatasetProof:
    path = PathRecorder(index)
    tree = DatasetTree(salts, path=path)
    opening = None
    for row in _good_rows(file):
        tree.add(row)
        if row.index == index and not closed:
            opening = Opening(salts.at(index), row.value)
    commitment = tree.commitment()
    if index >= commitment.rows:
        raise ConfigurationError(f"the file has {commitment.rows} rows")
    return DatasetProof(commitment, index, path.leaf, path.path(), opening)


def _digest_of(text: str) -> bytes:
    """Return the digest that an option gives, or that of the commitment file that it names."""
    if is_hex(text, 32):
        return bytes.fromhex(text)
    return parse_commitment(read_bounded(Path(text), "commitment")).digest


@app.command()
def verify(
    ctx: typer.Context,
    proof: Annotated[Path, typer.Argument(metavar="PROOF", help="The proof of one row.")],
    commitment: Annotated[
        str,
        typer.Option(metavar="FILE|HEX", help="The data set: its commitment, or the digest of it."),
    ],
    as_json: Json = False,
) -> None:
    """Verify offline that a row stands in a data set, and show it.

    Exit codes: 0 it does, 10 the proof does not show it, 30 it is no proof.
    """
    screen = Screen.of(ctx, as_json=as_json)
    found = parse_dataset_proof(read_start(proof, "proof", MAX_PROOF_BYTES))
    verify_row(found, commitment=_digest_of(commitment))
    opening, public = found.opening, found.commitment
    place = f"{found.index + 1:,} of {public.rows:,}, {public.kind}"
    rows = [("row", place), ("data set", public.digest.hex()), ("leaf", found.leaf.hex())]
    record: str | None = None
    if opening is None:
        screen.show(Text.assemble(("✓ this leaf stands there", "green")), fields(rows))
        screen.show(Text("Not shown: what is in the row.", style="dim"))
    else:
        record = hashlib.sha256(jcs(opening.row)).hexdigest()
        screen.show(Text.assemble(("✓ this row stands there", "green")), fields(rows))
        text = json.dumps(opening.row, ensure_ascii=False)
        screen.show(heading("the row"), Text(f"  {printable(text, max_chars=2000)}"))
    screen.show(Text(f"\n{_UNPROVEN}", style="dim"))
    screen.event(
        "result",
        {
            **_document(public),
            "row": found.index + 1,
            "leaf": found.leaf.hex(),
            "record": record,
            "value": None if opening is None else opening.row,
        },
    )
