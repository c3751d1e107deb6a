"""What the NVIDIA steps work on: the choices of one appraisal, and the state of one device.

Evidence and endorsements are hostile. `Context` is what the verifier chose plus the
shelves that share work inside one appraisal; `DeviceState` is filled by the steps of one device
and thrown away with it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from confide.appraisal.nvidia_ocsp import require_good
from confide.appraisal.nvidia_rim import VerifiedRim, verify_rim
from confide.appraisal.steps import Refused
from confide.crypto.x509 import parse_certificate_der
from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from datetime import datetime

    from confide.appraisal.nvidia_chain import SignatureMemory
    from confide.appraisal.nvidia_policy import GpuMode, NvidiaPolicy
    from confide.crypto.x509 import Certificate
    from confide.trust.nvidia import NvidiaRoots
    from confide.wire.evidence import GpuEvidence, NvidiaEndorsements
    from confide.wire.spdm import GpuFields, MeasurementReport
    from confide.wire.spdm_switch import SwitchFields

__all__ = [
    "Comparison",
    "Context",
    "DeviceState",
]


@dataclass(frozen=True, slots=True)
class Comparison:
    """
    What the comparison of one report with its manifests found; all numbers are manifest indexes.

    `mismatches` pairs each index with its source, `driver` or `firmware`.
    """

    compared: int
    skipped: tuple[int, ...]
    mismatches: tuple[tuple[int, str], ...]
    uncovered: tuple[int, ...]


class Context:
    """
    One appraisal: choices of the verifier, hostile endorsements by label, and shared work.

    Shared are results of pure functions of exact bytes (parsed certificates, verified
    signatures, verified manifests), never a verdict about a device.
    """

    __slots__ = (
        "_good",
        "_known_rims",
        "_ocsp",
        "_rim_xml",
        "_rims",
        "device_root",
        "expected_nonce",
        "memory",
        "now",
        "policy",
        "rim_root",
    )

    def __init__(
        self,
        endorsements: NvidiaEndorsements,
        *,
        roots: NvidiaRoots,
        policy: NvidiaPolicy,
        expected_nonce: bytes,
        now: datetime,
        memory: SignatureMemory,
        known_rims: tuple[VerifiedRim, ...],
    ) -> None:
        self.device_root = parse_certificate_der(
            roots.device, what="device root", reason=Reason.CHAIN_UNTRUSTED_ROOT
        )
        self.rim_root = parse_certificate_der(
            roots.rim, what="manifest root", reason=Reason.RIM_CHAIN_INVALID
        )
        self.policy = policy
        self.expected_nonce = expected_nonce
        self.now = now
        self.memory = memory
        self._good: dict[tuple[str, str, bool], datetime | Refused | FormatError] = {}
        self._ocsp = {answer.certificate_sha256: answer.der for answer in endorsements.ocsp}
        self._rim_xml = {document.id: document.xml for document in endorsements.rims}
        self._known_rims = {
            rim.sha256: rim for rim in known_rims if rim.root_sha256 == self.rim_root.sha256
        }
        self._rims: dict[str, VerifiedRim | Refused | FormatError] = {}

    def certificate(self, der: bytes, what: str) -> Certificate:
        """Parse a certificate of a device chain once per appraisal. Raises `FormatError`."""
        return self.memory.certificate(der, what=what, reason=Reason.CHAIN_MALFORMED)

    def rim(self, rim_id: str) -> VerifiedRim:
        """Return the verified manifest supplied as `rim_id`. Raises `Refused`, `FormatError`."""
        xml = self._rim_xml.get(rim_id)
        if xml is None:
            raise Refused(Reason.RIM_MISSING, f"no manifest {rim_id} was supplied")
        outcome = self._rims.get(rim_id)
        if outcome is None:
            outcome = self._rims[rim_id] = self._open(xml)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _open(self, xml: bytes) -> VerifiedRim | Refused | FormatError:
        known = self._known_rims.get(hashlib.sha256(xml).hexdigest())
        if known is not None:
            return known
        try:
            return verify_rim(xml, root=self.rim_root, memory=self.memory)
        except (Refused, FormatError) as refusal:
            return refusal

    def good_until(
        self, certificate: Certificate, issuer: Certificate, *, tolerate_hold: bool
    ) -> datetime:
        """
        Return how long the supplied answer about `certificate` holds.

        Asked once per certificate in one appraisal: time and policy do not change within it.
        Raises `Refused`, `FormatError`.
        """
        key = (certificate.sha256, issuer.sha256, tolerate_hold)
        outcome = self._good.get(key)
        if outcome is None:
            outcome = self._good[key] = self._ask(certificate, issuer, tolerate_hold=tolerate_hold)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _ask(
        self, certificate: Certificate, issuer: Certificate, *, tolerate_hold: bool
    ) -> datetime | Refused | FormatError:
        try:
            return require_good(
                self._ocsp.get(certificate.sha256),
                certificate,
                issuer,
                now=self.now,
                max_age=self.policy.max_ocsp_age,
                memory=self.memory,
                tolerate_hold=tolerate_hold,
            )
        except (Refused, FormatError) as refusal:
            return refusal

    def verified_rims(self) -> tuple[VerifiedRim, ...]:
        """Return the manifests that were used, for the caller to keep."""
        return tuple(rim for rim in self._rims.values() if isinstance(rim, VerifiedRim))


@dataclass(slots=True)
class DeviceState:
    """
    The working state of one device; fields without a default are set by the step that owns them.

    `gpu` or `switch` holds the opaque entries, as the kind of the evidence has them. A switch has
    no driver manifest; `firmware_rim` is that of the VBIOS or of the switch's BIOS. `expiries`
    collects the instants at which something this device relies on ends.
    """

    evidence: GpuEvidence
    context: Context
    chain: tuple[Certificate, ...] = field(init=False)
    report: MeasurementReport = field(init=False)
    gpu: GpuFields | None = None
    switch: SwitchFields | None = None
    chip: str | None = None
    mode: GpuMode | None = None
    ueid: str | None = None
    pdi: bytes | None = None
    driver_rim: VerifiedRim | None = None
    firmware_rim: VerifiedRim | None = None
    comparison: Comparison = field(init=False)
    expiries: list[datetime] = field(default_factory=list)

    @property
    def manifests(self) -> tuple[VerifiedRim, ...]:
        """The manifests of this device that were opened."""
        return tuple(rim for rim in (self.driver_rim, self.firmware_rim) if rim is not None)
