"""A SIMULATED SEV-SNP machine: byte-exact reports, certificates and lists under simulated roots.

The bytes follow docs/protocols/snp.md as hardware's do, and the same verifier judges them; only the
roots differ, and whoever accepts them has to name them. Deterministic: equal seed, time and
arguments give equal bytes. Faults are injected by name (`snp_faults`); each leaves everything else
honest, so that exactly the step it is aimed at has to notice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC
from typing import TYPE_CHECKING, Final

from confide.appraisal.snp_policy import SnpFloors, SnpPolicy
from confide.appraisal.tdx_policy import UnsafeAny
from confide.crypto.ecdsa import Curve
from confide.simulator.snp_faults import FAULTS, Fault, SnpFault
from confide.simulator.snp_pki import (
    SimulatedAmdPki,
    certificate_specs,
    crl_spec,
    leaf_extensions,
    simulated_amd_roots,
)
from confide.wire.snp import (
    Firmware,
    GuestPolicy,
    PlatformInfo,
    Product,
    SigningKeyKind,
    SnpReport,
    SnpTcb,
    encode_report,
    encode_tcb,
    parse_report,
)

if TYPE_CHECKING:
    from datetime import datetime

    from confide.trust.amd import AmdRoots

__all__ = ["SimulatedSnpLaunch", "SimulatedSnpMachine", "SnpFault", "simulated_amd_roots"]

_HONEST: Final = Fault()
_OPERATOR: Final = "CN=simulated-cloud.example"
_TCBS: Final = {
    Product.MILAN: SnpTcb(boot_loader=4, tee=0, snp=24, microcode=219),
    Product.GENOA: SnpTcb(boot_loader=10, tee=0, snp=23, microcode=84),
    Product.TURIN: SnpTcb(fmc=1, boot_loader=1, tee=1, snp=4, microcode=74),
}
_CPUIDS: Final = {
    Product.MILAN: (0x19, 0x01, 1),
    Product.GENOA: (0x19, 0x11, 1),
    Product.TURIN: (0x1A, 0x02, 1),
}
_FIRMWARE: Final = Firmware(1, 58, 3)
# SMT allowed, ABI 1.51.
_POLICY: Final = int(GuestPolicy.SMT | GuestPolicy.RESERVED_ONE) | 1 << 8 | 51
_PLATFORM: Final = int(
    PlatformInfo.SMT_EN | PlatformInfo.ECC_EN | PlatformInfo.ALIAS_CHECK_COMPLETE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSnpLaunch:
    """What was launched: digests computed by the caller from what really starts."""

    measurement: bytes
    host_data: bytes = bytes(32)
    id_key_digest: bytes = bytes(48)
    author_key_digest: bytes = bytes(48)
    policy: int = _POLICY
    vmpl: int = 0


class SimulatedSnpMachine:
    """
    One simulated machine of `product` whose reports `kind` of key signs.

    The leaf is valid from an hour before `now`, a VCEK for seven years, a VLEK and the revocation
    list for one. `version` is that of the report. `fault` makes it dishonest in one way, named or
    described.
    """

    def __init__(
        self,
        seed: bytes,
        now: datetime,
        *,
        product: Product = Product.MILAN,
        kind: SigningKeyKind = SigningKeyKind.VCEK,
        version: int = 3,
        fault: SnpFault | Fault | None = None,
    ) -> None:
        # From: RFC 5280 §4.1.2.5.1: certificates and lists count whole seconds.
        now = now.astimezone(UTC).replace(microsecond=0)
        self._fault = FAULTS[fault] if isinstance(fault, SnpFault) else fault or _HONEST
        self._seed = seed
        self._product, self._kind, self._version = product, kind, version
        self._tcb = _TCBS[product]
        vlek = kind is SigningKeyKind.VLEK
        extensions = leaf_extensions(
            product,
            self._tcb,
            hardware_id=None if vlek else self.hardware_id,
            operator=_OPERATOR if vlek else None,
        )
        pki_seed = seed + self._fault.seed_suffix
        specs = certificate_specs(pki_seed, product, kind, now, extensions)
        self._fault.certificates(specs)
        self._pki = SimulatedAmdPki(pki_seed, specs)
        self._crl = self._fault.crl(crl_spec(now), specs)

    @property
    def hardware_id(self) -> bytes:
        """The id of the simulated chip, 64 bytes, on Turin 8."""
        digest = hashlib.sha512(b"simulated-snp/chip\0" + self._seed).digest()
        return digest[:8] if self._product is Product.TURIN else digest

    @property
    def chip_id(self) -> bytes:
        """The chip id as reports hold it, zero under a VLEK."""
        vlek = self._kind is SigningKeyKind.VLEK
        return bytes(64) if vlek else self.hardware_id.ljust(64, b"\0")

    @property
    def leaf_der(self) -> bytes:
        """The certificate of the key that signs."""
        return self._pki.certificate("leaf")

    @property
    def chain_pem(self) -> bytes:
        """ASK or ASVK, then ARK."""
        return self._pki.pem(self._fault.chain)

    @property
    def crl_der(self) -> bytes | None:
        """The revocation list, None where a fault withholds it."""
        return None if self._crl is None else self._fault.crl_patch(self._pki.crl(self._crl))

    def roots(self) -> AmdRoots:
        """Return the SIMULATED roots of an honest machine with this seed."""
        return simulated_amd_roots(self._seed)

    def policy(self, launch: SimulatedSnpLaunch) -> SnpPolicy:
        """Return the strictest policy that an honest launch of `launch` meets."""
        tcb = _TCBS[self._product]
        vlek = self._kind is SigningKeyKind.VLEK
        return SnpPolicy(
            products=frozenset({self._product}),
            floors=(SnpFloors(product=self._product, reported=tcb, committed=tcb, launch=tcb),),
            min_firmware=_FIRMWARE,
            min_abi=(1, 51),
            measurement=frozenset({launch.measurement}),
            host_data=frozenset({launch.host_data}),
            chips=UnsafeAny() if vlek else frozenset({self.chip_id}),
            platform_required=PlatformInfo.ALIAS_CHECK_COMPLETE,
            guest_required=GuestPolicy(0),
            guest_allowed=GuestPolicy.SMT,
            max_vmpl=launch.vmpl,
            allow_vlek=vlek,
            id_key_digest=frozenset({launch.id_key_digest}),
            author_key_digest=frozenset({launch.author_key_digest}),
            unsafe_simulated=True,
        )

    def _honest(self, launch: SimulatedSnpLaunch, report_data: bytes) -> SnpReport:
        later = self._version >= 4
        tcb = encode_tcb(self._tcb, self._product)
        # Firmware that waits to be committed: the current level may be above the reported one.
        current = encode_tcb(replace(self._tcb, microcode=self._tcb.microcode + 1), self._product)
        return SnpReport(
            version=self._version,
            guest_svn=0,
            policy=launch.policy,
            family_id=bytes(16),
            image_id=bytes(16),
            vmpl=launch.vmpl,
            current_tcb=current,
            platform_info=_PLATFORM,
            author_key_enabled=any(launch.author_key_digest),
            mask_chip_key=False,
            signing_key=self._kind,
            report_data=report_data,
            measurement=launch.measurement,
            host_data=launch.host_data,
            id_key_digest=launch.id_key_digest,
            author_key_digest=launch.author_key_digest,
            report_id=hashlib.sha256(b"simulated-snp/report-id\0" + self._seed).digest(),
            report_id_ma=b"\xff" * 32,
            reported_tcb=tcb,
            cpuid=_CPUIDS[self._product] if self._version >= 3 else None,
            chip_id=self.chip_id,
            committed_tcb=tcb,
            current=_FIRMWARE,
            committed=_FIRMWARE,
            launch_tcb=tcb,
            launch_mitigations=1 if later else None,
            current_mitigations=3 if later else None,
            signature=b"",
            raw=b"",
        )

    def report(self, launch: SimulatedSnpLaunch, *, report_data: bytes) -> bytes:
        """Return the report of `launch` for `report_data` (64 bytes)."""
        fault = self._fault
        unsigned = encode_report(fault.report(self._honest(launch, report_data)))
        body = fault.body(unsigned)
        spec = self._pki.specs["leaf"]
        label = spec.key if fault.report_key is None else fault.report_key
        key = self._pki.leaf_key(label, spec.curve or Curve.P384)
        # Written into the bytes as they are: a fault may have put what no report can hold.
        signature = key.sign(body[:672])
        half = len(signature) // 2
        numbers = (signature[:half], signature[half:])
        signed = body[:672] + b"".join(part[::-1].ljust(72, b"\0") for part in numbers)
        return fault.patch(signed.ljust(len(body), b"\0"))

    def parsed_report(self, launch: SimulatedSnpLaunch, *, report_data: bytes) -> SnpReport:
        """Return the parsed report of `launch`."""
        return parse_report(self.report(launch, report_data=report_data))
