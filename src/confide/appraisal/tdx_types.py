"""The values that a TDX appraisal hands on. Holding one is the proof that its steps passed.

`VerifiedCollateral` and `VerifiedQuote` can be made only by the modules that verify; there is no
public way to build one from unverified parts.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import datetime

    from confide.crypto.x509 import Certificate, Crl
    from confide.rats import Finding
    from confide.trust.anchors import TdxAnchor
    from confide.wire.collateral import (
        Collateral,
        PlatformLevel,
        QeIdentity,
        SvnLevel,
        TcbInfo,
        TcbStatus,
    )
    from confide.wire.pck import PckExtension
    from confide.wire.tdx import TdxQuote

__all__ = [
    "SEAL",
    "CollateralDigests",
    "EndorsedCollateral",
    "TcbVerdict",
    "TdxClaims",
    "TdxResult",
    "VerifiedCollateral",
    "VerifiedQuote",
]

SEAL = object()


def _require(seal: object, maker: str) -> None:
    if seal is not SEAL:
        raise TypeError(f"only {maker} makes this value")


class EndorsedCollateral(Protocol):
    """What the steps read of collateral, verified before or in the same run."""

    @property
    def collateral(self) -> Collateral:
        """The parsed container."""
        ...

    @property
    def anchor(self) -> TdxAnchor:
        """The anchor it leads to."""
        ...

    @property
    def root(self) -> Certificate:
        """The root, parsed."""
        ...

    @property
    def root_crl(self) -> Crl:
        """The list of the root."""
        ...

    @property
    def pck_crl(self) -> Crl:
        """The list of the PCK CA."""
        ...

    @property
    def pck_authority(self) -> Certificate | None:
        """The PCK CA the collateral names, where it names one."""
        ...

    @property
    def tcb_info(self) -> TcbInfo:
        """The TCB info."""
        ...

    @property
    def qe_identity(self) -> QeIdentity:
        """The QE identity."""
        ...


@dataclass(frozen=True, slots=True)
class CollateralDigests:
    """SHA-256 (hex) of each part, so that a verdict can be repeated from an archive."""

    root_crl: str
    pck_crl: str
    tcb_info: str
    qe_identity: str
    tcb_signer: str
    qe_signer: str


@dataclass(frozen=True, slots=True)
class VerifiedCollateral:
    """
    Collateral whose every signature leads to `anchor`, valid from `not_before` to `not_after`.

    The PCK list is verified per quote, under the CA of the quote's own chain; where the
    collateral names that CA, `pck_authority` holds it, issued by the anchor, with the list already
    verified. Whoever uses this value checks the time again.
    """

    collateral: Collateral = field(repr=False)
    anchor: TdxAnchor
    root: Certificate
    root_crl: Crl
    pck_crl: Crl
    pck_authority: Certificate | None
    tcb_info: TcbInfo
    qe_identity: QeIdentity
    digests: CollateralDigests
    not_before: datetime
    not_after: datetime
    findings: tuple[Finding, ...] = field(repr=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `verify_collateral`."""
        _require(seal, "verify_collateral")


@dataclass(frozen=True, slots=True)
class TcbVerdict:
    """What the collateral says about this platform, this module and this QE."""

    status: TcbStatus
    platform: PlatformLevel
    module: SvnLevel | None
    module_now: SvnLevel | None
    qe: SvnLevel
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """
    A quote signed by a genuine platform under `collateral.anchor`, with its patch level.

    Says nothing about *what* runs inside, and nothing about whether the level is acceptable.
    """

    quote: TdxQuote
    collateral: VerifiedCollateral
    platform: PckExtension
    tcb: TcbVerdict
    not_after: datetime
    findings: tuple[Finding, ...] = field(repr=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `verify_quote`."""
        _require(seal, "verify_quote")


@dataclass(frozen=True, slots=True)
class TdxClaims:
    """
    Every fact of one accepted quote. Byte strings are raw, digests hex, dates aware UTC.

    `module_now_status` exists for TD 1.5. `simulated` is the anchor's word. `not_after` is the
    earliest instant at which a certificate, list or document behind these claims expires.
    """

    anchor: str
    simulated: bool
    version: int
    user_data: bytes
    tee_tcb_svn: bytes
    tee_tcb_svn2: bytes | None
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    mr_service_td: bytes | None
    padding: int
    tcb_status: TcbStatus
    platform_status: TcbStatus
    module_status: TcbStatus | None
    module_now_status: TcbStatus | None
    qe_status: TcbStatus
    platform_tcb_date: datetime
    module_tcb_date: datetime | None
    qe_tcb_date: datetime
    advisories: tuple[str, ...]
    tcb_evaluation: int
    qe_evaluation: int
    root_crl_issued: datetime
    pck_crl_issued: datetime
    ppid: bytes
    platform_instance: bytes | None
    fmspc: bytes
    pce_id: bytes
    cpu_svn: bytes
    pce_svn: int
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt_enabled: bool | None
    qe_mr_enclave: bytes
    qe_isv_svn: int
    not_after: datetime
    digests: CollateralDigests


@dataclass(frozen=True, slots=True)
class TdxResult:
    """
    An accepted quote: its claims, every finding in step order, and what was assumed.

    `relaxations` names what the policy switched off; `verified` is the proof for further steps
    (event logs).
    """

    claims: TdxClaims
    findings: tuple[Finding, ...]
    verified: VerifiedQuote = field(repr=False)
    policy_digest: str
    relaxations: tuple[str, ...]
    now: datetime
