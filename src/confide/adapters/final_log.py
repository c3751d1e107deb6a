"""The `FinalityLog` port over HTTP: log a digest, wait for the witnesses, believe only a proof.

Clauses: docs/protocols/log.md 1.5, §5, 9.2. Within a bound of time it tries again; then it is
`Unavailable`, and whoever asked keeps what is not logged. Asking again logs a second entry for the
same digest, which is harmless (1.5).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.adapters.log_entry import Logged, settle_entry
from confide.errors import FormatError, LogRejected, RemoteProtocolError, Unavailable
from confide.tlog.leaf import BLINDING_BYTES, LeafOpening, PendingEntry

if TYPE_CHECKING:
    from confide.adapters.log_http import HttpLog
    from confide.ports import Clock, Entropy, Sleeper
    from confide.wire.tlog_policy import LogPolicy
    from confide.wire.tlog_proof import TlogProof

__all__ = ["HttpFinalityLog"]

# A log answers within its batch of 200 ms where its witnesses are there (log.md 8.1).
_FIRST_WAIT_SECONDS: Final = 0.2
_LONGEST_WAIT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class HttpFinalityLog:
    """One log, the policy that says whose word counts about it, and how long to wait for both."""

    log: HttpLog
    policy: LogPolicy
    clock: Clock
    entropy: Entropy
    sleeper: Sleeper
    # A log waits 10 s for its witnesses before it answers (log.md 9.2).
    seconds: float = 12.0

    async def final(self, digest: bytes) -> TlogProof:
        """
        Return the proof, verified under the policy, that `digest` (32 bytes) is logged.

        Raises `Unavailable`: no log, no quorum in time, or an answer that is not believed.
        """
        blinding = self.entropy.token(BLINDING_BYTES)
        try:
            async with asyncio.timeout(self.seconds):
                return await self._settle(PendingEntry(LeafOpening(blinding, digest)))
        except TimeoutError as error:
            raise Unavailable("the log did not make the entry final in time") from error
        except (LogRejected, FormatError, RemoteProtocolError) as error:
            raise Unavailable("the log answered with something that is no proof") from error

    async def _settle(self, entry: PendingEntry) -> TlogProof:
        wait = _FIRST_WAIT_SECONDS
        while True:
            found = await settle_entry(self.log, entry, policy=self.policy, now=self.clock.now())
            if isinstance(found, Logged):
                return found.proof
            entry = found
            await self.sleeper.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
