"""A SIMULATED TDX platform: byte-exact quotes and collateral under a root that says Simulated.

The bytes follow docs/protocols/tdx.md as hardware's do, and the same verifier judges them; only the
anchor differs, and whoever accepts it has to name it. Deterministic: equal seed, time and
arguments give equal bytes. Faults are injected by name (`tdx_faults`); each leaves everything else
honest, so that exactly the step it is aimed at has to notice.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Final

from confide.appraisal.tdx_policy import TdxPolicy
from confide.simulator.pki import (
    LIFETIME,
    SimulatedPki,
    certificate_specs,
    crl_specs,
)
from confide.simulator.tdx_edits import OLD_CPU_SVN, Fault
from confide.simulator.tdx_fault_table import FAULTS
from confide.simulator.tdx_faults import TdxFault
from confide.trust.anchors import TdxAnchor
from confide.trust.roots import SIMULATED_TDX_NAMES
from confide.wire.collateral import Collateral, TcbStatus, encode_collateral
from confide.wire.pck import PckExtension
from confide.wire.tdx import (
    QeReport,
    TdBody10,
    TdBody15,
    TdxQuote,
    encode_body,
    encode_header,
    encode_qe_report,
    encode_quote,
)

if TYPE_CHECKING:
    from datetime import datetime

    from confide.wire.json import JsonValue

__all__ = ["QuoteKind", "SimulatedLaunch", "SimulatedTdxPlatform", "TdxFault"]

_HONEST: Final = Fault()
_CPU_SVN: Final = bytes((3, 3, 2, 2, 4, 1, 0, 5)) + bytes(8)
_PCE_SVN: Final = 13
_FMSPC: Final = bytes.fromhex("5300000000aa")
# Module 1.6 (version 1, SVN 6), SEAM loader 3.
_TEE_TCB_SVN: Final = bytes((6, 1, 3)) + bytes(13)
_EVALUATION: Final = 18
_QE_SVN: Final = 6
# SEPT_VE_DISABLE alone; x87, SSE, AVX, AVX-512, PKRU and AMX, as genuine quotes have them.
_TD_ATTRIBUTES: Final = (1 << 28).to_bytes(8, "little")
_XFAM: Final = bytes.fromhex("e702060000000000")


class QuoteKind(Enum):
    """Shape of a quote: version and TD body."""

    V4 = (4, False)
    V5_TD10 = (5, False)
    V5_TD15 = (5, True)

    @property
    def version(self) -> int:
        """Quote version."""
        return self.value[0]

    @property
    def td15(self) -> bool:
        """Whether the body is that of TD 1.5."""
        return self.value[1]


@dataclass(frozen=True, slots=True)
class SimulatedLaunch:
    """What was launched: registers of 48 bytes, computed by the caller from what really starts."""

    mr_td: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]
    mr_config_id: bytes = bytes(48)
    mr_owner: bytes = bytes(48)
    mr_owner_config: bytes = bytes(48)


def _stamp(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _compact(document: dict[str, JsonValue]) -> bytes:
    # Written in Intel's member order and not sorted: verifiers hash the bytes they get.
    return json.dumps(document, separators=(",", ":")).encode("ascii")


class SimulatedTdxPlatform:
    """
    One simulated machine and the service that vouches for it.

    Certificates, lists and documents are valid from an hour before `now`, lists and documents
    for 45 days. `fault` makes the platform dishonest in one named way.
    """

    def __init__(self, seed: bytes, now: datetime, fault: TdxFault | None = None) -> None:
        # From: RFC 5280 §4.1.2.5.1: certificates and lists count whole seconds.
        self._now = now.astimezone(UTC).replace(microsecond=0)
        self._seed = seed
        self._fault = _HONEST if fault is None else FAULTS[fault]
        self._platform = self._fault.platform(
            PckExtension(
                ppid=self._derive("ppid"),
                components=_CPU_SVN,
                pce_svn=_PCE_SVN,
                cpu_svn=_CPU_SVN,
                pce_id=bytes(2),
                fmspc=_FMSPC,
                sgx_type=1,
                platform_instance=self._derive("platform-instance"),
                dynamic_platform=False,
                cached_keys=False,
                smt_enabled=False,
            )
        )
        specs = certificate_specs(self._platform, self._now)
        self._fault.certificates(specs)
        self._pki = SimulatedPki(seed + self._fault.seed_suffix, specs)

    def _derive(self, label: str) -> bytes:
        return hashlib.sha256(b"simulated-tdx/" + label.encode() + b"\0" + self._seed).digest()[:16]

    @property
    def ppid(self) -> bytes:
        """The platform's PPID."""
        return self._derive("ppid")

    @property
    def mr_seam(self) -> bytes:
        """The measurement of the simulated TDX module."""
        return hashlib.sha384(b"simulated TDX module").digest()

    def anchor(self) -> TdxAnchor:
        """Return the root of the honest platform of this seed, whatever the fault."""
        specs = certificate_specs(self._platform, self._now)
        honest = SimulatedPki(self._seed, {"root": specs["root"]})
        return TdxAnchor(honest.certificate("root").der, SIMULATED_TDX_NAMES, simulated=True)

    def collateral(self) -> bytes:
        """Return the collateral JSON for this platform."""
        fault, pki = self._fault, self._pki
        lists = crl_specs(self._now)
        fault.lists(lists)
        info, identity = self._tcb_info(), self._qe_identity()
        fault.tcb_info(info)
        fault.qe_identity(identity)
        tcb_info, qe_identity = fault.tcb_text(_compact(info)), _compact(identity)
        chain = pki.pem(*fault.signer_chain)
        signer = pki.key(pki.specs[fault.signer_chain[0]].key)
        collateral = Collateral(
            root_crl=pki.crl(lists["root"]),
            pck_crl=pki.crl(lists["ca"]),
            pck_crl_chain=pki.pem("ca", "root"),
            tcb_info=tcb_info,
            tcb_info_signature=signer.sign(tcb_info),
            tcb_info_chain=chain,
            qe_identity=qe_identity,
            qe_identity_signature=signer.sign(qe_identity),
            qe_identity_chain=chain,
            pck_chain=None,
        )
        return encode_collateral(fault.collateral(collateral))

    def quote(
        self, launch: SimulatedLaunch, *, report_data: bytes, kind: QuoteKind = QuoteKind.V4
    ) -> bytes:
        """Return a quote of what was `launch`ed over these 64 bytes of report data."""
        fault, pki = self._fault, self._pki
        kind = QuoteKind.V5_TD15 if fault.needs_td15 else kind
        body = fault.body(self._body(launch, report_data, td15=kind.td15))
        signed = encode_header(kind.version, self._derive("user-data") + bytes(4))
        signed += encode_body(kind.version, body)
        key, auth_data = pki.key("attestation"), bytes(range(32))
        report = fault.qe_report(self._qe_report(key.public.point, auth_data))
        report = replace(report, raw=encode_qe_report(report))
        quote = TdxQuote(
            version=kind.version,
            user_data=b"",
            body=body,
            signed=signed,
            signature=pki.key(fault.quote_key).sign(signed),
            attestation_key=pki.key(fault.quote_key).public.point
            if fault.swaps_key
            else key.public.point,
            qe_report=report,
            qe_report_signature=pki.key(fault.qe_key).sign(report.raw),
            auth_data=auth_data,
            pck_chain=pki.pem(*fault.quote_chain) + b"\0",
            padding=0,
        )
        return fault.patch(encode_quote(quote))

    def policy(self, launch: SimulatedLaunch) -> TdxPolicy:
        """Return the strictest policy that accepts this platform, honest, running `launch`."""
        return TdxPolicy(
            accepted_status=frozenset({TcbStatus.UP_TO_DATE}),
            mr_td=frozenset({launch.mr_td}),
            rtmr0=frozenset({launch.rtmr[0]}),
            rtmr1=frozenset({launch.rtmr[1]}),
            rtmr2=frozenset({launch.rtmr[2]}),
            rtmr3=frozenset({launch.rtmr[3]}),
            mr_seam=frozenset({self.mr_seam}),
            mr_config_id=frozenset({launch.mr_config_id}),
            mr_owner=frozenset({launch.mr_owner}),
            mr_owner_config=frozenset({launch.mr_owner_config}),
            platforms=frozenset({self.ppid}),
            platform_flags=frozenset(),
            min_evaluation=_EVALUATION,
            min_root_crl_issued=self._now - timedelta(days=1),
            min_pck_crl_issued=self._now - timedelta(days=1),
            max_collateral_age=timedelta(days=30),
            unsafe_simulated=True,
        )

    def _body(self, launch: SimulatedLaunch, report_data: bytes, *, td15: bool) -> TdBody10:
        body = TdBody10(
            tee_tcb_svn=_TEE_TCB_SVN,
            mr_seam=self.mr_seam,
            mr_signer_seam=bytes(48),
            seam_attributes=bytes(8),
            td_attributes=_TD_ATTRIBUTES,
            xfam=_XFAM,
            mr_td=launch.mr_td,
            mr_config_id=launch.mr_config_id,
            mr_owner=launch.mr_owner,
            mr_owner_config=launch.mr_owner_config,
            rtmr=launch.rtmr,
            report_data=report_data,
        )
        if not td15:
            return body
        values = {name: getattr(body, name) for name in TdBody10.__slots__}
        return TdBody15(**values, tee_tcb_svn2=_TEE_TCB_SVN, mr_service_td=bytes(48))

    def _qe_report(self, attestation_key: bytes, auth_data: bytes) -> QeReport:
        return QeReport(
            raw=b"",
            cpu_svn=self._platform.cpu_svn,
            misc_select=bytes(4),
            # INIT, MODE64BIT and PROVISION_KEY, as genuine QEs have them.
            attributes=bytes.fromhex("1500000000000000e700000000000000"),
            mr_enclave=hashlib.sha256(b"simulated TD QE").digest(),
            mr_signer=self._qe_signer(),
            isv_prod_id=2,
            isv_svn=_QE_SVN,
            report_data=hashlib.sha256(attestation_key + auth_data).digest() + bytes(32),
        )

    def _qe_signer(self) -> bytes:
        return hashlib.sha256(b"simulated TD QE signer").digest()

    def _dates(self) -> dict[str, JsonValue]:
        return {
            "issueDate": _stamp(self._now - timedelta(hours=1)),
            "nextUpdate": _stamp(self._now + LIFETIME),
        }

    def _tcb_info(self) -> dict[str, JsonValue]:
        module: dict[str, JsonValue] = {
            "mrsigner": "00" * 48,
            "attributes": "00" * 8,
            "attributesMask": "FF" * 8,
        }
        return {
            "id": "TDX",
            "version": 3,
            **self._dates(),
            "fmspc": _FMSPC.hex().upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": _EVALUATION,
            "tdxModule": module,
            "tdxModuleIdentities": [
                {"id": "TDX_01", **module, "tcbLevels": [_svn(6), _svn(4, old=True)]}
            ],
            "tcbLevels": [
                _level(_CPU_SVN, _PCE_SVN, bytes((5, 0, 3)) + bytes(13)),
                _level(OLD_CPU_SVN, 11, bytes((3, 0, 2)) + bytes(13), old=True),
            ],
        }

    def _qe_identity(self) -> dict[str, JsonValue]:
        return {
            "id": "TD_QE",
            "version": 2,
            **self._dates(),
            "tcbEvaluationDataNumber": _EVALUATION,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11" + "00" * 15,
            "attributesMask": "FB" + "FF" * 7 + "00" * 8,
            "mrsigner": self._qe_signer().hex().upper(),
            "isvprodid": 2,
            "tcbLevels": [_svn(4), _svn(2, old=True)],
        }


def _verdict(*, old: bool) -> dict[str, JsonValue]:
    if old:
        return {
            "tcbDate": "2024-03-13T00:00:00Z",
            "tcbStatus": "OutOfDate",
            "advisoryIDs": ["SIMULATED-SA-00001"],
        }
    return {"tcbDate": "2025-08-13T00:00:00Z", "tcbStatus": "UpToDate"}


def _svn(isv_svn: int, *, old: bool = False) -> dict[str, JsonValue]:
    return {"tcb": {"isvsvn": isv_svn}, **_verdict(old=old)}


def _level(sgx: bytes, pce_svn: int, tdx: bytes, *, old: bool = False) -> dict[str, JsonValue]:
    return {
        "tcb": {
            "sgxtcbcomponents": [{"svn": number} for number in sgx],
            "pcesvn": pce_svn,
            "tdxtcbcomponents": [{"svn": number} for number in tdx],
        },
        **_verdict(old=old),
    }
