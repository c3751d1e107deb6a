"""The whole error tree; the closed list of reasons a refusal can name is `reasons.Reason`.

::

    ConfideError
    ├── FormatError             the bytes are not what the specification says     exit 30, HTTP 400
    ├── Rejected (abstract)     well-formed, not believed; carries findings       exit 10, HTTP 403
    │   ├── EvidenceRejected    signature, chain, revocation, TCB, nonce, binding
    │   ├── PolicyRejected      authentic, but not what the policy accepts
    │   ├── ReceiptRejected     a receipt that does not chain to what it claims
    │   ├── RunRefused          a node will not start this run under this Expectation
    │   ├── DirectoryRejected   a relay's directory that is not believed
    │   ├── TrainingRejected    a training record, its owner's log or a replay does not hold
    │   ├── LogRejected         a log, a head of it or a proof from it that is not believed
    │   ├── DatasetRejected     rows, a commitment or a proof that do not belong together
    │   ├── SealedFileRejected  another key, changed, cut, or another file than asked for
    │   └── ReleaseRefused      a broker releases nothing, or does not take what owners signed
    ├── ProtocolError (abstract)
    │   ├── LocalProtocolError  our caller misused a state machine                (a bug)
    │   └── RemoteProtocolError the peer broke the protocol                       exit 20, HTTP 400
    ├── Unavailable             an edge failed; says nothing about trust          exit 20, HTTP 503
    │   ├── Overloaded          too much is in progress, or nothing new is begun  exit 20, HTTP 429
    │   └── ReceiptNotKept      its answer is not handed over                     exit 20, HTTP 503
    ├── Unsupported             well-formed, of a kind that is not judged here    exit 20, HTTP 501
    └── ConfigurationError      refuses to start                                  exit 2

`Unavailable` is never turned into acceptance. Messages are our own words and sizes and
offsets; they never carry secrets, prompts or text chosen by a peer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.reasons import Reason

if TYPE_CHECKING:
    from confide.rats import AttestationResult, Finding

__all__ = [
    "ConfideError",
    "ConfigurationError",
    "DatasetRejected",
    "DirectoryRejected",
    "EvidenceRejected",
    "FormatError",
    "LocalProtocolError",
    "LogRejected",
    "Overloaded",
    "PolicyRejected",
    "ProtocolError",
    "Reason",
    "ReceiptNotKept",
    "ReceiptRejected",
    "Rejected",
    "ReleaseRefused",
    "RemoteProtocolError",
    "RunRefused",
    "SealedFileRejected",
    "TrainingRejected",
    "Unavailable",
    "Unsupported",
]


class ConfideError(Exception):
    """Base of everything this package raises on purpose."""


class FormatError(ConfideError):
    """
    The bytes are not what the specification says.

    `what` names the structure, `offset` the byte (or -1 where there is none), `clause` the
    sentence of the specification, `reason` the closed identifier.
    """

    def __init__(self, what: str, *, reason: Reason, clause: str, offset: int = -1) -> None:
        self.what = what
        self.reason = reason
        self.clause = clause
        self.offset = offset
        at = f" at byte {offset}" if offset >= 0 else ""
        super().__init__(f"{what}{at} ({reason}; {clause})")


class Rejected(ConfideError):
    """
    Well-formed, not believed. `findings` holds every finding in step order.

    `result` is the whole attestation result where one was made: what is proven all the same.
    """

    def __init__(
        self, findings: tuple[Finding, ...], *, result: AttestationResult | None = None
    ) -> None:
        if not any(f.failed for f in findings):
            raise ValueError("a rejection needs at least one failed finding")
        self.findings = findings
        self.result = result
        first = self.failures[0]
        more = len(self.failures) - 1
        tail = f" (and {more} more)" if more else ""
        super().__init__(f"{first}{tail}")

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that failed, in step order; never empty."""
        return tuple(f for f in self.findings if f.failed)

    @property
    def reason(self) -> Reason:
        """The reason of the first failure."""
        reason = self.failures[0].reason
        if reason is None:  # pragma: no cover - a failed finding always has one
            raise ValueError("failed finding without a reason")
        return reason


class EvidenceRejected(Rejected):
    """The evidence is not authentic, not fresh, or not bound to this exchange."""


class PolicyRejected(Rejected):
    """The evidence is authentic, and the policy does not accept what it says."""


class ReceiptRejected(Rejected):
    """The receipt does not chain to the Expectation, nonce, keys and evidence it must."""


class RunRefused(Rejected):
    """A node refuses to start or to continue a run."""


class DirectoryRejected(Rejected):
    """The directory of a relay is not signed as it must be, not in force, or went back."""


class TrainingRejected(Rejected):
    """A training record, what is held to it or a replay of it does not show what it says."""


class LogRejected(Rejected):
    """A transparency log, a head of it or a proof from it is not what it has to be."""


class DatasetRejected(Rejected):
    """Rows, the commitment to them and a proof about one do not belong together."""


class SealedFileRejected(Rejected):
    """A sealed file that does not open: another key, changed, cut, or another file."""


class ReleaseRefused(Rejected):
    """A broker releases nothing to this evidence, or does not take what owners signed."""


class ProtocolError(ConfideError):
    """The sealed-channel or node protocol was broken by one of its two ends."""


class LocalProtocolError(ProtocolError):
    """Our caller used a state machine in an order it does not allow. A bug, not an attack."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; `reason` where one fits, `status_hint` for HTTP."""

    def __init__(
        self, message: str, *, reason: Reason | None = None, status_hint: int = 400
    ) -> None:
        self.reason = reason
        self.status_hint = status_hint
        super().__init__(message)


class Unavailable(ConfideError):
    """
    An edge failed (network, disk, engine, device).

    Says nothing about trust, and never becomes acceptance.
    """


class Overloaded(Unavailable):
    """
    Nothing more is taken for now: too much is in progress, or the node is about to stop.

    `retry_after` is in seconds; `draining` tells the second from the first.
    """

    def __init__(
        self, message: str, *, retry_after: int, status_hint: int = 503, draining: bool = False
    ) -> None:
        self.retry_after = retry_after
        self.status_hint = status_hint
        self.draining = draining
        super().__init__(message)


class ReceiptNotKept(Unavailable):
    """A receipt held and could not be stored: the answer that it is about is not handed over."""


class Unsupported(ConfideError):
    """
    Well-formed, of a kind that this verifier does not judge (another TEE, a newer version).

    Neither an acceptance nor a rejection.
    """


class ConfigurationError(ConfideError):
    """The program refuses to start as configured; the message says what to change."""
