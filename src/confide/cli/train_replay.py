"""`confide train replay`: drawn steps of a training, executed again. training-record.md §7."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from confide.cli.places import read_bounded
from confide.cli.replay_screen import Draw, Executed, show_replay
from confide.cli.screen import Screen
from confide.errors import ConfigurationError, Reason, TrainingRejected
from confide.rats import Finding, Status
from confide.training.draw import CHALLENGE_BYTES, Sample, draw_sample, replay_beacon
from confide.training.replay import Replay, Tolerance
from confide.training.replay_end import require_made

if TYPE_CHECKING:
    from confide.cli.replay_trainer import Materials, PreparedReplay
    from confide.cli.training_case import Judged, RecordCase
    from confide.training.audit import AuditedLog
    from confide.training.replay import VerifiedReplay

__all__ = ["replaying"]

replaying = typer.Typer()

_PERCENT: Final = re.compile(r"([0-9]{1,2}|100)(\.[0-9]{1,6})?\s?%\Z")
_CLAUSE: Final = "docs/protocols/training-record.md#7.1"


def read_percent(text: str, option: str) -> Fraction:
    """Return what `5%` or `0.1 %` means; `ConfigurationError` for anything else."""
    if not _PERCENT.match(text):
        raise ConfigurationError(f"{option} is a percentage like 5% or 0.1%")
    found = Fraction(text.rstrip("% ")) / 100
    if not 0 < found < 1:
        raise ConfigurationError(f"{option} lies between 0% and 100%")
    return found


@replaying.command()
def replay(
    ctx: typer.Context,
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="The training record.")],
    owner_log: Annotated[
        Path, typer.Option("--owner-log", metavar="FILE", help="The owner's log, opened.")
    ],
    salt: Annotated[Path, typer.Option(metavar="FILE", help="The salt of the data set.")],
    data: Annotated[Path, typer.Option(metavar="FILE", help="The rows.")],
    checkpoints: Annotated[Path, typer.Option(metavar="DIR", help="The sealed checkpoints.")],
    checkpoint_key: Annotated[
        Path, typer.Option("--checkpoint-key", metavar="FILE", help="The key that opens them.")
    ],
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The base model; not with --node.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The validation rows, where there are any.")
    ] = None,
    validation_salt: Annotated[
        Path | None,
        typer.Option("--validation-salt", metavar="FILE", help="Their salt; default: --salt."),
    ] = None,
    steps: Annotated[
        str,
        typer.Option(metavar="auto|K", help="How many steps; auto: as many as --miss needs."),
    ] = "auto",
    fraction: Annotated[
        str, typer.Option(metavar="PERCENT", help="How many false steps are to be found.")
    ] = "5%",
    miss: Annotated[
        str, typer.Option(metavar="PERCENT", help="With what probability they may be missed.")
    ] = "5%",
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="REL",
            help="On another kind of machine: how far loss and gradient norm may lie apart "
            "(1e-3), relative. States are then not compared.",
        ),
    ] = None,
    challenge: Annotated[
        str,
        typer.Option(metavar="HEX", help="32 bytes to draw from again; default: fresh ones."),
    ] = "",
    beacon: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A checkpoint of the log, newer than the record's entry; with --log-policy.",
        ),
    ] = None,
    log_policy: Annotated[
        Path | None, typer.Option("--log-policy", metavar="FILE", help="Whose log counts.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads to compute with.")] = 1,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to compute.")] = "cpu",
    node: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A training node that executes; default: this machine."),
    ] = None,
    expectation: Annotated[
        Path | None,
        typer.Option("--expectation", "--expect", metavar="FILE", help="What --node has to prove."),
    ] = None,
    roots: Annotated[
        str | None,
        typer.Option(metavar="vendor|FILE", help="Roots for --node: vendor or simulated roots."),
    ] = None,
    another_machine: Annotated[
        bool, typer.Option("--another-machine", help="Not a machine that trained.")
    ] = False,
    bisect: Annotated[
        bool,
        typer.Option("--bisect", help="Send --node all checkpoints, to find the first false step."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Keep what --node signed."),
    ] = None,
    simulated_roots: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|sha256:HEX",
            help="Accept SIMULATED evidence under these roots, for testing.",
        ),
    ] = None,
    at: Annotated[
        str,
        typer.Option(metavar="TIME", help="When to check validity; as with `confide verify`."),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Execute drawn steps again, and compare them with what the record commits to.

    The record is verified and the log audited first. Exit 10 where a step differs; the first one is
    named. In the recorded environment the comparison is bit for bit. With --node another attested
    node executes: it is proven, gets the rows sealed, and signs what it found.
    """
    from confide.cli import train_replay_node, training_materials  # noqa: PLC0415 - nobody else's

    screen = Screen.of(ctx, as_json=as_json)
    shares = read_percent(fraction, "--fraction"), read_percent(miss, "--miss")
    given = training_materials.Given(
        *(record, owner_log, salt, data, validation, validation_salt),
        *(simulated_roots, at, log_policy),
    )
    place = train_replay_node.choose_node(node, expectation, roots, base, output)
    if place is None and (another_machine or bisect):
        raise ConfigurationError("--another-machine and --bisect go with --node")
    case, judged, audited, rows = training_materials.read_audited(given)
    draw = Draw(read_challenge(challenge), _beacon_note(case, judged, beacon))
    sample = draw_sample(
        replay_beacon(audited.record.record.head, challenge=draw.challenge, checkpoint=draw.note),
        audited.record.record.steps,
        count=read_count(steps, audited.record.record.steps),
        fraction=shares[0],
        miss=shares[1],
    )
    near = _read_tolerance(tolerance)
    screen.say(f"{len(sample.drawn)} of {sample.steps} steps drawn; executing")
    if place is None:
        materials = training_materials.materials_of(
            given, rows, base, checkpoints, checkpoint_key, threads, device
        )
        found = _replay_here(audited, sample, near, materials)
    else:
        found = train_replay_node.replay_there(
            screen,
            place,
            train_replay_node.Ask(
                given,
                audited,
                sample,
                near,
                draw,
                checkpoints=checkpoints,
                checkpoint_key=checkpoint_key,
                bisect=bisect,
                elsewhere=another_machine,
            ),
        )
    show_replay(screen, case, found, draw)


def _replay_here(
    audited: AuditedLog, sample: Sample, near: Tolerance | None, materials: Materials
) -> Executed:
    from confide.cli import replay_trainer  # noqa: PLC0415 - it needs torch
    from confide.cli.training_materials import has_end  # noqa: PLC0415 - as the caller

    prepared = replay_trainer.prepare_replay(audited, materials)
    if near is None:
        _require_recorded(prepared)
    verdict = run_replay(audited, sample, prepared, near)
    made = prepared.end(audited, near) if has_end(materials.checkpoints, audited) else None
    require_made(made)
    return Executed(sample, prepared.executed, verdict.states, near, made)


def run_replay(
    audited: AuditedLog, sample: Sample, prepared: PreparedReplay, tolerance: Tolerance | None
) -> VerifiedReplay:
    """Execute what the replay asks for until it concludes. Raises `TrainingRejected`."""
    run = Replay(audited, sample, tolerance=tolerance)
    while (stretch := run.ask()) is not None:
        run.tell(prepared.execute(stretch))
    return run.conclude()


def read_count(text: str, steps: int) -> int | None:
    """Return how many steps `--steps` names, None for auto; `ConfigurationError` otherwise."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 0 < int(text) <= steps):
        raise ConfigurationError(f"--steps is auto, or a number from 1 to {steps}")
    return int(text)


def read_challenge(text: str) -> bytes:
    """Return the challenge that `text` names, or a fresh one."""
    if not text:
        from confide.adapters.entropy import SystemEntropy  # noqa: PLC0415 - where one is drawn

        return SystemEntropy().token(CHALLENGE_BYTES)
    if len(text) != 2 * CHALLENGE_BYTES or text.strip("0123456789abcdef"):
        raise ConfigurationError("--challenge wants 64 lower-case hex digits")
    return bytes.fromhex(text)


def _read_tolerance(tolerance: float | None) -> Tolerance | None:
    if tolerance is None:
        return None
    try:
        return Tolerance(abs=tolerance * 1e-3, rel=tolerance)
    except ValueError as error:
        raise ConfigurationError("--tolerance lies from 0 to below 1") from error


def _require_recorded(prepared: PreparedReplay) -> None:
    if prepared.differences:
        names = ", ".join(prepared.differences)
        raise ConfigurationError(
            f"this environment is not the recorded one ({names}): bits may differ. Replay in the "
            "recorded one, or with --tolerance 1e-3"
        )


def _beacon_note(case: RecordCase, judged: Judged, beacon: Path | None) -> bytes | None:
    """Return the log checkpoint to draw from: verified, of the record's log, and after it."""
    if beacon is None:
        return None
    demand = case.log
    if demand is None or demand.policy is None or judged.logged is None:
        raise ConfigurationError("--beacon needs --log-policy, and a record with a log proof")
    from confide.adapters.clock import SystemClock  # noqa: PLC0415 - with a log alone
    from confide.tlog.verify import verify_head  # noqa: PLC0415
    from confide.wire.checkpoint import parse_checkpoint  # noqa: PLC0415

    raw = read_bounded(beacon, "log checkpoint")
    head = verify_head(parse_checkpoint(raw), policy=demand.policy, now=SystemClock().now())
    logged = judged.logged
    if head.origin != logged.origin or head.size <= logged.size:
        detail = "the checkpoint is of another log, or not newer than the record's proof"
        finding = Finding(
            Status.FAIL, "replay/0", _CLAUSE, "beacon", detail, Reason.TRAINING_REPLAY
        )
        raise TrainingRejected((finding,))
    return raw
