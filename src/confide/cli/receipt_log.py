"""Whether a receipt is in a log, offline: the proof that came along, under the caller's policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.adapters.clock import SystemClock
from confide.cli.places import read_bounded
from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from confide.tlog.verify import VerifiedInclusion
    from confide.wire.json import JsonValue
    from confide.wire.tlog_policy import LogPolicy
    from confide.wire.tlog_proof import TlogProof

__all__ = ["GivenProof", "log_document", "log_line", "read_logged"]


@dataclass(frozen=True, slots=True)
class GivenProof:
    """A proof file, hostile, and which logs and witnesses the caller believes."""

    proof: TlogProof
    policy: LogPolicy

    def verify(self, digest: bytes) -> VerifiedInclusion:
        """Require that the log has what has this SHA-256. Raises `LogRejected`."""
        from confide.tlog.verify import verify_logged  # noqa: PLC0415 - for receipts with a proof

        return verify_logged(self.proof, digest=digest, policy=self.policy, now=SystemClock().now())


def read_logged(proof: Path | None, policy: Path | None) -> GivenProof | None:
    """Read both files, or neither. Raises `ConfigurationError`, `FormatError`."""
    if proof is None and policy is None:
        return None
    if proof is None or policy is None:
        raise ConfigurationError("--log-proof and --log-policy go together: what, and who counts")
    from confide.wire.tlog_policy import parse_log_policy  # noqa: PLC0415 - as above
    from confide.wire.tlog_proof import parse_tlog_proof  # noqa: PLC0415

    return GivenProof(
        parse_tlog_proof(read_bounded(proof, "proof")),
        parse_log_policy(read_bounded(policy, "log policy")),
    )


def log_line(found: VerifiedInclusion | None) -> str:
    """Return what stands beside `log` on the screen."""
    if found is None:
        return "no proof given: a receipt that only its holder has can be denied (confide log add)"
    head = found.head
    if head.logged_by is None:
        return f"{head.origin} #{found.index}; no witness vouches for a time"
    names = ", ".join(each.witness for each in head.cosigned)
    return f"{head.origin} #{found.index}, there since {head.logged_by:%F %T} UTC by {names}"


def log_document(found: VerifiedInclusion | None) -> JsonValue:
    """Return the member `log` of a result; None without a proof."""
    if found is None:
        return None
    head = found.head
    return {
        "origin": head.origin,
        "index": found.index,
        "size": head.size,
        "logged_by": None if head.logged_by is None else f"{head.logged_by:%FT%TZ}",
        "witnesses": [{"name": each.witness, "at": f"{each.at:%FT%TZ}"} for each in head.cosigned],
    }
