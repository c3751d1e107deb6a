"""What a training record says, in rows for a screen. Decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from confide.cli.image_words import image_rows
from confide.cli.report import counted
from confide.cli.screen import printable, shortened
from confide.rats import Status
from confide.training.image_record import ImageRecord
from confide.training.limits import COARSER, LINKED
from confide.training.record_verify import VerifiedRecord

if TYPE_CHECKING:
    from confide.training.any_record import AnyRecord, AnyVerified
    from confide.training.record import TrainingRecord

__all__ = ["claims_table", "coarser", "made_rows", "nodes_line"]

_BOOTS = ("started", "restarted", "moved")
# From: docs/protocols/training.md 9.4, the names that matter most.
_TELLING = ("device", "isa", "threads", "deterministic", "libraries.torch", "python")


def coarser(said: AnyRecord) -> list[Text]:
    """Return what has to be said at once of an artefact-level record; nothing of another."""
    if not isinstance(said, ImageRecord):
        return []
    return [Text(f"  This training record is {COARSER}.", style="yellow")]


def claims_table(record: AnyVerified) -> Table:
    """Return what was proven of the training node that signed."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=17)
    table.add_column(overflow="fold")
    table.add_column(style="dim", no_wrap=True)
    for claim in record.node.result.claims:
        if claim.status is Status.PASS:
            name = "base-weights" if claim.name == "model-weights" else claim.name
            source = claim.source.replace("measured node software", "node")
            mark = Text.assemble(("    ✓ ", "green"), name)
            table.add_row(mark, Text(shortened(printable(claim.value))), Text(source))
    return table


def made_rows(said: AnyRecord, record: AnyVerified | None = None) -> list[tuple[str, str]]:
    """Return what was made, as `label, sentence`; what only a verified record shows with one."""
    if isinstance(said, ImageRecord):
        return [(label, printable(text)) for label, text in image_rows(said)]
    return _in_steps(said, record if isinstance(record, VerifiedRecord) else None)


def _in_steps(said: TrainingRecord, record: VerifiedRecord | None) -> list[tuple[str, str]]:
    pauses = sum(turn.kind == "paused" for turn in said.turns)
    boots = counted(sum(turn.kind in _BOOTS for turn in said.turns), "boot")
    if record is not None:
        boots += (
            f", on {counted(len(set(record.machines)), 'machine')}, each proven before it began"
        )
    seconds = (said.finished - said.started).total_seconds()
    rows = [
        ("steps", f"{said.steps} of {said.planned}, in {seconds:.0f} s by the node's clock"),
        ("boots", "; ".join([boots, *_moves(said), counted(pauses, "pause")])),
        ("environment", _environment(said)),
        ("outputs", ", ".join(sorted(said.outputs, reverse=True))),
    ]
    if said.privacy is not None:
        privacy = ", ".join(f"{name} {text}" for name, text in said.privacy.items())
        rows.append(("privacy", privacy))
    if record is not None:
        rows += [("nodes", nodes_line(record))] if record.seats else []
        rows.append(("evaluation", _evaluation(record)))
    return [(label, printable(text)) for label, text in rows]


def _moves(said: TrainingRecord) -> list[str]:
    """Return where the job went to another machine."""
    return [
        f"moved to another machine after step {turn.step}"
        for turn in said.turns
        if turn.kind == "moved"
    ]


def nodes_line(record: VerifiedRecord) -> str:
    """Return how many nodes had its ranks, what linked them, and where that ends."""
    seats = record.seats[-1]
    ranks = counted(record.record.plan.world, "rank")
    if len(seats) == 1:
        return f"1 node, {ranks}"
    return f"{len(seats)} nodes, {ranks}, {LINKED[seats[0].engine]}"


def _environment(said: TrainingRecord) -> str:
    """Return the part of it that decides whether two machines compute the same bits."""
    there = said.environment
    names = [name for name in _TELLING if name in there] or list(there)[: len(_TELLING)]
    told = ", ".join(f"{name.removeprefix('libraries.')} {there[name]}" for name in names)
    rest = len(there) - len(names)
    return told + (f", and {rest} more (--json)" if rest else "")


def _evaluation(record: VerifiedRecord) -> str:
    if record.evaluation is None:
        return "none: nothing is said of quality"
    better = record.evaluation[1].better
    word = "is better than" if better else "is NOT better than"
    return f"the tuned model {word} the base on the rows held out (metrics: the owner's log)"
