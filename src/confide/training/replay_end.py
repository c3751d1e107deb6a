"""What a training ended with, made again from its last checkpoint: weights and metrics. Pure.

Clause: docs/protocols/training-record.md 7.14. The chain ends in a state; that the weights which
the record names are those of that state, and the metrics theirs, no step shows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.errors import Reason, TrainingRejected
from confide.inference.weights import weights_manifest
from confide.rats import Finding, Status
from confide.training.privacy_texts import privacy_texts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.training.audit import AuditedLog
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.job import Evaluation, OutputKind
    from confide.training.replay import Tolerance

__all__ = [
    "EVALUATION",
    "MADE_PARTS",
    "PRIVACY",
    "End",
    "MadeFiles",
    "compare_end",
    "last_checkpoint",
    "outputs_due",
    "parts_due",
    "require_made",
]

EVALUATION: Final = "evaluation"
PRIVACY: Final = "privacy"
MADE_PARTS: Final = ("adapter", EVALUATION, "merged", PRIVACY)


def last_checkpoint(audited: AuditedLog) -> CheckpointEntry:
    """Return where the training ended: record/10 and audit/5 hold it to the head and its step."""
    return audited.record.record.checkpoints[-1]


def outputs_due(audited: AuditedLog, tolerance: Tolerance | None) -> tuple[OutputKind, ...]:
    """Return the outputs that can be made again and compared by their digests."""
    kinds: tuple[OutputKind, ...] = ("adapter", "merged")
    there = tuple(kind for kind in kinds if kind in audited.record.record.outputs)
    # The first is a copy of what was trained; merging is arithmetic, which rounds elsewhere.
    return there if tolerance is None else there[:1]


def parts_due(audited: AuditedLog, tolerance: Tolerance | None) -> tuple[str, ...]:
    """Return the names of everything that is compared, sorted."""
    due: list[str] = [*outputs_due(audited, tolerance)]
    if tolerance is None and audited.log.evaluations is not None:
        due.append(EVALUATION)
    if tolerance is None and audited.log.recipe.privacy is not None:
        due.append(PRIVACY)
    return tuple(sorted(due))


class MadeFiles:
    """The files of outputs as they are made: hashed and not kept."""

    def __init__(self) -> None:
        self._files: dict[str, list[tuple[str, hashlib._Hash]]] = {}
        self._present: hashlib._Hash | None = None

    def begin(self, output: str, name: str) -> None:
        """Begin the file `name` of `output`."""
        self._present = hashlib.sha256()
        self._files.setdefault(output, []).append((name, self._present))

    def data(self, data: bytes) -> None:
        """Take bytes of that file. `ValueError` where none has begun."""
        if self._present is None:
            raise ValueError("data of no file")
        self._present.update(data)

    def digests(self) -> dict[str, bytes]:
        """Return the digest of each output. `ValueError` for one that is no directory."""
        return {
            output: weights_manifest((name, each.hexdigest()) for name, each in files).digest
            for output, files in self._files.items()
        }


@dataclass(frozen=True, slots=True)
class End:
    """
    What was made again: outputs and evaluations by name, and what privacy cost.

    `epsilon` is None without privacy, and where no bound is finite.
    """

    outputs: Mapping[str, bytes]
    evaluations: Mapping[str, Evaluation]
    epsilon: float | None


def compare_end(audited: AuditedLog, tolerance: Tolerance | None, end: End) -> dict[str, bool]:
    """Return of each part that is due whether what was made is what the record and the log name."""
    record, found = audited.record.record, dict[str, bool]()
    for part in parts_due(audited, tolerance):
        if part == EVALUATION:
            recorded = [each.metrics for each in audited.log.evaluations or ()]
            found[part] = [end.evaluations.get(name) for name in ("base", "tuned")] == recorded
        elif part == PRIVACY:
            found[part] = privacy_texts(audited.log.recipe, end.epsilon) == record.privacy
        else:
            found[part] = end.outputs.get(part) == record.outputs[part]
    return found


def require_made(made: Mapping[str, bool] | None) -> None:
    """Require that nothing of what was made again is another. Raises `TrainingRejected`."""
    other = [name for name, same in (made or {}).items() if not same]
    if other:
        detail = f"made again from the last checkpoint, {' and '.join(other)} came out otherwise"
        reason, clause = Reason.TRAINING_REPLAY, "docs/protocols/training-record.md#7.14"
        raise TrainingRejected(
            (Finding(Status.FAIL, "replay/3", clause, "replay", detail, reason),)
        )
