"""Whether a verified training record is in a log, offline: steps record/14, image/11. Pure.

Clauses: docs/protocols/training-record.md §6, docs/protocols/training-image.md §5, log.md §5.2. The
proof is hostile; the verifier brings the policy: which logs and witnesses count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.errors import LogRejected, Reason
from confide.rats import Finding, Status
from confide.tlog.verify import VerifiedInclusion, verify_logged
from confide.training.image_record import ImageRecord

if TYPE_CHECKING:
    from datetime import datetime

    from confide.training.any_record import AnyVerified
    from confide.wire.tlog_policy import LogPolicy
    from confide.wire.tlog_proof import TlogProof

__all__ = ["verify_logged_record"]

_STEPS: Final = ("record/14", "docs/protocols/training-record.md#6")
_IMAGE: Final = ("image/11", "docs/protocols/training-image.md#5")


def verify_logged_record(
    record: AnyVerified, *, proof: TlogProof | None, policy: LogPolicy, now: datetime
) -> VerifiedInclusion:
    """
    Establish that `record`, and with it the head of its step chain if any, is in a log of `policy`.

    It must not claim to have ended later than the witnesses saw it. Raises `LogRejected` with
    record/14 or image/11, and the steps log/1 to log/7 where there is a proof.
    """
    step = _IMAGE if isinstance(record.record, ImageRecord) else _STEPS
    if proof is None:
        raise LogRejected((_fail(step, Reason.EVIDENCE_MISSING, "no proof that a log has it"),))
    try:
        return verify_logged(
            proof, digest=record.digest, made=record.record.finished, policy=policy, now=now
        )
    except LogRejected as error:
        own = _fail(step, error.reason, str(error.failures[0]))
        raise LogRejected((own, *error.findings)) from error


def _fail(step: tuple[str, str], reason: Reason, detail: str) -> Finding:
    return Finding(Status.FAIL, *step, "record", detail, reason)
