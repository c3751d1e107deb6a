"""From an agent run to a dataset root: which document stands on which. Pure.

Clause: docs/protocols/training-record.md §8. Every document was verified by itself before it comes
here; what is compared is only that they are about the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.errors import Reason, TrainingRejected
from confide.rats import Finding, Status
from confide.training.image_record import ImageRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.expectation import Expectation
    from confide.training.any_record import AnyVerified

__all__ = ["Link", "Served", "walk_lineage"]

_DOC: Final = "docs/protocols/training-record.md#8"


@dataclass(frozen=True, slots=True)
class Served:
    """A verified receipt whose answers came from a model: `kind` says which sort of receipt."""

    kind: str
    digest: bytes
    expectation: Expectation


@dataclass(frozen=True, slots=True)
class Link:
    """One stone of the walk: what it is, and the digest by which the one before names it."""

    kind: str
    digest: bytes
    note: str = ""


def walk_lineage(
    record: AnyVerified, *, served: Sequence[Served], earlier: Sequence[AnyVerified]
) -> tuple[tuple[Link, ...], tuple[Finding, ...]]:
    """
    Require that every one of `served` answered with the weights of `record`.

    `earlier` are records of trainings that made its base, the nearest first. Returns the walk,
    from what was served to the dataset root, and one finding for each comparison. Raises
    `TrainingRejected` (MODEL_MISMATCH) with all of them.
    """
    merged = record.record.made
    findings = [
        _compare(f"lineage/{number}", each.kind, each.expectation.model.weights, merged.hex())
        for number, each in enumerate(served, start=1)
    ]
    links = [Link(each.kind, each.digest) for each in served]
    links += _of_record(record)
    upper = record
    for number, lower in enumerate(earlier, start=len(served) + 1):
        base, made = upper.record.plan.base, lower.record.made
        findings.append(_compare(f"lineage/{number}", "base model", base.hex(), made.hex()))
        links += _of_record(lower)
        upper = lower
    if any(finding.failed for finding in findings):
        raise TrainingRejected(tuple(findings))
    return tuple(links), tuple(findings)


def _of_record(record: AnyVerified) -> list[Link]:
    plan, said = record.record.plan, record.record
    links = [Link("weights", said.made)]
    if isinstance(said, ImageRecord):
        # docs/protocols/training-image.md 5.2: this link is weaker than the others, and says so.
        links += [
            Link("training", record.digest, "artefact-level: no steps"),
            Link("image", said.plan.image, "chosen by the owner"),
        ]
    else:
        links.append(Link("training", record.digest, f"{said.steps} steps"))
    return [
        *links,
        Link("base", plan.base, record.expectation.model.name),
        Link("dataset", plan.dataset),
        Link("dataset root", said.dataset_root),
    ]


def _compare(step: str, kind: str, weights: str, merged: str) -> Finding:
    if weights == merged:
        return Finding(Status.PASS, step, _DOC, kind, f"weights {merged}")
    detail = "other weights were served than were trained"
    return Finding(Status.FAIL, step, _DOC, kind, detail, Reason.MODEL_MISMATCH)
