"""The last screen of a replay, whoever executed it. training-record.md 7.7 and 7.13."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.text import Text

from confide.cli.screen import fields, heading, simulated_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.cli.screen import Screen
    from confide.cli.training_case import RecordCase
    from confide.training.draw import Sample
    from confide.training.replay import Tolerance
    from confide.training.replay_verify import VerifiedResult
    from confide.wire.json import JsonValue

__all__ = [
    "WITHIN",
    "Draw",
    "Executed",
    "executor_rows",
    "listed",
    "made_again",
    "not_made",
    "show_replay",
]


# What the probability leaves out, with a tolerance: docs/protocols/training-record.md 7.4.
WITHIN: Final = (
    "That holds for steps that are false by more than the tolerance: states were not compared, and "
    "nothing shows what the last step left."
)


@dataclass(frozen=True, slots=True)
class Draw:
    """What the steps were drawn from, beside the head: a challenge, and perhaps a log's note."""

    challenge: bytes
    note: bytes | None


@dataclass(frozen=True, slots=True)
class Executed:
    """A replay in which every step was what was recorded; `signed` is the word of another node."""

    sample: Sample
    executed: int
    states: int
    tolerance: Tolerance | None
    made: Mapping[str, bool] | None
    signed: VerifiedResult | None = None

    @property
    def mode(self) -> str:
        """How it was compared, in words."""
        if self.tolerance is None:
            return "exact: bit for bit"
        return f"within {self.tolerance.rel:g}"


def show_replay(screen: Screen, case: RecordCase, found: Executed, draw: Draw) -> None:
    """Show what was executed, where, and with which probability something was missed."""
    sample, missed = found.sample, float(found.sample.missed)
    simulated = case.simulated or (found.signed is not None and found.signed.simulated)
    source = "from the challenge, which whoever replayed chose"
    if draw.note:
        source += ", and a log checkpoint newer than the record"
    rows = [
        ("drawn", f"{len(sample.drawn)} of {sample.steps}: {listed(sample.drawn)}"),
        ("executed", f"{found.executed} steps, {found.states} states compared"),
        ("mode", found.mode),
        ("made again", made_again(found.made)),
        ("beacon", f"{sample.beacon.hex()}, {source}"),
        ("challenge", draw.challenge.hex()),
    ]
    screen.show(
        Text.assemble(
            ("ACCEPTED", "bold green"),
            (" (SIMULATED)" if simulated else "", "bold yellow"),
            "  every executed step is what was recorded",
        ),
        *([simulated_line()] if simulated else []),
        heading("Replay"),
        fields([*rows, *executor_rows(found.signed)]),
        heading("Not proven"),
        Text(
            f"  If {float(sample.fraction):.2%} of the steps were false, this replay would have "
            f"missed them with probability {missed:.2%} at most."
        ),
        *([] if found.tolerance is None else [Text(f"  {WITHIN}")]),
        *(Text(f"  {text}") for text in not_made(found.made)),
    )
    screen.event("result", _document(case, found, draw, simulated=simulated))


def made_again(made: Mapping[str, bool] | None) -> str:
    """Return what came out of the last checkpoint again, and whether it is what was recorded."""
    if made is None:
        return "nothing: the last checkpoint was not there"
    said = (name if same else f"{name} (ANOTHER)" for name, same in sorted(made.items()))
    return f"{', '.join(said)}, from the last checkpoint"


def not_made(made: Mapping[str, bool] | None) -> list[str]:
    """Return what is not proven of the weights and metrics that the record names."""
    left = [name for name in ("merged", "evaluation") if name not in (made or {})]
    told = {
        "merged": "That the weights which can be served are those of the last state: they were not "
        "made again.",
        "evaluation": "That the models were evaluated rightly: it was not done again.",
    }
    return [told[name] for name in left]


def executor_rows(signed: VerifiedResult | None) -> list[tuple[str, str]]:
    """Return who executed: this machine, or a node as it was proven."""
    if signed is None:
        return [("executed by", "this machine: nobody else has reason to believe it")]
    said = signed.result
    where = "a machine that trained" if said.same_machine else "no machine that trained"
    return [
        ("executed by", f"an attested node, {where}: {said.machine.hex()}"),
        ("software", said.software.hex()),
        ("signed", f"{signed.digest.hex()} at {said.at:%Y-%m-%d %H:%M:%S} UTC, quoted after"),
    ]


def _document(
    case: RecordCase, found: Executed, draw: Draw, *, simulated: bool
) -> dict[str, JsonValue]:
    sample, signed = found.sample, found.signed
    executor: dict[str, JsonValue] | None = None
    if signed is not None:
        executor = {
            "result": signed.digest.hex(),
            "expectation": signed.expectation.digest.hex(),
            "software": signed.result.software.hex(),
            "machine": signed.result.machine.hex(),
            "same_machine": signed.result.same_machine,
        }
    return {
        "verdict": "accepted",
        "simulated": simulated,
        "record": case.file.record.digest.hex(),
        "beacon": sample.beacon.hex(),
        "challenge": draw.challenge.hex(),
        "checkpoint": None if draw.note is None else draw.note.decode(),
        "steps": sample.steps,
        "drawn": list(sample.drawn),
        "executed": found.executed,
        "states": found.states,
        "tolerance": None if found.tolerance is None else found.tolerance.rel,
        "made": None if found.made is None else dict(found.made),
        "fraction": float(sample.fraction),
        "missed": float(sample.missed),
        "executor": executor,
    }


def listed(steps: tuple[int, ...]) -> str:
    """Return the first of `steps`, and how many more there are."""
    shown = ", ".join(str(step) for step in steps[:12])
    return shown if len(steps) <= 12 else f"{shown} and {len(steps) - 12} more"
