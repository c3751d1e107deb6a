"""Whether a verified receipt is in a transparency log, offline: step receipt/13. Pure.

Clauses: docs/protocols/receipt.md §7, docs/protocols/log.md §5.2. The proof is hostile, wherever it
came from; the verifier brings the policy: which logs and witnesses count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.errors import LogRejected, Reason
from confide.rats import Finding, Status
from confide.tlog.verify import VerifiedInclusion, verify_logged

if TYPE_CHECKING:
    from datetime import datetime

    from confide.receipts.verify import VerifiedRun
    from confide.wire.tlog_policy import LogPolicy
    from confide.wire.tlog_proof import TlogProof

__all__ = ["verify_logged_receipt"]

_CLAUSE: Final = "docs/protocols/receipt.md#7"


def verify_logged_receipt(
    run: VerifiedRun, *, proof: TlogProof | None, policy: LogPolicy, now: datetime
) -> VerifiedInclusion:
    """
    Establish that the receipt of `run` is in a log of `policy`.

    It must not claim to have ended later than the witnesses saw it. Raises `LogRejected` with
    receipt/13, and the steps log/1 to log/7 where there is a proof.
    """
    if proof is None:
        raise LogRejected((_fail(Reason.EVIDENCE_MISSING, "no proof that a log has it"),))
    try:
        return verify_logged(
            proof, digest=run.digest, made=run.statement.finished, policy=policy, now=now
        )
    except LogRejected as error:
        own = _fail(error.reason, str(error.failures[0]))
        raise LogRejected((own, *error.findings)) from error


def _fail(reason: Reason, detail: str) -> Finding:
    return Finding(Status.FAIL, "receipt/13", _CLAUSE, "receipt", detail, reason)
