"""Handovers of computed jobs: as their last node signs them, edited, signed by dishonest nodes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

from arithmetic import ComputedJob
from nodes import NOW, SOFTWARE
from runs import expectation_and_roots
from trainings import train

from confide.errors import Reason, TrainingRejected
from confide.training.chain import event_link, event_start
from confide.training.checkpoints import checkpoint_of
from confide.training.handover import Handover, HandoverFile, parse_handover
from confide.training.handover_verify import Asked, VerifiedHandover, verify_handover
from confide.training.predicates import parse_hardware
from confide.wire.dsse import Envelope

if TYPE_CHECKING:
    from confide.training.owner_log import OwnerLog

HANDED = ComputedJob("handed")


def log_until(job: ComputedJob, step: int) -> OwnerLog:
    """The owner's log of the first steps of `job`."""
    return replace(
        job.log,
        steps=job.log.steps[:step],
        events=tuple(event for event in job.log.events if event.step <= step),
        evaluations=None,
        evaluated=tuple(each for each in job.log.evaluated if each.step <= step),
    )


def told(job: ComputedJob, step: int = 16, *, log: OwnerLog | None = None) -> Handover:
    """What the last node of `job` says when it stands at `step`."""
    trained, until = train(job), log or log_until(job, step)
    record = trained.record
    return Handover(
        job=record.job,
        nonce=record.nonce,
        keyset=trained.node.keys.keyset.digest,
        expectation=record.expectation,
        software=SOFTWARE,
        plan=job.plan,
        root=job.commitment.root,
        planned=job.planned,
        environment=dict(job.environment),
        turns=record.turns,
        boots=parse_hardware(trained.file.statements["hardware"].payload, "merged")[1],
        log=hashlib.sha256(until.encode()).digest(),
        events=reduce(event_link, until.events, event_start(job.plan.digest)),
        checkpoint=checkpoint_of(until.events[-1]),
        at=NOW,
    )


def handed(
    job: ComputedJob = HANDED, step: int = 16, *, log: OwnerLog | None = None, **said: Any
) -> HandoverFile:
    """The handover of `job`; `said` is what a dishonest node says instead, and signs."""
    trained, until = train(job), log or log_until(job, step)
    payload = replace(told(job, step, log=until), **said).payload()
    return HandoverFile(
        trained.node.keys.signer.seal(payload),
        until.encode(),
        trained.file.expectation,
        trained.file.boots,
    )


def edited(file: HandoverFile, **said: Any) -> HandoverFile:
    """`file` with its payload edited by somebody who holds no key."""
    payload = replace(parse_handover(file.envelope.payload), **said).payload()
    return replace(file, envelope=Envelope(payload, file.envelope.signatures))


def asked_of(job: ComputedJob = HANDED, **changed: Any) -> Asked:
    """What a node reads of the request for `job`."""
    asked = Asked(
        expectation=job.expectation,
        nonce=train(job).record.nonce,
        recipe=job.recipe,
        dataset=job.commitment,
        validation=None,
        base=job.plan.base,
        software=SOFTWARE,
    )
    return replace(asked, **changed)


def verify(file: HandoverFile, asked: Asked | None = None, **changed: Any) -> VerifiedHandover:
    """Verify as another node does."""
    facts: dict[str, Any] = {"roots": expectation_and_roots()[1], "now": NOW} | changed
    return verify_handover(file.encode(), asked or asked_of(), **facts)


def refusals(file: HandoverFile, asked: Asked | None = None, **changed: Any) -> dict[str, Reason]:
    """The steps that refuse `file`, with reasons; it must be refused."""
    try:
        verify(file, asked, **changed)
    except TrainingRejected as error:
        return {
            finding.step.removeprefix("handover/"): finding.reason
            for finding in error.findings
            if finding.step.startswith("handover/") and finding.reason is not None
        }
    raise AssertionError("a bad handover was accepted")
