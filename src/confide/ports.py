"""The ports: Protocols only. `adapters/` makes them real, `simulator/` makes them byte-exact fakes.

Everything here is asynchronous or instantaneous; an implementation that blocks runs in a worker
thread of its own. An edge that fails raises `Unavailable`; it never answers with a default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from confide.agents.session import NetworkEndpoints, Sandbox, SandboxSession
from confide.appraisal.gpu_control import GpuControl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
    from datetime import datetime

    from confide.appraisal.provenance import SigstoreIdentity, SigstoreProof
    from confide.broker.record import Change, Mark, Record, Summary
    from confide.broker.released import OpenedState, ReleasedSecret
    from confide.inference.plan import EngineRoutes
    from confide.tenancy.ledger import Operation, Outcome
    from confide.training.batches import Batch
    from confide.training.chain import StepRecord
    from confide.training.job import Evaluation, OutputKind, PreparedTraining, TrainingJob
    from confide.wire.dsse import Envelope
    from confide.wire.endorsements import SnpEndorsement
    from confide.wire.evidence import GpuEvidence, NvidiaEndorsements
    from confide.wire.note import VerifierKey
    from confide.wire.rtmr_log import RuntimeEvent
    from confide.wire.service import SnpPart
    from confide.wire.tlog_proof import TlogProof
    from confide.wire.witness import AddCheckpoint, WitnessReply

__all__ = [
    "Clock",
    "CollateralSource",
    "Entropy",
    "FinalityLog",
    "GpuControl",
    "GpuEvidenceSource",
    "KeyStore",
    "LogStore",
    "NetworkEndpoints",
    "ProvenanceVerifier",
    "QuoteSource",
    "ReferenceSource",
    "Sandbox",
    "SandboxSession",
    "SecretSession",
    "Sleeper",
    "SnpSource",
    "TenantStore",
    "TokenKeySource",
    "Trainer",
    "Upstream",
    "UpstreamResponse",
    "Witness",
]


class Clock(Protocol):
    """The time of the rim."""

    def now(self) -> datetime:
        """Return the current time, aware, in UTC."""
        ...


class Entropy(Protocol):
    """The randomness of the rim."""

    def token(self, size: int) -> bytes:
        """Return `size` bytes fit for keys and nonces."""
        ...


class QuoteSource(Protocol):
    """A TDX guest: quotes, and the one register that software may extend."""

    async def quote(self, report_data: bytes) -> tuple[bytes, tuple[RuntimeEvent, ...]]:
        """
        Return a quote over exactly these 64 bytes, and the runtime log as of that quote.

        No event may be extended between the two: an implementation serialises them.
        """
        ...

    async def extend(self, event: RuntimeEvent) -> None:
        """Extend RTMR3 with `event` and append it to the runtime log, or do neither."""
        ...

    def firmware_log(self) -> bytes:
        """Return the CCEL: the boot's own log of RTMR0 to RTMR2."""
        ...


class GpuEvidenceSource(Protocol):
    """The confidential GPUs of this machine."""

    async def collect(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        """Return one signed report with its chain for each device, all over this 32-byte nonce."""
        ...


class CollateralSource(Protocol):
    """Intel's statements about a platform: TCB info, QE identity, CRLs."""

    async def collateral(self, quote: bytes) -> bytes:
        """Return the collateral JSON for the platform that signed `quote`."""
        ...


class ReferenceSource(Protocol):
    """NVIDIA's statements about a device: reference manifests and certificate status."""

    async def endorsements(self, devices: tuple[GpuEvidence, ...]) -> NvidiaEndorsements:
        """Return the manifests and OCSP answers that appraising `devices` needs."""
        ...


class SnpSource(Protocol):
    """AMD's statements about a chip: its certificate, the chain above it, what was revoked."""

    async def endorsement(self, part: SnpPart) -> SnpEndorsement:
        """Return the certificates for the key that signed `part.report`."""
        ...


class TokenKeySource(Protocol):
    """The keys of NVIDIA's remote attestation service."""

    async def keys(self) -> bytes:
        """Return the key set as served: a token can be verified later only with these bytes."""
        ...


class ProvenanceVerifier(Protocol):
    """Sigstore bundles under one trusted root: arithmetic alone, without a network."""

    def verify(
        self, bundle: bytes, *, sha256: bytes, policy: tuple[SigstoreIdentity, ...]
    ) -> SigstoreProof:
        """Return the proof that one of `policy` signed `sha256`; `EvidenceRejected` where not."""
        ...


class Sleeper(Protocol):
    """Waiting, of the rim."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...


class UpstreamResponse(Protocol):
    """One answer of an engine, its head read and its body not yet."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def content_type(self) -> str:
        """The content type, "" where none was given; the only header that comes through."""
        ...

    @property
    def member(self) -> int | None:
        """Which engine of a pool answered, from 0; None where there is one."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the body, once; `Unavailable` when it breaks off, stalls or is too much."""
        ...

    async def close(self) -> None:
        """Let go of the answer; an unread rest closes the engine's connection."""
        ...


class Upstream(Protocol):
    """An OpenAI-compatible engine on this machine, or a pool of them."""

    async def forward(
        self,
        path: str,
        body: bytes,
        *,
        method: str = "POST",
        content_type: str = "application/json",
        repeatable: bool = True,
    ) -> UpstreamResponse:
        """
        Return the head of the answer; `Overloaded` where nothing was sent, or `Unavailable`.

        Cancelling closes the engine's connection; the caller closes the answer.
        """
        ...

    async def probe(self) -> EngineRoutes:
        """Find out which endpoints the engine has, without making it work."""
        ...


class LogStore(Protocol):
    """
    Where a transparency log keeps its files: docs/protocols/log.md §8. One writer at a time.

    A name is a relative path as it is served (`tile/0/000`). Every method blocks: call them from a
    worker thread. Each raises `Unavailable`; after that nothing is known about what was written.
    """

    def read(self, name: str) -> bytes | None:
        """Return a file, or None where there is none."""
        ...

    def add(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Write new files; durable, each whole, when this returns. Leftovers are replaced."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Put `data` in the place of a file: a reader sees the old one or the new; durable."""
        ...

    def discard_partial(self, names: Sequence[str]) -> None:
        """Remove the partial tiles of these full ones; they may stay where that is not possible."""
        ...

    def close(self) -> None:
        """Let another writer in."""
        ...


class Witness(Protocol):
    """One witness of a transparency log: docs/protocols/log.md §4."""

    @property
    def key(self) -> VerifierKey:
        """The key that its cosignatures verify under."""
        ...

    async def add_checkpoint(self, request: AddCheckpoint) -> WitnessReply:
        """Ask for a cosignature. `Unavailable` without an answer, `RemoteProtocolError` by it."""
        ...


class FinalityLog(Protocol):
    """A transparency log together with whose word counts about it."""

    async def final(self, digest: bytes) -> TlogProof:
        """Return the proof, verified, that `digest` is logged and witnessed; or `Unavailable`."""
        ...


class TenantStore(Protocol):
    """
    Where keys are found and usage is written: docs/protocols/tenancy.md §4. Every method blocks.

    Raises `Unavailable`; after that nothing is known about what was written.
    """

    def work(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Do all `operations` in one transaction, or none; answers in the order they were asked."""
        ...


class KeyStore(Protocol):
    """
    Where a broker keeps its sealed records: docs/protocols/broker.md §7. Every method blocks.

    Raises `Unavailable`; after a failed `apply` nothing or everything of it was written.
    """

    def header(self) -> bytes | None:
        """Return the header of the store, None for a store that was not begun."""
        ...

    def begin(self, header: bytes, records: Iterable[Record] = ()) -> None:
        """
        Write the header of an empty store, and `records` as they are: all or nothing.

        `ConfigurationError` where there is one. What `records` raises leaves the store empty.
        """
        ...

    def replace_header(self, header: bytes) -> None:
        """Put another header in its place: the same master key under another lock."""
        ...

    def read(self, kind: str, row: str) -> Record | None:
        """Return one record, None where there is none."""
        ...

    def records(self, kind: str | None = None) -> Iterator[Record]:
        """Iterate over the records of one kind, or all, as of one moment, in order of kind, row."""
        ...

    def marks(self) -> Iterator[Mark]:
        """Iterate over the marks of all records, as of one moment, in the same order."""
        ...

    def apply(self, changes: Sequence[Change], summary: Summary | None = None) -> bool:
        """
        Make all `changes`, durable when this returns; False where a revision moved: none.

        With `summary` its record changes with them, in the same transaction: it is asked where no
        other writer is between, and what it raises leaves everything as it was. `ValueError` for
        two changes of one record.
        """
        ...

    def close(self) -> None:
        """Let go of the store."""
        ...


class SecretSession(Protocol):
    """
    A broker, after the attestation of one run: docs/protocols/broker.md §4, state.md §4.

    Every method raises `ReleaseRefused` with the broker's reason, `Unavailable` without an answer,
    `RemoteProtocolError` for one that is none. What is returned was verified under the key that
    the Expectation names.
    """

    async def secret(self, name: str) -> ReleasedSecret:
        """Return the secret that the Expectation lists as `name`."""
        ...

    async def open_state(self) -> OpenedState:
        """Open the state of this Expectation's agent, under a lease that this session holds."""
        ...

    async def save_state(self, sealed: bytes) -> Envelope:
        """Save what was opened, one counter on; return the broker's receipt. Ends the lease."""
        ...

    async def close(self) -> None:
        """Give a lease back that was not saved; never raises."""
        ...


class Trainer(Protocol):
    """
    A training loop that computes any step from the state before it: docs/protocols/training.md.

    Everything blocks, and runs in a process of its own. `prepare` comes first and once. Raises
    `FormatError` for rows that cannot be trained on, `ConfigurationError` for a model that cannot,
    `Unavailable` where memory runs out or a number is not finite; after that it is not used again.
    """

    def prepare(self, job: TrainingJob) -> PreparedTraining:
        """Load the model, read the rows, make the first state: step 0."""
        ...

    @property
    def step(self) -> int:
        """How many steps the state has behind it."""
        ...

    def batch(self, step: int) -> Batch:
        """Return the rows of any step of the job: the opening of its commitment."""
        ...

    def run_step(self) -> StepRecord:
        """Compute the next step; the state digest is in the record where the recipe asks for it."""
        ...

    def state_digest(self) -> bytes:
        """Return the digest of the present state (training.md 7.1)."""
        ...

    def save(self) -> Iterator[bytes]:
        """Yield the present state in plain: for sealing, never for the disk (7.2)."""
        ...

    def load(self, state: bytes) -> None:
        """
        Go to a state that `save` gave, of the same plan; everything after it is as if undisturbed.

        `FormatError` for other bytes. Which state it is, its digest says: the caller compares.
        """
        ...

    def evaluate(self, *, base: bool) -> Evaluation | None:
        """Judge the present model, or the `base`, on held-out rows; None where there are none."""
        ...

    def output(self, kind: OutputKind) -> Iterator[tuple[str, bytes]]:
        """
        Yield the files of the result, plain: the adapter, or the whole model with it merged in.

        The same state gives the same bytes. `ValueError` for the adapter of a full training.
        """
        ...
