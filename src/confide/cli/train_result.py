"""The last screen of a training: what was made, what is proven and what not, what comes next."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from confide.cli.curve import short_number
from confide.cli.image_words import image_rows, limits_of, record_document
from confide.cli.report import counted, verdict
from confide.cli.screen import command_line, fields, hanging, heading, printable
from confide.cli.training_screen import coarser
from confide.rats import Status
from confide.training.image_record import ImageRecord
from confide.training.record import TrainingRecord
from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from confide.cli.screen import Screen
    from confide.client.train_folder import OwnerFolder
    from confide.client.train_results import OpenedResults
    from confide.training.owner_log import SaltedEvaluation
    from confide.wire.json import JsonValue

__all__ = ["Made", "show_result"]


@dataclass(frozen=True, slots=True)
class Made:
    """What a training made: the owner's folder, the opened results, the name of the model."""

    folder: OwnerFolder
    opened: OpenedResults
    name: str


def show_result(screen: Screen, made: Made) -> None:
    """Show what was made, as one screen or one object."""
    record = made.opened.record
    parts: list[RenderableType] = [Text()]
    parts += verdict(
        accepted=True,
        simulated=record.simulated,
        what="the record, the log and everything that was opened hold"
        if made.opened.audited is not None
        else "the record and everything that was opened hold",
        banner=False,
    )
    parts += coarser(record.record)
    parts += [heading("Made"), fields(_made(made))]
    parts += [heading("Proven"), fields(_proven(made))]
    parts += [heading("Not proven", "the Expectation accepts these, or no record can")]
    parts += [hanging("  - ", row, mark_style="yellow") for row in _missing(made)]
    parts += [heading("Next")]
    for what, command in _next(made):
        parts += [Text(f"  {what}", style="dim"), command_line(command)]
    screen.show(*parts)
    screen.event("result", _document(made))


def _made(made: Made) -> list[tuple[str, str]]:
    opened = made.opened
    rows = [
        ("kept in", f"{made.folder.path}  with your keys: keep it"),
        ("model", printable(made.name)),
        *_work(opened),
    ]
    if opened.adapter is not None:
        rows.append(("adapter", _short(made, opened.adapter)))
    rows.append((opened.record.record.main, _short(made, opened.merged)))
    if opened.audited is None:
        rows.append(("it printed", _short(made, opened.folder / "stdout.txt")))
    return [*rows, ("record", _short(made, opened.folder / "record.json"))]


def _short(made: Made, path: Path) -> str:
    """Return `path` relative to the folder that is shown above."""
    return str(path.relative_to(made.folder.path))


def _work(opened: OpenedResults) -> list[tuple[str, str]]:
    said = opened.record.record
    if isinstance(said, ImageRecord):
        return image_rows(said)[:3]
    seconds = (said.finished - said.started).total_seconds()
    log = None if opened.audited is None else opened.audited.log
    tokens = sum(each.record.tokens for each in log.steps) if log is not None else 0
    rows = [
        ("steps", f"{said.steps:,}, {tokens:,} tokens, in {seconds:.0f} s by the node's clock"),
        ("held out", _held_out(_evaluations(opened))),
    ]
    if said.privacy is not None:
        told = ", ".join(f"{name} {text}" for name, text in said.privacy.items())
        rows.append(("privacy", printable(told)))
    return rows


def _evaluations(opened: OpenedResults) -> tuple[SaltedEvaluation, SaltedEvaluation] | None:
    return None if opened.audited is None else opened.audited.log.evaluations


def _held_out(evaluations: tuple[SaltedEvaluation, SaltedEvaluation] | None) -> str:
    if evaluations is None:
        return "nothing (val_set_size), so nothing is said of quality"
    base, tuned = (each.metrics for each in evaluations)
    better = "better than the base" if tuned.loss < base.loss else "NOT better than the base"
    return (
        f"loss {short_number(base.loss)} → {short_number(tuned.loss)}, "
        f"accuracy {base.accuracy:.1%} → {tuned.accuracy:.1%}, {counted(base.rows, 'row')}: "
        f"{better}"
    )


def _proven(made: Made) -> list[tuple[str, str]]:
    record = made.opened.record
    names = [claim.name for claim in record.node.result.claims if claim.status is Status.PASS]
    boots = len(record.boots)
    if isinstance(record.record, ImageRecord):
        rows = f"data set {record.record.plan.dataset.hex()[:16]}…: what the image was given"
        return [
            ("machine", ", ".join(names)),
            ("rows", rows),
            ("image", "the one you named, on the base you named, without a network"),
            ("result", "what it left; then the hardware quoted the record, your nonce"),
        ]
    return [
        ("machine", ", ".join(names)),
        ("rows", f"data set {record.record.plan.dataset.hex()[:16]}…, in the order of the recipe"),
        ("steps", "each one, at its learning rate, hashed to the head that the record names"),
        (
            "result",
            f"by {counted(boots, 'proven boot')}; the hardware then quoted record and nonce",
        ),
    ]


def _missing(made: Made) -> list[str]:
    claims = made.opened.record.node.result.claims
    unproven = [claim.name for claim in claims if claim.status is not Status.PASS]
    return [*([", ".join(unproven)] if unproven else []), *limits_of(made.opened.record.record)]


def _trust(made: Made) -> list[str]:
    roots = made.folder.roots
    if not roots.simulated:
        return []
    digest = hashlib.sha256(encode_roots_file(roots)).hexdigest()
    return ["--simulated-roots", f"sha256:{digest}"]


def _next(made: Made) -> list[tuple[str, str]]:
    folder = made.opened.folder
    record, trust = str(folder / "record.json"), _trust(made)
    salt = str(made.folder.path / "dataset.salt")
    log = ["--owner-log", str(folder / "owner-log.json"), "--salt", salt]
    if made.opened.audited is None:
        log = []
    return [
        ("verify it anywhere, offline", _words("verify", record, "--outputs", str(folder), *trust)),
        (
            "a page with curves and lineage",
            _words("train", "report", record, "-o", "report.html", *log, *trust),
        ),
        *_replay(made, record, [*log, *trust]),
        ("serve it", _serve(made)),
    ]


def _replay(made: Made, record: str, trust: list[str]) -> list[tuple[str, str]]:
    """Return, where checkpoints were fetched, how the node executes drawn steps again."""
    state, mine = made.folder.state, made.folder.path
    checkpoints = made.opened.folder / "checkpoints"
    if state.data is None or not checkpoints.is_dir():
        return []
    rows = ["--data", str(state.data.path)]
    if state.validation is not None:
        rows += ["--validation", str(state.validation.path)]
        rows += ["--validation-salt", str(mine / "validation.salt")]
    roots = str(mine / "roots.json") if made.folder.roots.simulated else "vendor"
    return [
        (
            "have drawn steps executed again, where they were, or at another --node",
            _words(
                *("train", "replay", record, *trust, *rows, "--checkpoints", str(checkpoints)),
                *("--checkpoint-key", str(mine / "checkpoint.key"), "--node", state.node),
                *("--expectation", str(mine / "expectation.json"), "--roots", roots),
            ),
        )
    ]


def _serve(made: Made) -> str:
    words = ["--model", made.name, "--weights", str(made.opened.merged)]
    if made.folder.roots.simulated:
        return _words("up", *words)
    record = str(made.opened.folder / "record.json")
    return _words("node", "model", "--port", "8400", *words, "--record", record)


def _words(*words: str) -> str:
    return shlex.join(["confide", *words])


def _document(made: Made) -> dict[str, JsonValue]:
    opened, record = made.opened, made.opened.record
    evaluations = _evaluations(opened)
    said = record_document(record.record)
    return {
        "granularity": said["granularity"],
        "verdict": "accepted",
        "simulated": record.simulated,
        "model": made.name,
        "job": made.folder.state.job,
        "record": record.digest.hex(),
        "outputs": {name: digest.hex() for name, digest in record.record.outputs.items()},
        "dataset": record.record.plan.dataset.hex(),
        "steps": record.record.steps if isinstance(record.record, TrainingRecord) else None,
        "evaluation": None
        if evaluations is None
        else {
            name: {"loss": each.metrics.loss, "accuracy": each.metrics.accuracy}
            for name, each in zip(("base", "tuned"), evaluations, strict=True)
        },
        "not_proven": list(_missing(made)),
        "paths": {
            "folder": str(made.folder.path),
            "adapter": None if opened.adapter is None else str(opened.adapter),
            "merged": str(opened.merged),
            "record": str(opened.folder / "record.json"),
            "owner_log": None if opened.audited is None else str(opened.folder / "owner-log.json"),
        },
        "next": [command for _, command in _next(made)],
    }
