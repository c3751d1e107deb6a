"""The sections of the page about an artefact-level record. docs/protocols/training-image.md §6.

It says what the record shows, and as plainly what it does not: there are no curves to draw.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from confide.cli.image_words import image_rows
from confide.cli.page_parts import card, escaped, items, listed, steps_run
from confide.rats import Status
from confide.training.limits import COARSER, IMAGE_LIMITS

if TYPE_CHECKING:
    from confide.cli.training_case import Judged
    from confide.training.image_verify import VerifiedImageRecord

__all__ = ["image_sections"]

# What a node calls its model is the base of a training.
_NAMES = {"model-weights": "base-weights"}


def image_sections(record: VerifiedImageRecord, judged: Judged) -> list[str]:
    """Return the sections about `record`, which was accepted."""
    return [
        _granularity(),
        _lineage(record, judged),
        _facts(record),
        _proven(record, judged),
        _not_proven(record),
        steps_run(judged),
    ]


def _granularity() -> str:
    return (
        "<section><h2>A coarser record</h2>"
        f"<p>This record is <b>{html.escape(COARSER)}.</b></p>"
        '<p class="note">Training with a recipe.toml instead of an image gives a record of every '
        "step, which can be audited and replayed.</p></section>"
    )


def _lineage(record: VerifiedImageRecord, judged: Judged) -> str:
    said = record.record
    into = [
        card("Rows", said.dataset_root, "root of the data set"),
        card("Base model", said.plan.base, record.expectation.model.name),
        card("train.toml", said.plan.recipe, "the owner's, by digest"),
        card("Node software", said.software, "measured at boot"),
    ]
    done = [card("Image", said.plan.image, "the owner's, by digest; what it did is not recorded")]
    done.append(card("Training", record.digest, "artefact-level, one record", main=True))
    out = [card("Output", said.made, "the directory that it left")]
    served = [
        card(link.kind.capitalize(), link.digest, "answered with these weights")
        for link in judged.links
        if link.kind in ("agent run", "answer")
    ]
    rows = [("What went in", into), ("What was run", done), ("What came out", out)]
    if served:
        rows.append(("What was answered", served))
    arrow = '<div class="down" aria-hidden="true">↓</div>'
    body = arrow.join(
        f'<ul class="cards" aria-label="{title}">{"".join(cards)}</ul>' for title, cards in rows
    )
    note = (
        "Each named by digest. Base, software, image and output were measured by the node, and the "
        "rows committed to again. From rows to output there is the image, and its word."
    )
    return f'<section><h2>Lineage</h2><p class="note">{note}</p>{body}</section>'


def _facts(record: VerifiedImageRecord) -> str:
    said = record.record
    digests = [
        ("Plan", said.plan.digest),
        ("train.toml", said.plan.recipe),
        ("Data set", said.plan.dataset),
        ("Root of the rows", said.dataset_root),
        ("Base", said.plan.base),
        ("Output", said.made),
    ]
    if said.plan.validation is not None:
        digests.insert(3, ("Validation rows", said.plan.validation))
    rows = [(label.capitalize(), escaped(value)) for label, value in image_rows(said)]
    rows += [(name, f"<code>{digest.hex()}</code>") for name, digest in digests]
    return f'<section><h2>What was made</h2><div class="made">{listed(rows)}</div></section>'


def _proven(record: VerifiedImageRecord, judged: Judged) -> str:
    rows = [
        f"<b>{escaped(_NAMES.get(claim.name, claim.name))}</b> {escaped(claim.value)} "
        f'<span class="dim">says {escaped(claim.source)}</span>'
        for claim in record.node.result.claims
        if claim.status is Status.PASS
    ]
    rows += [
        "Job and plan were measured, and the machine was proven, before the image was started.",
        "The image was given the committed rows and the measured base, and no network.",
        "CPU and GPU signed the digest of this record after the image had ended.",
    ]
    if judged.logged is not None:
        origin, index = escaped(judged.logged.head.origin), judged.logged.index
        rows.append(f"The record is in the log {origin}, entry {index}.")
    return f"<section><h2>Proven</h2>{items('proven', rows)}</section>"


def _not_proven(record: VerifiedImageRecord) -> str:
    rows = [
        f"<b>{escaped(claim.name)}</b> {escaped(claim.value)}"
        for claim in record.node.result.claims
        if claim.status is not Status.PASS
    ]
    rows += [html.escape(limit[0].upper() + limit[1:]) for limit in IMAGE_LIMITS]
    return f"<section><h2>Not proven</h2>{items('open', rows)}</section>"
