"""The page of `confide train report`: what is proven of a training, and what is not, offline.

One HTML text without scripts, fonts or images; its policy lets nothing else in. It shows a verdict
and makes none. Every text that came from outside goes through `escaped`.
"""

from __future__ import annotations

import html
from fractions import Fraction
from typing import TYPE_CHECKING

from confide.cli.image_page import image_sections
from confide.cli.page_parts import (
    card,
    counted,
    escaped,
    failures,
    head,
    items,
    listed,
    page,
    steps_run,
)
from confide.cli.screen import printable
from confide.cli.training_plots import Bar, Line, Mark, bars, number, plot
from confide.cli.training_screen import nodes_line
from confide.rats import Status
from confide.training.draw import false_steps, steps_needed
from confide.training.image_verify import VerifiedImageRecord
from confide.training.limits import RECORD_LIMITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.cli.training_case import Judged, RecordCase
    from confide.training.audit import AuditedLog
    from confide.training.job import Evaluation
    from confide.training.owner_log import OwnerLog
    from confide.training.record import TrainingRecord
    from confide.training.record_verify import VerifiedRecord

__all__ = ["render_report"]

_UNSEEN = (
    "Loss, learning rate, order of rows and metrics are not public. They stand in the owner's log, "
    "sealed to the owner; the record names its digest:"
)
# A replay is to miss a share of one in ten, a hundred, a thousand false steps once in twenty times.
_MISS_ONE_IN = 20
_FALSE_ONE_IN = (10, 100, 1000)


def render_report(
    case: RecordCase, judged: Judged, *, log: OwnerLog | None, audited: AuditedLog | None
) -> str:
    """
    Return the page about `case`.

    `log` is the owner's log that the record names, None where nobody opened it; `audited` says
    that it follows from its recipe. A record that was refused is shown with its failures alone.
    """
    parts = [head(case, judged)]
    if judged.record is None:
        parts += [failures(judged), _unbelieved(case)]
    elif isinstance(judged.record, VerifiedImageRecord):
        parts += image_sections(judged.record, judged)
    else:
        record = judged.record
        parts += [
            _lineage(record, judged),
            _curves(record, log),
            _evaluation(record, log),
            _facts(record),
            _turns(record),
            _proven(record, log, audited, judged),
            _not_proven(record, log, audited),
            _replay(record.record),
            steps_run(judged),
        ]
    return page(f"Training record {case.file.record.digest.hex()[:16]}", "".join(parts))


def _lineage(record: VerifiedRecord, judged: Judged) -> str:
    said = record.record
    base = record.expectation.model.name
    into = [
        card("Rows", said.dataset_root, "root of the data set"),
        card("Base model", said.plan.base, base),
        card("Recipe", said.plan.recipe, "sealed to the owner"),
        card("Node software", said.software, "measured at boot"),
    ]
    shown = [link for link in judged.links if link.kind == "row"]
    into[1:1] = [card("Row", link.digest, f"{link.note}: proven") for link in shown]
    steps = [card("Training", record.digest, f"{said.steps:,} steps, one record", main=True)]
    names = {"merged": "Tuned model", "adapter": "Adapter"}
    out = [card(names[name], digest) for name, digest in sorted(said.outputs.items())[::-1]]
    served = [
        card(link.kind.capitalize(), link.digest, "answered with these weights")
        for link in judged.links
        if link.kind in ("agent run", "answer")
    ]
    rows = [("What went in", into), ("What was done", steps), ("What came out", out)]
    if served:
        rows.append(("What was answered", served))
    arrow = '<div class="down" aria-hidden="true">↓</div>'
    body = arrow.join(
        f'<ul class="cards" aria-label="{title}">{"".join(cards)}</ul>' for title, cards in rows
    )
    note = (
        "Each named by digest. Base, software and output were measured by the node; what was "
        "answered was compared with the output."
    )
    return f'<section><h2>Lineage</h2><p class="note">{note}</p>{body}</section>'


def _curves(record: VerifiedRecord, log: OwnerLog | None) -> str:
    said = record.record
    if log is None:
        return (
            f'<section><h2>Loss</h2><div class="made"><p>{_UNSEEN}</p>'
            f"<p><code>{said.owner_log.hex()}</code></p>"
            '<p class="note">With the opened log: confide train report RECORD --owner-log FILE'
            "</p></div></section>"
        )
    records = [each.record for each in log.steps]
    losses = [each.loss for each in records]
    lines = [Line("loss", losses, "one")]
    if len(losses) >= _SMOOTHED:
        lines.append(Line("running mean", _running_mean(losses), "two"))
    marks = [Mark(turn.step, "turn") for turn in said.turns if turn.step]
    note = "Dashed upright lines: pauses, restarts, moves." if marks else ""
    rates = [Line("learning rate", [each.learning_rate for each in records], "one")]
    norms = [Line("gradient norm", [each.grad_norm for each in records], "one")]
    tokens = sum(each.tokens for each in records)
    return (
        f"<section><h2>Loss</h2>{plot('Training loss', note, lines, marks=marks)}"
        f'<div class="pair">{plot("Learning rate", "", rates)}'
        f"{plot('Gradient norm', '', norms)}</div>"
        f'<p class="note">{tokens:,} tokens. From the owner\'s log, whose digest the record names: '
        "as the node computed it.</p></section>"
    )


_SMOOTHED = 20


def _running_mean(values: Sequence[float]) -> list[float]:
    kept, mean = [], values[0]
    weight = 2 / (max(_SMOOTHED, len(values) // 20) + 1)
    for value in values:
        mean += weight * (value - mean)
        kept.append(mean)
    return kept


def _evaluation(record: VerifiedRecord, log: OwnerLog | None) -> str:
    if record.evaluation is None:
        return (
            "<section><h2>Evaluation</h2><p>Neither model was evaluated: the record says nothing "
            "of quality.</p></section>"
        )
    better = record.evaluation[1].better
    verdict = (
        '<p>On rows that were held out, the tuned model is <b class="ok">better</b> than the base.'
        if better
        else '<p>On rows that were held out, the tuned model is <b class="no">not better</b> than '
        "the base."
    )
    if log is None or log.evaluations is None:
        verdict += " By how much, the owner's log says.</p>"
        return f"<section><h2>Evaluation</h2>{verdict}</section>"
    base, tuned = (each.metrics for each in log.evaluations)
    loss = bars(
        "Loss on held-out rows",
        "Lower is better.",
        [Bar("base", base.loss, "two"), Bar("tuned", tuned.loss, "one")],
    )
    accuracy = bars(
        "Accuracy on held-out rows",
        f"Higher is better. {tuned.rows:,} rows, {tuned.count:,} compared.",
        [Bar("base", base.accuracy, "two"), Bar("tuned", tuned.accuracy, "one")],
    )
    return (
        f'<section><h2>Evaluation</h2>{verdict}</p><div class="pair">{loss}{accuracy}</div>'
        f"{_on_the_way(log, base)}</section>"
    )


def _on_the_way(log: OwnerLog, base: Evaluation) -> str:
    """Return what the model did on held-out rows on the way, from the base on; or nothing."""
    if not log.evaluated:
        return ""
    at = [0, *(each.step for each in log.evaluated)]
    losses = [base.loss, *(each.loss for each in log.evaluated)]
    shares = [base.accuracy, *(each.accuracy for each in log.evaluated)]
    loss = Line("loss on held-out rows", losses, "one", at)
    accuracy = Line("accuracy on held-out rows", shares, "one", at)
    note = "Step 0 is the base."
    return (
        f'<div class="pair">{plot("Held-out loss on the way", note, [loss])}'
        f"{plot('Held-out accuracy on the way', note, [accuracy])}</div>"
        '<p class="note">As the node computed it: a replay executes steps, and no evaluation.</p>'
    )


def _facts(record: VerifiedRecord) -> str:
    said = record.record
    rows = [
        ("Steps", f"{said.steps:,} of {said.planned:,}"),
        *((_label(name), escaped(text)) for name, text in said.environment.items()),
    ]
    if record.seats:
        rows.append(("Nodes", escaped(nodes_line(record))))
    if said.privacy is not None:
        rows += [(f"Privacy: {name}", escaped(text)) for name, text in said.privacy.items()]
    digests = [
        ("Plan", said.plan.digest),
        ("Data set", said.plan.dataset),
        ("Root of the rows", said.dataset_root),
        ("Base", said.plan.base),
        ("Head of the steps", said.head),
        ("Owner's log", said.owner_log),
        *((f"Output: {name}", digest) for name, digest in said.outputs.items()),
    ]
    rows += [(name, f"<code>{digest.hex()}</code>") for name, digest in digests]
    return f'<section><h2>What was made</h2><div class="made">{listed(rows)}</div></section>'


def _label(name: str) -> str:
    return printable(name, max_chars=64)


def _turns(record: VerifiedRecord) -> str:
    machines = list(dict.fromkeys(record.machines))
    rows = "".join(
        f"<tr><td>{turn.step:,}</td><td>{turn.kind}</td><td>{turn.boot + 1}</td>"
        f"<td>{machines.index(record.machines[turn.boot]) + 1}</td></tr>"
        for turn in record.record.turns
    )
    return (
        "<section><h2>Machines and interruptions</h2><p>"
        f"{counted(len(record.boots), 'boot')} on {counted(len(machines), 'machine')}; each "
        "proved itself before its first step, the last one again over the finished record.</p>"
        "<table><thead><tr><th scope=col>after step</th><th scope=col>what</th>"
        f"<th scope=col>boot</th><th scope=col>machine</th></tr></thead><tbody>{rows}</tbody>"
        "</table></section>"
    )


def _proven(
    record: VerifiedRecord, log: OwnerLog | None, audited: AuditedLog | None, judged: Judged
) -> str:
    rows = [
        f"<b>{escaped(claim.name)}</b> {escaped(claim.value)} "
        f'<span class="dim">says {escaped(claim.source)}</span>'
        for claim in record.node.result.claims
        if claim.status is Status.PASS
    ]
    rows += [
        "Job and plan were measured into the machine before the first step.",
        "CPU and GPU signed the digest of this record after the last step.",
    ]
    if judged.logged is not None:
        origin, index = escaped(judged.logged.head.origin), judged.logged.index
        rows.append(f"The record is in the log {origin}, entry {index}.")
    if log is not None and audited is None:
        rows.append("The log shown here is the one that the record names.")
    if audited is not None:
        rows.append(
            "Every step consumed the rows, in the order and at the learning rate, that the recipe "
            "says: audited against the owner's log."
        )
    return f"<section><h2>Proven</h2>{items('proven', rows)}</section>"


def _not_proven(record: VerifiedRecord, log: OwnerLog | None, audited: AuditedLog | None) -> str:
    rows = [
        f"<b>{escaped(claim.name)}</b> {escaped(claim.value)}"
        for claim in record.node.result.claims
        if claim.status is not Status.PASS
    ]
    rows += [html.escape(text[0].upper() + text[1:]) for text in RECORD_LIMITS]
    if log is None:
        rows.append("Order of rows and learning rates: the owner's log was not at hand.")
    elif audited is None:
        rows.append("Order of rows and learning rates: not audited, for want of the salt.")
    return f"<section><h2>Not proven</h2>{items('open', rows)}</section>"


def _replay(said: TrainingRecord) -> str:
    rows = "".join(
        f"<tr><td>{number(100 / share)} % ({counted(false, 'step')})</td>"
        f"<td>{steps_needed(said.steps, false, Fraction(1, _MISS_ONE_IN)):,}</td></tr>"
        for share in _FALSE_ONE_IN
        for false in (false_steps(said.steps, Fraction(1, share)),)
    )
    return (
        "<section><h2>What a replay would show</h2><p>Executing drawn steps again shows whether "
        "they were computed as recorded. To miss false steps with a probability of at most 5 %, "
        "draw:</p><table><thead><tr><th scope=col>false steps</th><th scope=col>steps to draw</th>"
        f"</tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _unbelieved(case: RecordCase) -> str:
    said = case.said
    rows = [
        ("Plan", f"<code>{said.plan.digest.hex()}</code>"),
        ("Base", f"<code>{said.plan.base.hex()}</code>"),
        ("Root of the rows", f"<code>{said.dataset_root.hex()}</code>"),
    ]
    return (
        '<section><h2>What the record says, not believed</h2><div class="made">'
        f"{listed(rows)}</div></section>"
    )
