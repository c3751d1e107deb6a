"""The boots of one job, held to what they proved before their first step. Pure.

Clauses: docs/protocols/training-record.md §6 (record/6 to record/8), training-node.md 7.5
(handover/3, /5, /6). A step that uses these is the one that refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from confide.appraisal.eventlog import run_commitment
from confide.appraisal.steps import Refused, established
from confide.errors import Reason
from confide.receipts.held import appraise_held
from confide.training.boots import (
    RUN_EVENT,
    boot_claim,
    boot_nonce,
    introductions,
    machine_digest,
    turns_head,
)
from confide.training.chain import chain_start
from confide.training.predicates import HardwareOfBoot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from confide.appraisal.known import Known
    from confide.appraisal.node import VerifiedNode
    from confide.expectation import Expectation
    from confide.rats import Finding
    from confide.training.boots import Turn
    from confide.trust.roots import Roots
    from confide.wire.evidence import EvidenceBundle

__all__ = ["ToldBoots", "hardware_of", "prove_boots", "require_base", "require_job"]


class _Verifying(Protocol):
    roots: Roots
    now: datetime | None
    expectation: Expectation | None
    known: Known
    nested: list[Finding]


@dataclass(frozen=True, slots=True)
class ToldBoots:
    """
    The boots of `job` as somebody tells of them: turns, evidence, and what that shows.

    `nonce` is the owner's, `plan` a digest.
    """

    job: bytes
    nonce: bytes
    plan: bytes
    turns: Sequence[Turn]
    bundles: Sequence[EvidenceBundle]
    hardware: Sequence[HardwareOfBoot]


def prove_boots(state: _Verifying, told: ToldBoots) -> list[VerifiedNode]:
    """
    Return each boot of `told` as it was proven before its first step, for this job and its turns.

    Judged by the node's own clock then, unless `state` names a time. Raises `Refused`.
    """
    found, start = introductions(told.turns), chain_start(told.plan)
    if not len(found) == len(told.bundles) == len(told.hardware):
        raise Refused(Reason.TRAINING_MACHINE, "turns, evidence and statement count other boots")
    proven: list[VerifiedNode] = []
    for boot, index in enumerate(found):
        turn = told.turns[index]
        node = appraise_held(
            state,
            told.bundles[boot],
            subject=f"training-node (boot {boot})",
            role="model",
            purpose="claim",
            nonce=boot_nonce(told.nonce, boot),
            claim=boot_claim(
                job=told.job,
                plan=told.plan,
                turn=turn,
                turns=turns_head(start, told.turns[: index + 1]),
            ),
            now=turn.at if state.now is None else state.now,
        )
        if hardware_of(node) != told.hardware[boot]:
            raise Refused(Reason.TRAINING_MACHINE, "another machine than the statement names")
        proven.append(node)
    return proven


def hardware_of(node: VerifiedNode) -> HardwareOfBoot:
    """Return what is said of a boot that was proven as `node`."""
    serials = tuple(device.ueid for device in established(node.gpus).devices)
    machine = machine_digest(node.platform, serials)
    return HardwareOfBoot(node.keyset.digest, machine, node.evidence, len(serials))


def require_job(nodes: Sequence[VerifiedNode], *, job: bytes, plan: bytes) -> None:
    """Require that RTMR3 of each of `nodes` holds this job and plan."""
    payload = run_commitment(RUN_EVENT, run=job, digest=plan)
    for node in nodes:
        if not node.events.has_run_event(RUN_EVENT, payload):
            raise Refused(Reason.TRAINING_PLAN, "RTMR3 does not hold this job and plan")


def require_base(nodes: Sequence[VerifiedNode], *, base: bytes, software: bytes) -> None:
    """Require that each of `nodes` measured `base`, and runs `software`."""
    for node in nodes:
        model = node.events.model
        if model is None or model.weights != base:
            raise Refused(Reason.MODEL_MISMATCH, "a boot measured another base model")
        if node.events.node.software != software:
            raise Refused(Reason.NODE_SOFTWARE_MISMATCH, "a boot runs other software")
