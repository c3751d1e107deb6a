"""The two profiles a policy starts from: `strict` and `audit` (docs/protocols/policy.md §5).

`strict` accepts nothing until the caller says which launch is expected. `audit` is for looking at
a service: it refuses what the evidence contradicts about authenticity, and reports the rest.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.service_policy import (
    ClaimSection,
    NvidiaSection,
    Policy,
    ProvenanceSection,
    SnpSection,
    TdxSection,
    WorkloadSection,
)
from confide.appraisal.tdx_policy import UnsafeAny
from confide.wire.collateral import TcbStatus

__all__ = ["AUDIT", "PROFILES", "STRICT"]

_ANY: Final = UnsafeAny()
_NOTHING: Final[frozenset[str]] = frozenset()
_ZERO: Final = frozenset({"00" * 48})
# Before Intel, AMD or NVIDIA issued anything that is judged here.
_BEGINNING: Final = datetime(2018, 1, 1, tzinfo=UTC)

STRICT: Final = Policy(
    name="strict",
    claims=ClaimSection(
        require=frozenset(
            {
                ClaimName.HARDWARE,
                ClaimName.TCB,
                ClaimName.DEBUG_OFF,
                ClaimName.FRESHNESS,
                ClaimName.KEYS,
                ClaimName.LAUNCH,
                ClaimName.WORKLOAD,
                ClaimName.WORKLOAD_EXPECTED,
                ClaimName.IMAGES_PINNED,
                ClaimName.WORKLOAD_COMPLETE,
            }
        ),
        unsafe_tolerate=_NOTHING,
    ),
    tdx=TdxSection(
        tcb_status=frozenset({TcbStatus.UP_TO_DATE.value}),
        mrtd=_NOTHING,
        rtmr0=_NOTHING,
        rtmr1=_NOTHING,
        rtmr2=_NOTHING,
        rtmr3=_NOTHING,
        mrconfigid=_NOTHING,
        mrowner=_ZERO,
        mrownerconfig=_ZERO,
        # The module is judged by Intel's module identities in every case (tdx/24).
        mrseam=_ANY,
        service_td=_ZERO,
        platforms=_ANY,
        blocked_platforms=_NOTHING,
        # All genuine platforms that are up to date have several packages and SMT.
        platform_flags=frozenset({"dynamic", "cached-keys", "smt"}),
        attributes=_NOTHING,
        min_tcb_evaluation=0,
        max_collateral_days=30,
        min_root_crl_issued=_BEGINNING,
        min_pck_crl_issued=_BEGINNING,
        unsafe_sept_ve_clear=False,
        unsafe_debug=False,
    ),
    snp=SnpSection(
        # Milan is refused: its attestation keys can be derived in software (docs/threat-model.md).
        products=frozenset({"Genoa", "Turin"}),
        measurements=_NOTHING,
        host_data=_NOTHING,
        chips=_ANY,
        blocked_chips=_NOTHING,
        id_keys=_ZERO,
        author_keys=_ZERO,
        # Two threads of one core belong to one guest; clouds offer nothing else.
        guest_allowed=frozenset({"SMT"}),
        # From: AMD-SB-3019, microcode signature verification.
        min_tcb=frozenset({"Milan:0.0.24.0", "Genoa:0.0.23.0"}),
        max_vmpl=0,
        require_crl=True,
        require_alias_check=True,
        require_single_socket=False,
        unsafe_vlek=False,
        unsafe_migration=False,
        unsafe_debug=False,
    ),
    nvidia=NvidiaSection(
        chips=frozenset({"GH100", "GB100"}),
        modes=frozenset({"SPT", "MPT", "PPCIE"}),
        counts=_ANY,
        drivers=_ANY,
        vbios=_ANY,
        switch_bios=_ANY,
        min_driver=_NOTHING,
        min_vbios=_NOTHING,
        max_ocsp_hours=24,
        unsafe_rim_hold=False,
        unsafe_expired_rim=False,
        unsafe_missing_fwid=False,
    ),
    workload=WorkloadSection(documents=_NOTHING, os_images=_NOTHING, key_providers=_ANY),
    provenance=ProvenanceSection(identities=_NOTHING),
    unsafe_simulated=False,
)

AUDIT: Final = Policy(
    name="audit",
    claims=ClaimSection(
        require=frozenset({ClaimName.HARDWARE, ClaimName.DEBUG_OFF}),
        unsafe_tolerate=frozenset(
            {
                ClaimName.TCB,
                ClaimName.PLATFORM,
                ClaimName.TLS,
                ClaimName.KEY_LIFETIME,
                ClaimName.LAUNCH,
                ClaimName.WORKLOAD_EXPECTED,
                ClaimName.IMAGES_PINNED,
                ClaimName.IMAGE_PROVENANCE,
                ClaimName.WORKLOAD_COMPLETE,
                ClaimName.OPERATOR_ACCESS,
                ClaimName.MODEL_WEIGHTS,
                ClaimName.GPU_TOPOLOGY,
                ClaimName.GPU_BINDING,
            }
        ),
    ),
    tdx=replace(
        STRICT.tdx,
        tcb_status=frozenset(s.value for s in TcbStatus if s is not TcbStatus.REVOKED),
        mrtd=_ANY,
        rtmr0=_ANY,
        rtmr1=_ANY,
        rtmr2=_ANY,
        rtmr3=_ANY,
        mrconfigid=_ANY,
        mrowner=_ANY,
        mrownerconfig=_ANY,
        attributes=frozenset({"pks", "key-locker", "perfmon"}),
        unsafe_sept_ve_clear=True,
    ),
    snp=replace(
        STRICT.snp,
        products=_ANY,
        measurements=_ANY,
        host_data=_ANY,
        id_keys=_ANY,
        author_keys=_ANY,
        guest_allowed=_ANY,
        min_tcb=_NOTHING,
        max_vmpl=3,
        require_crl=False,
        require_alias_check=False,
        unsafe_vlek=True,
    ),
    nvidia=replace(STRICT.nvidia, chips=_ANY, modes=_ANY, unsafe_missing_fwid=True),
    workload=WorkloadSection(documents=_ANY, os_images=_NOTHING, key_providers=_ANY),
    provenance=ProvenanceSection(identities=_NOTHING),
    unsafe_simulated=False,
)

PROFILES: Final = {policy.name: policy for policy in (STRICT, AUDIT)}
