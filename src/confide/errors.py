"""The whole error tree, and the closed list of reasons a refusal can name.

::

    ConfideError
    ├── FormatError             the bytes are not what the specification says     exit 30, HTTP 400
    ├── Rejected (abstract)     well-formed, not believed; carries findings       exit 10, HTTP 403
    │   ├── EvidenceRejected    signature, chain, revocation, TCB, nonce, binding
    │   ├── PolicyRejected      authentic, but not what the policy accepts
    │   ├── ReceiptRejected     a receipt that does not chain to what it claims
    │   └── RunRefused          a node will not start this run under this Expectation
    ├── ProtocolError (abstract)
    │   ├── LocalProtocolError  our caller misused a state machine                (a bug)
    │   └── RemoteProtocolError the peer broke the protocol                       exit 20, HTTP 400
    ├── Unavailable             an edge failed; says nothing about trust          exit 20, HTTP 503
    └── ConfigurationError      refuses to start                                  exit 2

`Unavailable` is never turned into acceptance. Messages are our own words and sizes and
offsets; they never carry secrets, prompts or text chosen by a peer.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confide.rats import Finding

__all__ = [
    "ConfideError",
    "ConfigurationError",
    "EvidenceRejected",
    "FormatError",
    "LocalProtocolError",
    "PolicyRejected",
    "ProtocolError",
    "Reason",
    "ReceiptRejected",
    "Rejected",
    "RemoteProtocolError",
    "RunRefused",
    "Unavailable",
]


class Reason(StrEnum):
    """Why something was refused. Closed: a new member needs a vector or a test that reaches it."""

    # TDX quote, bytes: steps 1 to 4 of docs/protocols/tdx.md
    QUOTE_TRUNCATED = "quote-truncated"
    QUOTE_VERSION = "quote-version"
    QUOTE_FORMAT = "quote-format"
    ATT_KEY_TYPE = "att-key-type"
    TEE_TYPE = "tee-type"
    QE_VENDOR = "qe-vendor"
    BODY_TYPE = "body-type"
    OUTER_CERT_TYPE = "outer-cert-type"
    INNER_CERT_TYPE = "inner-cert-type"
    TRAILING_BYTES = "trailing-bytes"
    # TDX quote, authenticity: steps 5 to 23
    PCK_CHAIN = "pck-chain"
    ROOT_MISMATCH = "root-mismatch"
    PCK_CHAIN_OVERRIDE = "pck-chain-override"
    PCK_ROLE = "pck-role"
    PCK_EXTENSION = "pck-extension"
    CERT_NOT_YET_VALID = "cert-not-yet-valid"
    CERT_EXPIRED = "cert-expired"
    CRL_MISSING = "crl-missing"
    CRL_FORMAT = "crl-format"
    CRL_SIGNATURE = "crl-signature"
    CRL_NO_NEXT_UPDATE = "crl-no-next-update"
    CRL_NOT_YET_VALID = "crl-not-yet-valid"
    CRL_EXPIRED = "crl-expired"
    CRL_AGE_FLOOR = "crl-age-floor"
    CERT_REVOKED = "cert-revoked"
    COLLATERAL_SIGNER_ROLE = "collateral-signer-role"
    TCB_INFO_SIGNATURE = "tcb-info-signature"
    QE_IDENTITY_SIGNATURE = "qe-identity-signature"
    COLLATERAL_FORMAT = "collateral-format"
    COLLATERAL_MISSING = "collateral-missing"
    TCB_INFO_ID = "tcb-info-id"
    TCB_TYPE = "tcb-type"
    QE_IDENTITY_ID = "qe-identity-id"
    COLLATERAL_NOT_YET_VALID = "collateral-not-yet-valid"
    COLLATERAL_EXPIRED = "collateral-expired"
    COLLATERAL_AGE = "collateral-age"
    FMSPC_MISMATCH = "fmspc-mismatch"
    PCEID_MISMATCH = "pceid-mismatch"
    TCB_EVAL_FLOOR = "tcb-eval-floor"
    QE_REPORT_SIGNATURE = "qe-report-signature"
    AK_BINDING = "ak-binding"
    QUOTE_SIGNATURE = "quote-signature"
    QE_DEBUG = "qe-debug"
    QE_IDENTITY_MISMATCH = "qe-identity-mismatch"
    QE_NO_LEVEL = "qe-no-level"
    # TDX policy: steps 24 to 31
    TDX_MODULE_MISMATCH = "tdx-module-mismatch"
    TDX_MODULE_UNKNOWN = "tdx-module-unknown"
    TDX_MODULE_NO_LEVEL = "tdx-module-no-level"
    TCB_NO_LEVEL = "tcb-no-level"
    TCB_STATUS = "tcb-status"
    TD_DEBUG = "td-debug"
    SEPT_VE_DISABLE = "sept-ve-disable"
    TD_ATTRIBUTES = "td-attributes"
    XFAM = "xfam"
    SERVICE_TD = "service-td"
    DYNAMIC_PLATFORM = "dynamic-platform"
    PLATFORM_NOT_ALLOWED = "platform-not-allowed"
    MRTD_MISMATCH = "mrtd-mismatch"
    MRSEAM_NOT_ALLOWED = "mrseam-not-allowed"
    MRCONFIGID_MISMATCH = "mrconfigid-mismatch"
    MROWNER_MISMATCH = "mrowner-mismatch"
    REPORT_DATA_MISMATCH = "report-data-mismatch"
    # Event logs: docs/protocols/eventlog.md
    LOG_FORMAT = "log-format"
    LOG_TRUNCATED = "log-truncated"
    LOG_REGISTER = "log-register"
    RTMR0_MISMATCH = "rtmr0-mismatch"
    RTMR1_MISMATCH = "rtmr1-mismatch"
    RTMR2_MISMATCH = "rtmr2-mismatch"
    RTMR3_MISMATCH = "rtmr3-mismatch"
    DIGEST_MISMATCH = "digest-mismatch"
    PREIMAGE_MISMATCH = "preimage-mismatch"
    RUNTIME_EVENT_TYPE = "runtime-event-type"
    EVENT_ORDER = "event-order"
    EVENT_DUPLICATE = "event-duplicate"
    EVENT_MISSING = "event-missing"
    EVENT_UNKNOWN = "event-unknown"
    # NVIDIA devices: docs/protocols/nvidia.md
    CHAIN_MALFORMED = "chain-malformed"
    CHAIN_INVALID = "chain-invalid"
    CHAIN_UNTRUSTED_ROOT = "chain-untrusted-root"
    CHAIN_EXPIRED = "chain-expired"
    SIGNATURE_INVALID = "signature-invalid"
    REPORT_MALFORMED = "report-malformed"
    ARCH_MISMATCH = "arch-mismatch"
    NONCE_MISMATCH = "nonce-mismatch"
    FWID_MISSING = "fwid-missing"
    FWID_MISMATCH = "fwid-mismatch"
    PDI_MISMATCH = "pdi-mismatch"
    RIM_MALFORMED = "rim-malformed"
    RIM_SIGNATURE_INVALID = "rim-signature-invalid"
    RIM_DIGEST_MISMATCH = "rim-digest-mismatch"
    RIM_CHAIN_INVALID = "rim-chain-invalid"
    RIM_IDENTITY_MISMATCH = "rim-identity-mismatch"
    RIM_INDEX_CONFLICT = "rim-index-conflict"
    RIM_EXPIRED = "rim-expired"
    RIM_NOT_YET_VALID = "rim-not-yet-valid"
    RIM_MISSING = "rim-missing"
    MEASUREMENT_MISMATCH = "measurement-mismatch"
    MEASUREMENT_UNCOVERED = "measurement-uncovered"
    OCSP_MALFORMED = "ocsp-malformed"
    OCSP_SIGNATURE_INVALID = "ocsp-signature-invalid"
    OCSP_RESPONDER_UNAUTHORIZED = "ocsp-responder-unauthorized"
    OCSP_CERTID_MISMATCH = "ocsp-certid-mismatch"
    OCSP_NONCE_MISMATCH = "ocsp-nonce-mismatch"
    OCSP_REVOKED = "ocsp-revoked"
    OCSP_HOLD = "ocsp-hold"
    OCSP_UNKNOWN = "ocsp-unknown"
    OCSP_STALE = "ocsp-stale"
    OCSP_UNAVAILABLE = "ocsp-unavailable"
    VERSION_NOT_ALLOWED = "version-not-allowed"
    MODE_MISMATCH = "mode-mismatch"
    DUPLICATE_DEVICE = "duplicate-device"
    TOPOLOGY_COUNT = "topology-count"
    # Binding, keyset, composite: docs/protocols/binding.md
    EVIDENCE_MISSING = "evidence-missing"
    EVIDENCE_STALE = "evidence-stale"
    GPU_MISSING = "gpu-missing"
    STATEMENT_MISMATCH = "statement-mismatch"
    KEYSET_MISMATCH = "keyset-mismatch"
    KEYSET_EXPIRED = "keyset-expired"
    KEYSET_REVOKED = "keyset-revoked"
    EXPECTATION_MISMATCH = "expectation-mismatch"
    NODE_SOFTWARE_MISMATCH = "node-software-mismatch"
    NODE_ROLE_MISMATCH = "node-role-mismatch"
    MODEL_MISMATCH = "model-mismatch"
    AGENT_IMAGE_MISMATCH = "agent-image-mismatch"
    CLAIM_NOT_PROVEN = "claim-not-proven"
    SIMULATED_NOT_ALLOWED = "simulated-not-allowed"
    # Receipts, as docs/protocols/receipt.md has them
    RECEIPT_SIGNATURE = "receipt-signature"
    RECEIPT_FORMAT = "receipt-format"
    TRANSCRIPT_BROKEN = "transcript-broken"
    CLAIM_MISMATCH = "claim-mismatch"
    RECEIPT_MISSING = "receipt-missing"
    RECEIPT_NOT_REFERENCED = "receipt-not-referenced"
    OUTPUT_MISMATCH = "output-mismatch"
    RUN_FAILED = "run-failed"
    # A node refusing a run: docs/protocols/agent-run.md
    LIMIT_EXCEEDED = "limit-exceeded"
    REPLAYED = "replayed"
    NODE_BUSY = "node-busy"
    SESSION_UNKNOWN = "session-unknown"
    # Agent folders and images: docs/protocols/agent-image.md
    AGENT_FORMAT = "agent-format"
    LOCK_FORMAT = "lock-format"
    IMAGE_FORMAT = "image-format"
    IMAGE_NOT_PINNED = "image-not-pinned"
    # Names of inputs and outputs, proxy requests: docs/protocols/sandbox.md
    FILE_NAME = "file-name"
    PROXY_FORMAT = "proxy-format"
    # The sealed channel: docs/protocols/channel.md
    CHANNEL_FORMAT = "channel-format"
    CHANNEL_OPEN = "channel-open"
    CHANNEL_TRUNCATED = "channel-truncated"
    REQUEST_TIME = "request-time"
    # Model calls: docs/protocols/inference.md
    REQUEST_FORMAT = "request-format"
    UPSTREAM_FORMAT = "upstream-format"
    STREAM_FORMAT = "stream-format"


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
    """Well-formed, not believed. `findings` holds every finding in step order."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        if not any(f.failed for f in findings):
            raise ValueError("a rejection needs at least one failed finding")
        self.findings = findings
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


class ConfigurationError(ConfideError):
    """The program refuses to start as configured; the message says what to change."""
