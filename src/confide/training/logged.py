"""Whether a verified training record is in a transparency log, offline: step record/14. Pure.

Clauses: docs/protocols/training-record.md §6, docs/protocols/log.md §5.2. The proof is hostile; the
verifier brings the policy: which logs and witnesses count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.errors import LogRejected, Reason
from confide.rats import Finding, Status
from confide.tlog.verify import VerifiedInclusion, verify_logged

if TYPE_CHECKING:
    from datetime import datetime

    from confide.training.record_verify import VerifiedRecord
    from confide.wire.tlog_policy import LogPolicy
    from confide.wire.tlog_proof import TlogProof

__all__ = ["verify_logged_record"]

_CLAUSE: Final = "docs/protocols/training-record.md#6"


def verify_logged_record(
    record: VerifiedRecord, *, proof: TlogProof | None, policy: LogPolicy, now: datetime
) -> VerifiedInclusion:
    """
    Establish that `record`, and with it the head of its step chain, is in a log of `policy`.

    It must not claim to have ended later than the witnesses saw it. Raises `LogRejected` with
    record/14, and the steps log/1 to log/7 where there is a proof.
    """
    if proof is None:
        raise LogRejected((_fail(Reason.EVIDENCE_MISSING, "no proof that a log has it"),))
    try:
        return verify_logged(
            proof, digest=record.digest, made=record.record.finished, policy=policy, now=now
        )
    except LogRejected as error:
        own = _fail(error.reason, str(error.failures[0]))
        raise LogRejected((own, *error.findings)) from error


def _fail(reason: Reason, detail: str) -> Finding:
    return Finding(Status.FAIL, "record/14", _CLAUSE, "record", detail, reason)
