"""From the section `tdx` of a policy to the policy of TDX evidence. Pure.

Clauses: docs/protocols/policy.md §4. One place decides how a field becomes a check;
`service_map_snp` is the other section's.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from confide.appraisal.tdx_policy import PlatformFlag, TdAttribute, TdxPolicy, UnsafeAny
from confide.wire.collateral import TcbStatus

if TYPE_CHECKING:
    from enum import StrEnum

    from confide.appraisal.policy_rules import Allowed
    from confide.appraisal.service_policy import Policy
    from confide.appraisal.tdx_policy import Registers

    Member = TypeVar("Member", bound=StrEnum)

__all__ = ["registers", "tdx_policy_of"]


def registers(allowed: Allowed) -> Registers:
    """Return a list of hex values as bytes; `none` is a value that no register has."""
    if isinstance(allowed, UnsafeAny):
        return allowed
    return frozenset(bytes.fromhex(value) if value != "none" else b"" for value in allowed)


def _members(kind: type[Member], allowed: Allowed) -> frozenset[Member]:
    if isinstance(allowed, UnsafeAny):
        return frozenset(member for member in kind if member.value != TcbStatus.REVOKED.value)
    return frozenset(kind(value) for value in allowed)


def tdx_policy_of(policy: Policy) -> TdxPolicy:
    """Return the TDX policy that the section `tdx` writes down."""
    section = policy.tdx
    return TdxPolicy(
        accepted_status=_members(TcbStatus, section.tcb_status),
        mr_td=registers(section.mrtd),
        rtmr0=registers(section.rtmr0),
        rtmr1=registers(section.rtmr1),
        rtmr2=registers(section.rtmr2),
        rtmr3=registers(section.rtmr3),
        mr_seam=registers(section.mrseam),
        mr_config_id=registers(section.mrconfigid),
        platforms=registers(section.platforms),
        platform_flags=_members(PlatformFlag, section.platform_flags),
        min_evaluation=section.min_tcb_evaluation,
        min_root_crl_issued=section.min_root_crl_issued,
        min_pck_crl_issued=section.min_pck_crl_issued,
        max_collateral_age=timedelta(days=section.max_collateral_days),
        mr_owner=registers(section.mrowner),
        mr_owner_config=registers(section.mrownerconfig),
        service_td=registers(section.service_td),
        blocked_platforms=frozenset(bytes.fromhex(name) for name in section.blocked_platforms),
        unsafe_attributes=_members(TdAttribute, section.attributes),
        unsafe_debug=section.unsafe_debug,
        unsafe_sept_ve_clear=section.unsafe_sept_ve_clear,
        unsafe_simulated=policy.unsafe_simulated,
    )
