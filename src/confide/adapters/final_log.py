"""The `FinalityLog` port over HTTP: log a digest, wait for the witnesses, believe only a proof.

Clauses: docs/protocols/log.md 1.5, §5, 9.2. Within a bound of time it tries again; then it is
`Unavailable`, and whoever asked keeps what is not logged. Asking again logs a second entry for the
same digest, which is harmless (1.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.adapters.log_entry import Logged, wait_until_final
from confide.errors import LogRejected, Unavailable
from confide.tlog.leaf import BLINDING_BYTES, LeafOpening, PendingEntry

if TYPE_CHECKING:
    from confide.adapters.log_http import HttpLog
    from confide.ports import Clock, Entropy
    from confide.wire.tlog_policy import LogPolicy
    from confide.wire.tlog_proof import TlogProof

__all__ = ["HttpFinalityLog"]

# The entry is never kept, so nobody has to find the policy that it waits for.
_NOT_KEPT: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class HttpFinalityLog:
    """One log, the policy that says whose word counts about it, and how long to wait for both."""

    log: HttpLog
    policy: LogPolicy
    clock: Clock
    entropy: Entropy
    # A log holds an answer 5 s for its witnesses (log.md 9.2).
    seconds: float = 12.0

    async def final(self, digest: bytes) -> TlogProof:
        """
        Return the proof, verified under the policy, that `digest` (32 bytes) is logged.

        Raises `Unavailable`: no log, no quorum in time, or an answer that is not believed.
        """
        opening = LeafOpening(self.entropy.token(BLINDING_BYTES), digest)
        try:
            found = await wait_until_final(
                self.log,
                PendingEntry(opening, _NOT_KEPT),
                made=None,
                policy=self.policy,
                clock=self.clock,
                wait_seconds=self.seconds,
                keep=_forget,
            )
        except LogRejected as error:
            raise Unavailable("the log answered with something that is no proof") from error
        if isinstance(found, Logged):
            return found.proof
        raise Unavailable(found.why)


def _forget(_entry: PendingEntry) -> None:
    """Whoever asks again logs the digest again."""
