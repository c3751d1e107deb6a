"""From an agent run to a dataset root: which document stands on which. Pure.

Clause: docs/protocols/training-record.md §8. Every document was verified by itself before it comes
here, except proofs of rows, which are nothing without a record; what is compared is only that they
are about the same weights and the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from confide.errors import Reason, TrainingRejected
from confide.rats import Finding, Status
from confide.training.image_record import ImageRecord
from confide.training.inclusion import verify_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.expectation import Expectation
    from confide.training.any_record import AnyVerified
    from confide.training.inclusion import DatasetProof

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
    record: AnyVerified,
    *,
    served: Sequence[Served],
    earlier: Sequence[AnyVerified],
    rows: Sequence[DatasetProof] = (),
) -> tuple[tuple[Link, ...], tuple[Finding, ...]]:
    """
    Require that every one of `served` answered with the weights of `record`.

    `earlier` are records of trainings that made its base, the nearest first; `rows` are proofs of
    rows of any of these trainings, which are verified here. Returns the walk, from what was served
    to the dataset root and its rows, and one finding for each comparison. Raises `TrainingRejected`
    (MODEL_MISMATCH) with all of them, `DatasetRejected` and `FormatError` for a proof.
    """
    merged = record.record.made
    findings = [
        _compare(f"lineage/{number}", each.kind, each.expectation.model.weights, merged.hex())
        for number, each in enumerate(served, start=1)
    ]
    trainings = (record, *earlier)
    for number, (upper, lower) in enumerate(pairwise(trainings), start=len(served) + 1):
        base, made = upper.record.plan.base, lower.record.made
        findings.append(_compare(f"lineage/{number}", "base model", base.hex(), made.hex()))
    if any(finding.failed for finding in findings):
        raise TrainingRejected(tuple(findings))
    links = [Link(each.kind, each.digest, each.expectation.model.name) for each in served]
    shown = [_owner(proof, trainings) for proof in rows]
    for training in trainings:
        links += _of_record(training)
        for proof, owner in zip(rows, shown, strict=True):
            if owner is training:
                findings += verify_row(proof, commitment=training.record.plan.dataset)
                findings.append(_require_root(proof, training))
                links.append(_of_row(proof))
    return tuple(links), tuple(findings)


def _owner(proof: DatasetProof, trainings: Sequence[AnyVerified]) -> AnyVerified:
    """Return the training on the data set of `proof`; where there is none, one to refuse it."""
    named = proof.commitment.digest
    return next((each for each in trainings if each.record.plan.dataset == named), trainings[0])


def _require_root(proof: DatasetProof, training: AnyVerified) -> Finding:
    """Require that the root the record shows is that of the data set which it names."""
    step, kind = "lineage/root", "dataset root"
    root = proof.commitment.root
    if training.record.dataset_root == root:
        return Finding(Status.PASS, step, _DOC, kind, root.hex())
    detail = "the record shows another root than that of the data set which it names"
    refused = Finding(Status.FAIL, step, _DOC, kind, detail, Reason.DATASET_MISMATCH)
    raise TrainingRejected((refused,))


def _of_row(proof: DatasetProof) -> Link:
    place = f"{proof.index + 1:,} of {proof.commitment.rows:,}"
    return Link("row", proof.leaf, place if proof.opening is not None else f"{place}, not opened")


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
    detail = f"served weights differ from trained: {weights or 'not measured'}, not {merged}"
    if kind == "base model":
        detail = f"the base is {weights}, and the record beside made {merged}"
    return Finding(Status.FAIL, step, _DOC, kind, detail, Reason.MODEL_MISMATCH)
