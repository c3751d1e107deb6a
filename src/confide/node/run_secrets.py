"""What one run has of its broker: secrets and state in, state out, the lease given back.

Clauses: docs/protocols/state.md §2, §3. Nothing is asked for that the Expectation does not list.
Whatever does not come refuses the run before anything is executed. A state is saved only after the
agent ended by itself with status 0; in every other case the old one stays.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from confide.agents.environment import require_variable
from confide.agents.sandbox import SECRET_BYTES
from confide.agents.scrub import Scrubber
from confide.agents.state_files import pack_state, packed_bytes, unpack_state
from confide.agents.state_seal import open_state, seal_state
from confide.errors import (
    ConfigurationError,
    FormatError,
    Reason,
    Rejected,
    RemoteProtocolError,
    RunRefused,
    Unavailable,
)
from confide.node.scrubbed import ScrubbedSession
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from confide.agents.sandbox import SandboxExit
    from confide.broker.released import OpenedState
    from confide.expectation import Expectation, SecretUse
    from confide.ports import SandboxSession, SecretSession
    from confide.receipts.transcript import Transcript
    from confide.wire.dsse import Envelope

__all__ = ["RunSecrets"]


class RunSecrets:
    """
    The broker's side of one run, driven by `node.run.Run`. `close` must be called.

    `deliver` → (agent runs) → `keep`. `releases` are the broker's receipts, in transcript order.
    """

    def __init__(
        self, expectation: Expectation, transcript: Transcript, session: SecretSession
    ) -> None:
        self._expectation = expectation
        self._transcript = transcript
        self._session = session
        self._opened: OpenedState | None = None
        self._scrubbed: ScrubbedSession | None = None
        self._closed = False
        self.releases: list[Envelope] = []

    @property
    def changed(self) -> tuple[tuple[str, int], ...]:
        """Each place that was scrubbed, and how often."""
        return () if self._scrubbed is None else tuple(self._scrubbed.changed)

    async def deliver(self, sandbox: SandboxSession) -> SandboxSession:
        """
        Put secrets and state into `sandbox`; return the session through which the run goes on.

        Raises what the broker refuses with, and `RunRefused` for what does not fit.
        """
        values: dict[str, bytes] = {}
        for use in self._expectation.broker.uses:
            values[use.name] = await self._deliver_one(sandbox, use)
            if sum(map(len, values.values())) > SECRET_BYTES:
                raise _refuse(Reason.LIMIT_EXCEEDED, f"secrets above {SECRET_BYTES} bytes")
        if self._expectation.broker.state:
            await self._open_state(sandbox)
        if not values:
            return sandbox
        limit = self._expectation.limits.output_bytes
        scrubber = await asyncio.to_thread(Scrubber, values)
        self._scrubbed = ScrubbedSession(sandbox, scrubber, output_bytes=limit)
        return self._scrubbed

    async def _deliver_one(self, sandbox: SandboxSession, use: SecretUse) -> bytes:
        released = await self._session.secret(use.name)
        if released.name != use.name:
            raise _refuse(Reason.SECRET_MISMATCH, f"another secret than {use.name} came")
        self._transcript.append(
            "secret-released",
            name=use.name,
            version=released.version,
            receipt=released.receipt.digest,
        )
        self.releases.append(released.receipt)
        if use.variable is None:
            await sandbox.write_secret(use.name, released.value)
        else:
            await sandbox.set_variable(use.variable, _variable(use, released.value))
        return released.value

    async def _open_state(self, sandbox: SandboxSession) -> None:
        opened = await self._session.open_state()
        if opened.resource != self._resource:
            raise _refuse(Reason.SECRET_MISMATCH, "the state of another agent came")
        archive = await asyncio.to_thread(
            open_state,
            opened.key,
            opened.sealed,
            resource=opened.resource,
            counter=opened.counter,
            digest=opened.digest,
        )
        if archive is not None:
            limit = self._expectation.limits.state_bytes
            entries = await asyncio.to_thread(unpack_state, archive, max_bytes=limit)
            await sandbox.restore_state(entries)
        self._transcript.append(
            "state-opened",
            counter=opened.counter,
            digest=opened.digest,
            receipt=opened.receipt.digest,
        )
        self.releases.append(opened.receipt)
        # What was read is in /state: nothing holds it a second time while the agent runs.
        self._opened = replace(opened, sealed=b"")

    @property
    def _resource(self) -> str:
        return self._expectation.broker.state_resource(self._expectation.name)

    async def keep(self, sandbox: SandboxSession, end: SandboxExit, *, salt: bytes) -> None:
        """
        Save the state where the agent ended by itself with status 0; say why where it was not.

        `salt` is 32 fresh random bytes. The lease is over when this returns.
        """
        if self._opened is None:
            return
        kept: str | None = "agent-failed"
        try:
            if end.succeeded:
                kept = await self._save(sandbox, self._opened, salt)
        except Rejected as error:
            kept = error.reason.value
        except (FormatError, RemoteProtocolError, Unavailable):
            # Sent, perhaps, and no answer: the broker knows, this run does not.
            kept = "unavailable"
        finally:
            await self.close()
        if kept is not None:
            self._transcript.append("state-kept", reason=kept)

    async def _save(self, sandbox: SandboxSession, opened: OpenedState, salt: bytes) -> str | None:
        """Return None when it was saved, the reason of `state-kept` otherwise."""
        tree = await sandbox.read_state()
        if tree.over or packed_bytes(tree.entries) > self._expectation.limits.state_bytes:
            return "too-large"
        for left in tree.left_out:
            self._transcript.append("state-left-out", outcome=left.why)
        archive = await asyncio.to_thread(pack_state, tree.entries)
        counter = opened.counter + 1
        sealed = await asyncio.to_thread(
            seal_state, opened.key, archive, resource=opened.resource, counter=counter, salt=salt
        )
        receipt = await self._session.save_state(sealed)
        digest = hashlib.sha256(sealed).digest()
        self._transcript.append(
            "state-saved", counter=counter, digest=digest, receipt=receipt.digest
        )
        self.releases.append(receipt)
        return None

    async def close(self) -> None:
        """Give back a lease that was not saved."""
        if not self._closed:
            self._closed = True
            await self._session.close()


def _variable(use: SecretUse, value: bytes) -> str:
    """Return `value` as the text of the variable of `use`."""
    try:
        text = value.decode("utf-8")
        require_variable(use.variable or "", text)
    except (UnicodeDecodeError, ConfigurationError) as error:
        detail = f"{use.name} is nothing that an environment variable can hold; use a file"
        raise _refuse(Reason.BROKER_FORMAT, detail) from error
    return text


def _refuse(reason: Reason, detail: str) -> RunRefused:
    clause = "docs/protocols/state.md#2"
    return RunRefused((Finding(Status.FAIL, "state/2.1", clause, "agent-node", detail, reason),))
