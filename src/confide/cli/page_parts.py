"""The parts of an offline page about a training record: text, cards, lists, the frame.

One HTML text without scripts, fonts or images; its policy lets nothing else in. Every text that
came from outside goes through `escaped`.
"""

from __future__ import annotations

import base64
import hashlib
import html
from typing import TYPE_CHECKING

from confide.cli.screen import printable
from confide.cli.training_style import STYLE
from confide.training.record import TrainingRecord
from confide.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confide.cli.training_case import Judged, RecordCase

__all__ = [
    "card",
    "counted",
    "escaped",
    "failures",
    "head",
    "items",
    "listed",
    "page",
    "steps_run",
]

_MEANING = "The checks are real; the hardware and its roots are not. For testing."


def escaped(text: str, *, max_chars: int = 400) -> str:
    """Return text from outside, fit for a page: no markup, nothing that turns the line around."""
    return html.escape(printable(text, max_chars=max_chars))


def page(title: str, body: str) -> str:
    """Return the whole page; what `body` holds is fit for it already."""
    allowed = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}<footer>Made offline by confide {html.escape(__version__)}. This page "
        "shows a verdict; to have one of your own, run <code>confide verify</code> on the record."
        "</footer></main></body></html>\n"
    )


def head(case: RecordCase, judged: Judged) -> str:
    """Return the verdict, and in one line what it is about."""
    accepted = judged.record is not None
    word, style = ("ACCEPTED", "ok") if accepted else ("REJECTED", "no")
    simulated = '<span class="sim">SIMULATED</span>' if case.simulated else ""
    line = f'<p class="simline">SIMULATED: {_MEANING}</p>' if case.simulated else ""
    name, says = "A record that was refused", "it says: "
    extent = "artefact-level"
    if isinstance(case.said, TrainingRecord):
        extent = f"{case.said.steps:,} steps"
    if judged.record is not None:
        base = judged.record.expectation.model.name
        name, says = f"{escaped(base, max_chars=128)}, tuned", ""
    when = case.said.finished.strftime("%Y-%m-%d %H:%M UTC")
    return (
        f'<header><p class="dim">Training record</p><h1>{name}</h1>'
        f'<div class="verdict"><b class="{style}">{word}</b>{simulated}'
        f"<span>{says}{extent}, ended {when} by the node's clock</span>"
        f"</div>{line}"
        f"<p><code>{case.file.record.digest.hex()}</code></p></header>"
    )


def card(kind: str, digest: bytes | None, note: str = "", *, main: bool = False) -> str:
    """Return one stone of the lineage."""
    style = ' class="main"' if main else ""
    code = "" if digest is None else f"<code>{digest.hex()[:16]}…</code>"
    return f"<li{style}><b>{html.escape(kind)}</b>{escaped(note)}{code}</li>"


def listed(rows: Iterable[tuple[str, str]]) -> str:
    """Return labels with what they stand for, which is fit for the page."""
    pairs = "".join(f"<dt>{html.escape(label)}</dt><dd>{value}</dd>" for label, value in rows)
    return f"<dl>{pairs}</dl>"


def counted(count: int, noun: str) -> str:
    """Return how many there are, in words."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def items(style: str, rows: Iterable[str]) -> str:
    """Return a list of sentences, which are fit for the page."""
    return f'<ul class="plain {style}">{"".join(f"<li>{row}</li>" for row in rows)}</ul>'


def steps_run(judged: Judged) -> str:
    """Return the table of every step of the verification."""
    rows = "".join(
        f"<tr><td>{escaped(each.step)}</td><td>{escaped(each.subject)}</td>"
        f"<td>{escaped(each.detail)}</td><td>{escaped(each.clause)}</td></tr>"
        for each in judged.findings
    )
    return (
        f"<section><h2>Every step</h2><details><summary>{len(judged.findings)} steps passed"
        '</summary><div class="wide"><table><thead><tr><th scope=col>step</th><th scope=col>about'
        "</th><th scope=col>found</th><th scope=col>clause</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details></section>"
    )


def failures(judged: Judged) -> str:
    """Return why a record was refused."""
    rows = [
        f"<b>{escaped(each.step)}</b> {escaped(str(each.reason))}: {escaped(each.detail)}"
        for each in judged.findings
        if each.failed
    ] or [escaped(str(judged.failure))]
    return (
        f"<section><h2>Failed steps</h2>{items('failed', rows)}<p>Nothing in this record is "
        "believed, and so nothing of it is drawn.</p></section>"
    )
