"""From an Expectation to the policies of each kind of evidence. Pure.

One place decides how a manifest field becomes a check (docs/protocols/expectation.md §3). Values
that no evidence could ever meet are refused here, with the field named.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from confide.appraisal.tdx_policy import ByEventLog, PlatformFlag, TdxPolicy, UnsafeAny
from confide.errors import FormatError, Reason
from confide.wire.collateral import TcbStatus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from enum import StrEnum

    from confide.appraisal.nvidia_policy import NvidiaPolicy
    from confide.expectation import Expectation, GpuSpec, NodeSpec
    from confide.trust.roots import Roots

    Member = TypeVar("Member", bound=StrEnum)

__all__ = ["gpu_policy", "tdx_policy"]

# An OCSP answer of NVIDIA lives 24 hours (nvidia.md §5); a policy can only shorten that.
_MAX_OCSP_AGE = timedelta(hours=24)
# Roll-back of the PCK list is bounded by `max_collateral_days`, that of the root list, which Intel
# issues about once a year, by its own end of life. An Expectation writes no separate floor.
_NO_FLOOR = datetime(2018, 1, 1, tzinfo=UTC)


def _refuse(field: str) -> FormatError:
    return FormatError(
        f"Expectation: {field} holds a value that no evidence can meet",
        reason=Reason.EXPECTATION_MISMATCH,
        clause="docs/protocols/expectation.md#3",
    )


def _registers(values: Sequence[str]) -> frozenset[bytes]:
    return frozenset(bytes.fromhex(value) for value in values)


def _members(kind: type[Member], values: Sequence[str], field: str) -> frozenset[Member]:
    try:
        return frozenset(kind(value) for value in values)
    except ValueError as error:
        raise _refuse(field) from error


def tdx_policy(expectation: Expectation, spec: NodeSpec, *, roots: Roots) -> TdxPolicy:
    """
    Return the TDX policy for the node that `spec` describes.

    RTMR3 is judged by replaying the node's own log (node/6). `unsafe_simulated` follows `roots`,
    which step node/1 compares with the name in the Expectation. Raises `FormatError`.
    """
    hardware = expectation.hardware
    statuses = _members(TcbStatus, hardware.tcb_status, "hardware.tcb_status")
    if TcbStatus.REVOKED in statuses:
        raise _refuse("hardware.tcb_status")
    platforms = _registers(hardware.platforms)
    return TdxPolicy(
        accepted_status=statuses,
        mr_td=_registers(spec.mrtd),
        rtmr0=_registers(spec.rtmr0),
        rtmr1=_registers(spec.rtmr1),
        rtmr2=_registers(spec.rtmr2),
        rtmr3=ByEventLog(),
        mr_seam=_registers(hardware.mrseam),
        mr_config_id=_registers(spec.mrconfigid),
        platforms=platforms or UnsafeAny(),
        platform_flags=_members(PlatformFlag, hardware.platform_flags, "hardware.platform_flags"),
        min_evaluation=hardware.min_tcb_evaluation,
        min_root_crl_issued=_NO_FLOOR,
        min_pck_crl_issued=_NO_FLOOR,
        max_collateral_age=timedelta(days=hardware.max_collateral_days),
        unsafe_simulated=roots.simulated,
    )


def gpu_policy(spec: GpuSpec) -> NvidiaPolicy:
    """Return the policy for the GPUs of a model node. Raises `FormatError`."""
    # An agent node has no GPU.
    from confide.appraisal.nvidia_policy import (  # noqa: PLC0415
        AllowedVersions,
        GpuMode,
        NvidiaPolicy,
    )

    try:
        return NvidiaPolicy(
            chips=frozenset(spec.chips),
            mode=GpuMode(spec.mode),
            gpu_count=spec.count,
            driver=AllowedVersions(spec.drivers),
            vbios=AllowedVersions(spec.vbios),
            max_ocsp_age=_MAX_OCSP_AGE,
        )
    except ValueError as error:
        raise _refuse("gpu") from error
