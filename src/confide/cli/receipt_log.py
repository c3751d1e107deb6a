"""Whether a receipt is in a log, offline: the proof inside or beside, under the caller's policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.adapters.clock import SystemClock
from confide.cli.places import read_bounded
from confide.errors import ConfigurationError, FormatError

if TYPE_CHECKING:
    from pathlib import Path

    from confide.receipts.file import ReceiptFile
    from confide.receipts.verify import VerifiedRun
    from confide.tlog.verify import VerifiedInclusion
    from confide.wire.json import JsonValue
    from confide.wire.tlog_policy import LogPolicy
    from confide.wire.tlog_proof import TlogProof

__all__ = ["LogDemand", "log_document", "log_line", "read_demand", "unproven_line"]


@dataclass(frozen=True, slots=True)
class LogDemand:
    """
    What the caller says about logs.

    `policy`: which logs and witnesses count; `proof`: a file beside the receipt, hostile;
    `required`: whether absence is a rejection.
    """

    policy: LogPolicy | None
    proof: TlogProof | None
    required: bool

    def verify(self, file: ReceiptFile, run: VerifiedRun) -> VerifiedInclusion | None:
        """Return where the log has the receipt, None where nothing is asked. `LogRejected`."""
        proof = self.proof or file.log
        if self.policy is None or (proof is None and not self.required):
            return None
        from confide.receipts.logged import verify_logged_receipt  # noqa: PLC0415 - with a proof

        now = SystemClock().now()
        return verify_logged_receipt(run, proof=proof, policy=self.policy, now=now)


def read_demand(
    *, proof: Path | None, policy: Path | None, key: str | None, required: bool
) -> LogDemand:
    """Read what the options name. Raises `ConfigurationError`, `FormatError`."""
    if policy is not None and key is not None:
        raise ConfigurationError("--log-policy and --log-key: name one of them")
    if policy is None and key is None:
        if proof is not None or required:
            raise ConfigurationError(
                "--log-proof and --require-log need --log-policy, or --log-key: whose word counts"
            )
        return LogDemand(None, None, required=False)
    from confide.wire.tlog_proof import parse_tlog_proof  # noqa: PLC0415 - as above

    given = None if proof is None else parse_tlog_proof(read_bounded(proof, "proof"))
    return LogDemand(_policy(policy, key), given, required)


def _policy(policy: Path | None, key: str | None) -> LogPolicy:
    from confide.wire.tlog_policy import LogEntry, LogPolicy, Quorum, parse_log_policy  # noqa: PLC0415 - as above

    if policy is not None:
        return parse_log_policy(read_bounded(policy, "log policy"))
    from confide.wire.note import SignatureType, parse_verifier_key  # noqa: PLC0415 - as above

    try:
        found = parse_verifier_key(key or "")
    except FormatError as error:
        raise ConfigurationError(f"--log-key: {error.what}") from error
    if found.kind is not SignatureType.ED25519:
        raise ConfigurationError("--log-key: this is the key of a witness")
    return LogPolicy((LogEntry(found),), (), Quorum(0, ()))


def log_line(found: VerifiedInclusion) -> str:
    """Return what stands beside `log` on the screen, for a proof that holds."""
    head = found.head
    place = f"{head.origin} #{found.index} of {head.size}"
    if head.logged_by is None:
        return f"{place}; no witness vouches for a time"
    names = ", ".join(each.witness for each in head.cosigned)
    return f"{place}, there since {head.logged_by:%F %T} UTC by {names}"


def unproven_line(file: ReceiptFile, demand: LogDemand) -> str:
    """Return what stands beside `log` where nothing was verified."""
    if file.log is not None and demand.policy is None:
        return "not checked: a proof is inside; say with --log-policy whose word counts"
    if file.log is not None or demand.proof is not None:
        return "a proof is there, and shows nothing while a step above fails"
    return "no proof: a receipt that only its holder has can be denied (confide log add)"


def log_document(found: VerifiedInclusion) -> dict[str, JsonValue]:
    """Return the member `log` of a result, for a proof that holds."""
    head = found.head
    return {
        "state": "final",
        "origin": head.origin,
        "index": found.index,
        "size": head.size,
        "logged_by": None if head.logged_by is None else f"{head.logged_by:%FT%TZ}",
        "witnesses": [{"name": each.witness, "at": f"{each.at:%FT%TZ}"} for each in head.cosigned],
    }
