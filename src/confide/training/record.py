"""The training record: SLSA Provenance v1 about the weights that came out. Value and bytes. Pure.

Clauses: docs/protocols/training-record.md §2. `issue_training_record` is the node's side,
`parse_training_record` the verifier's: it believes nothing (training/record_verify.py does).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from confide.training.predicates import (
    Descriptor,
    HardwareOfBoot,
    TestResult,
    encode_hardware,
    encode_test_result,
    encode_weights,
)
from confide.training.rank_statement import encode_ranks
from confide.training.record_core import RecordCore
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from confide.inference.weights import WeightsManifest
    from confide.receipts.issue import ReceiptSigner
    from confide.training.boots import Turn
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.plan import TrainingPlan
    from confide.training.ranks import Seat
    from confide.wire.dsse import Envelope
    from confide.wire.json import JsonValue

__all__ = [
    "BUILD_TYPE",
    "MAX_CHECKPOINTS",
    "IssuedRecord",
    "TrainingOutput",
    "TrainingRecord",
    "environment_texts",
    "issue_training_record",
    "listed_checkpoints",
]

BUILD_TYPE: Final = "confide:training/v1"
# From: docs/protocols/training-record.md 2.4.
MAX_CHECKPOINTS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord(RecordCore):
    """
    What a training record says; believed only inside a `VerifiedRecord`.

    `head` is the step chain after `steps` of `planned` steps, `events_head` the event chain
    (training.md 6.4), `owner_log` the digest of what only the owner opens.
    """

    plan: TrainingPlan
    environment: Mapping[str, str]
    privacy: Mapping[str, str] | None
    steps: int
    planned: int
    head: bytes
    events_head: bytes
    turns: tuple[Turn, ...]
    turns_head: bytes
    checkpoints: tuple[CheckpointEntry, ...]
    owner_log: bytes

    @property
    def main(self) -> str:
        """The weights that can be served."""
        return "merged"

    def payload(self) -> bytes:
        """Return the canonical in-toto Statement."""
        return self.encode(
            BUILD_TYPE,
            internal={
                "world": self.plan.world,
                "environment": dict(self.environment),
                "privacy": None if self.privacy is None else dict(self.privacy),
            },
            dependencies={"template": self.plan.template, "tokenizer": self.plan.tokenizer},
            first=self._heads(),
            last=[
                Descriptor(
                    f"checkpoint/{each.step}",
                    each.sealed,
                    {"chain": each.chain.hex(), "state": each.state.hex()},
                )
                for each in self.checkpoints
            ],
        )

    def _heads(self) -> tuple[Descriptor, ...]:
        chain = {"steps": self.steps, "planned": self.planned}
        turns: list[JsonValue] = [turn.document() for turn in self.turns]
        return (
            Descriptor("step-chain", self.head, chain),
            Descriptor("event-chain", self.events_head),
            Descriptor("turns", self.turns_head, {"turns": turns}),
            Descriptor("owner-log", self.owner_log),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOutput:
    """
    What came out, as the node measured it: manifests by name (`merged`, perhaps `adapter`).

    `base_metrics` and `tuned_metrics` are commitments; None exactly where nothing is held out.
    """

    manifests: Mapping[str, WeightsManifest]
    base_metrics: bytes | None
    tuned_metrics: bytes | None
    better: bool


@dataclass(frozen=True, slots=True)
class IssuedRecord:
    """A signed record and the signed statements beside it, by name."""

    record: Envelope
    statements: Mapping[str, Envelope]


def issue_training_record(
    signer: ReceiptSigner,
    record: TrainingRecord,
    *,
    output: TrainingOutput,
    boots: Sequence[HardwareOfBoot],
    seats: Sequence[Sequence[Seat]] = (),
) -> IssuedRecord:
    """
    Sign `record` and the statements beside it; its `outputs` and `statements` are filled in here.

    `seats` are those of each boot, exactly where the plan has several ranks.

    `IssuedRecord.record.digest` is what the node must have quoted (purpose `claim`, the owner's
    nonce) for it to count. `ValueError` where one model alone was evaluated, or seats are missing.
    """
    if (record.plan.world > 1) != bool(seats) or len(seats) not in {0, len(boots)}:
        raise ValueError("every boot of a job of several ranks has seats, and no other")
    if (output.base_metrics is None) != (output.tuned_metrics is None):
        raise ValueError("both models are evaluated, or none")
    outputs = {name: manifest.digest for name, manifest in output.manifests.items()}
    payloads = {"hardware": encode_hardware("merged", outputs["merged"], boots)}
    if seats:
        payloads["ranks"] = encode_ranks(outputs["merged"], seats)
    for name, manifest in output.manifests.items():
        payloads[f"weights/{name}"] = encode_weights(name, manifest)
    if output.base_metrics is not None and output.tuned_metrics is not None:
        plan = record.plan
        base = TestResult(plan.base, plan.digest, output.base_metrics)
        tuned = TestResult(outputs["merged"], plan.digest, output.tuned_metrics, output.better)
        payloads["evaluation/base"] = encode_test_result("base", base)
        payloads["evaluation/tuned"] = encode_test_result("merged", tuned)
    statements = {name: signer.seal(payload) for name, payload in payloads.items()}
    digests = {name: envelope.digest for name, envelope in statements.items()}
    whole = replace(record, outputs=outputs, statements=digests)
    return IssuedRecord(signer.seal(whole.payload()), statements)


def environment_texts(environment: Mapping[str, JsonValue]) -> dict[str, str]:
    """Return `environment` (training.md 9.4) as the record has it: flat, no text as JSON."""
    found: dict[str, str] = {}
    for name, value in environment.items():
        if isinstance(value, dict):
            inner = environment_texts(value)
            found |= {f"{name}.{below}": text for below, text in inner.items()}
        else:
            found[name] = value if isinstance(value, str) else jcs([value]).decode()[1:-1]
    return found


def listed_checkpoints(
    checkpoints: Sequence[CheckpointEntry], turns: Sequence[Turn]
) -> tuple[CheckpointEntry, ...]:
    """
    Return at most 128 of `checkpoints`, in order: 2.4.

    Those where a turn stands, the last one, and others at even distance.
    """
    wanted = {turn.step for turn in turns} | {each.step for each in checkpoints[-1:]}
    kept = {each.step for each in checkpoints if each.step in wanted}
    rest = [each.step for each in checkpoints if each.step not in kept]
    room = MAX_CHECKPOINTS - len(kept)
    if room < 0:
        raise ValueError("more places to take training up from than a record lists")
    stride = max(1, -(-len(rest) // room)) if room else len(rest) + 1
    kept.update(rest[stride - 1 :: stride])
    return tuple(each for each in checkpoints if each.step in kept)
