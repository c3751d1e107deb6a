"""What a service presented, in one shape for all services. Values only; all of it is hostile.

Clauses: docs/protocols/services.md §1. A reader in `formats/` turns the documents of one service
into `Evidence`; `appraisal/service.py` judges it. Nothing here has been verified, and nothing
here selects roots, policy or time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from confide.wire.evidence import GpuEvidence, NvidiaEndorsements
    from confide.wire.json import JsonValue

__all__ = [
    "Attester",
    "Capture",
    "Devices",
    "Evidence",
    "LaunchDocument",
    "PresentedKey",
    "ReferenceRegisters",
    "Remark",
    "ReportBinding",
    "SnpPart",
    "TdxPart",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """
    What was fetched, byte-exact, and how it was asked for.

    `documents` maps a name (`report`, `keys`, `signature`, ...) to the exact bytes received.
    `format` is the name of the reader, empty where it has to be recognised. `nonce` is the one the
    relying party drew and sent, None where it sent none: it alone makes evidence fresh.
    `tls_spki_sha256` (32 bytes) is the key of the connection, as the one who fetched saw it.
    """

    documents: Mapping[str, bytes]
    format: str = ""
    nonce: bytes | None = None
    url: str = ""
    tls_spki_sha256: bytes | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxPart:
    """A TDX quote; `collateral` is what the attester passed along, a container as in tdx.md §1."""

    quote: bytes
    collateral: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpPart:
    """
    An SEV-SNP report of 1,184 bytes.

    `leaf_der` (VCEK or VLEK) and `chain_pem` (ASK or ASVK, then ARK) are what the attester passed
    along, if anything.
    """

    report: bytes
    leaf_der: bytes | None = None
    chain_pem: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentedKey:
    """
    A key that the service says is the attester's.

    `use` is one of `tls`, `hpke`, `ohttp`, `encryption`, `signing`; `algorithm` says what `value`
    is (`spki-sha256`, `x25519`, `ed25519`, `secp256k1`, `ohttp-key-config`, `ethereum-address`).
    """

    name: str
    use: str
    algorithm: str
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportBinding:
    """
    How the service says its report data came about, recomputed by the reader.

    `expected` is the 64 bytes that the scheme gives for what was presented; None where the format
    defines no report data (a bare quote). `nonce` is the challenge inside it, None where the
    scheme has none. `covers` names what `expected` commits to: names of `PresentedKey`s, and
    `gpu-evidence`, `launch-document`, `statement`.
    """

    scheme: str
    expected: bytes | None
    nonce: bytes | None
    covers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """
    GPUs and switches of one attester.

    `nonce` (32 bytes) is what every device must have signed by the scheme of the service; None
    where the scheme does not say. `endorsements` were passed along; `token` is a detached EAT of
    NVIDIA's remote service (exact bytes), where one was presented.
    """

    devices: tuple[GpuEvidence, ...]
    nonce: bytes | None
    endorsements: NvidiaEndorsements | None = None
    token: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchDocument:
    """
    The document that says what the machine starts, byte-exact.

    `kind` is `dstack-compose` (app-compose.json), `init-data` (Confidential Containers TOML),
    `tinfoil-config`, `confide-expectation`, or `confide-launch`. How it is bound to the hardware
    follows from the kind.
    """

    kind: str
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRegisters:
    """
    Registers that a signed statement of the publisher expects, not the hardware.

    Keys are `mrtd`, `rtmr0` .. `rtmr3`, `measurement` (SNP); values are raw bytes.
    `statement` are the exact bytes that the publisher signed, `bundle` its Sigstore bundle.
    """

    registers: Mapping[str, bytes]
    statement: bytes
    bundle: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """
    Something the reader knows about a named claim, from the format and not from hardware.

    It can only make a claim worse: `failed` says that the documents contradict it, otherwise that
    the service does not prove it. `text` is ours, never text chosen by the service.
    """

    claim: str
    text: str
    clause: str
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attester:
    """
    One machine of the service, and everything it presented.

    Exactly one of `tdx` and `snp` is set, or neither for evidence of devices alone.
    `role` is `gateway` for a machine that only passes requests on, and so needs no devices.
    `firmware_log` is a CCEL, `runtime_log` the JSON array of a dstack log; appraisal replays both.
    `vm_config` is the machine description of dstack. `paravisor` marks quotes whose registers
    describe the cloud's own software and not the guest. `valid_until` is when the service says that
    its keys end.
    """

    name: str
    role: Literal["workload", "gateway"] = "workload"
    tdx: TdxPart | None = None
    snp: SnpPart | None = None
    binding: ReportBinding
    keys: tuple[PresentedKey, ...] = ()
    devices: Devices | None = None
    firmware_log: bytes | None = None
    runtime_log: JsonValue = None
    vm_config: JsonValue = None
    launch: LaunchDocument | None = None
    references: ReferenceRegisters | None = None
    paravisor: bool = False
    valid_until: datetime | None = None
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """
    Everything one service presented, in one shape for all services.

    `format` is the reader's name; `limits` says in words what this kind of service cannot show.
    """

    format: str
    attesters: tuple[Attester, ...]
    nonce: bytes | None = None
    tls_spki_sha256: bytes | None = None
    limits: tuple[str, ...] = field(default=())
