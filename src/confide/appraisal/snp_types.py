"""The values that an SEV-SNP appraisal hands on. Holding one is the proof that its steps passed.

`VerifiedSnpReport` can be made only by `appraisal.snp`; there is no public way to build one from
unverified parts.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from confide.crypto.x509 import Certificate, Crl
    from confide.crypto.x509_rsa import RsaCertificate
    from confide.rats import Finding
    from confide.trust.amd import AmdAnchor
    from confide.wire.snp import Firmware, Product, SigningKeyKind, SnpReport, SnpTcb

__all__ = ["SEAL", "SnpClaims", "SnpResult", "VerifiedSnpReport"]

SEAL = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSnpReport:
    """
    A report that the certified key of one chip (VCEK) or one operator (VLEK) signed.

    `product_name` and `operator` are AMD's words in the leaf; `operator` is empty for a VCEK.
    `not_after` is the earliest instant at which a certificate or the list expires. Says nothing
    about *what* runs: it must still be appraised against a policy.
    """

    report: SnpReport
    anchor: AmdAnchor
    simulated: bool
    kind: SigningKeyKind
    product_name: str
    operator: str
    authority: RsaCertificate
    leaf: Certificate
    crl: Crl | None
    not_before: datetime
    not_after: datetime
    findings: tuple[Finding, ...] = field(repr=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `verify_snp_report`."""
        if seal is not SEAL:
            raise TypeError("only verify_snp_report makes this value")

    @property
    def product(self) -> Product:
        """The product, as the anchor and the leaf both say."""
        return self.anchor.product


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpClaims:
    """
    Everything a verified report says. Bytes are as in the report; TCBs are by product.

    `anchor` is the SHA-256 (hex) of the root. `key` is VCEK or VLEK. `product_name` and `operator`
    are AMD's words in the leaf; `operator` is empty for a VCEK. `guest_policy` and `platform_info`
    name the known bits that are set, sorted; `platform_info_unknown` holds the others.
    `crl_issued` is None where no revocation list was given.
    """

    anchor: str
    simulated: bool
    product: Product
    product_name: str
    key: SigningKeyKind
    operator: str
    version: int
    vmpl: int
    guest_svn: int
    guest_policy: tuple[str, ...]
    abi: tuple[int, int]
    platform_info: tuple[str, ...]
    platform_info_unknown: int
    family_id: bytes
    image_id: bytes
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    chip_id: bytes
    mask_chip_key: bool
    cpuid: tuple[int, int, int] | None
    current_tcb: SnpTcb
    reported_tcb: SnpTcb
    committed_tcb: SnpTcb
    launch_tcb: SnpTcb
    current_firmware: Firmware
    committed_firmware: Firmware
    launch_mitigations: int | None
    current_mitigations: int | None
    crl_issued: datetime | None
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpResult:
    """
    An accepted report: claims, every step, and everything that was assumed.

    `policy_digest` is SHA-256 (hex); `relaxations` names what the policy switched off.
    """

    claims: SnpClaims
    findings: tuple[Finding, ...] = field(repr=False)
    verified: VerifiedSnpReport = field(repr=False)
    policy_digest: str
    relaxations: tuple[str, ...]
    now: datetime

    @property
    def not_after(self) -> datetime:
        """The earliest instant at which something behind this result expires."""
        return self.verified.not_after

    @property
    def simulated(self) -> bool:
        """Whether the root is a simulated one."""
        return self.verified.simulated
