"""Steps of policy over a verified quote. Clauses docs/protocols/tdx.md, "Policy".

Everything read here is authentic; what is acceptable is the relying party's word.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.appraisal.steps import Refused, Step
from confide.appraisal.tdx_policy import ByEventLog, PlatformFlag, TrailingBytes, UnsafeAny
from confide.errors import Reason
from confide.wire.tdx import TdBody15

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from confide.appraisal.tdx_policy import LoggedRegisters, TdxPolicy
    from confide.appraisal.tdx_types import VerifiedQuote
    from confide.wire.tdx import TdBody10

__all__ = ["POLICY_STEPS", "PolicyState"]

_DOC = "docs/protocols/tdx.md"
# From: Intel TDX Module Base Architecture Specification, TD_ATTRIBUTES: DEBUG and the TUD group.
_DEBUG: Final = 0x01
_DEBUG_GROUP: Final = 0xFF
_SEPT_VE_DISABLE: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What the policy steps read."""

    verified: VerifiedQuote
    policy: TdxPolicy
    report_data: bytes
    now: datetime

    @property
    def body(self) -> TdBody10:
        """The report body."""
        return self.verified.quote.body

    @property
    def attributes(self) -> int:
        """TDATTRIBUTES as a number."""
        return int.from_bytes(self.body.td_attributes, "little")


def _step_4_2(state: PolicyState) -> str:
    padding = state.verified.quote.padding
    if padding and state.policy.trailing_bytes is TrailingBytes.NONE:
        raise Refused(Reason.TRAILING_BYTES, f"{padding} bytes after the signature")
    return f"{padding} bytes after the signature"


def _step_8_3(state: PolicyState) -> str:
    verified = state.verified
    if not verified.collateral.not_before <= state.now <= verified.not_after:
        raise Refused(Reason.EVIDENCE_STALE, f"what was verified held until {verified.not_after}")
    return "nothing has expired since"


def _step_9_3(state: PolicyState) -> None:
    endorsed, policy = state.verified.collateral, state.policy
    if endorsed.root_crl.this_update < policy.min_root_crl_issued:
        raise Refused(Reason.CRL_AGE_FLOOR, "the root revocation list is older than the floor")
    if endorsed.pck_crl.this_update < policy.min_pck_crl_issued:
        raise Refused(Reason.CRL_AGE_FLOOR, "the PCK revocation list is older than the floor")


def _step_15_2(state: PolicyState) -> str:
    endorsed = state.verified.collateral
    issued = min(
        endorsed.tcb_info.issued, endorsed.qe_identity.issued, endorsed.pck_crl.this_update
    )
    age = state.now - issued
    if age > state.policy.max_collateral_age:
        raise Refused(
            Reason.COLLATERAL_AGE,
            f"{int(age.total_seconds())} s old, at most "
            f"{int(state.policy.max_collateral_age.total_seconds())} s",
        )
    return f"oldest part of {issued}"


def _step_18(state: PolicyState) -> str:
    endorsed = state.verified.collateral
    lower = min(endorsed.tcb_info.evaluation, endorsed.qe_identity.evaluation)
    if lower < state.policy.min_evaluation:
        raise Refused(
            Reason.TCB_EVAL_FLOOR, f"evaluation {lower}, at least {state.policy.min_evaluation}"
        )
    return f"evaluation {lower}"


def _step_28(state: PolicyState) -> str:
    status = state.verified.tcb.status
    if status not in state.policy.accepted_status:
        raise Refused(Reason.TCB_STATUS, str(status))
    return str(status)


def _step_29_1(state: PolicyState) -> str | None:
    found = state.attributes & _DEBUG_GROUP
    if found == _DEBUG and state.policy.unsafe_debug:
        return "DEBUG is set, as the policy allows"
    if found:
        raise Refused(Reason.TD_DEBUG, "the host can read this guest's memory")
    return None


def _step_29_2(state: PolicyState) -> str | None:
    if state.attributes & _SEPT_VE_DISABLE:
        return None
    if state.policy.unsafe_sept_ve_clear:
        return "clear, as the policy allows"
    raise Refused(Reason.SEPT_VE_DISABLE, "SEPT_VE_DISABLE is clear")


def _step_29_3(state: PolicyState) -> None:
    allowed = state.policy.unsafe_attributes_mask
    if allowed is None:
        allowed = _SEPT_VE_DISABLE
        for attribute in state.policy.unsafe_attributes:
            allowed |= 1 << attribute.bit
    # DEBUG belongs to 29.1; the rest of its group is reserved like any other bit.
    extra = state.attributes & ~(allowed | _DEBUG)
    if extra:
        raise Refused(Reason.TD_ATTRIBUTES, f"bits {extra:#x} are set")


def _step_29_4(state: PolicyState) -> None:
    xfam, policy = int.from_bytes(state.body.xfam, "little"), state.policy
    if xfam & policy.xfam_required != policy.xfam_required or xfam & ~policy.xfam_allowed:
        raise Refused(Reason.XFAM, f"XFAM is {xfam:#x}")


def _step_29_5(state: PolicyState) -> str | None:
    body = state.body
    if not isinstance(body, TdBody15):
        return "TD 1.0: no service TD"
    return _require(body.mr_service_td, state.policy.service_td, Reason.SERVICE_TD)


def _require(value: bytes, accepted: LoggedRegisters, reason: Reason) -> str | None:
    match accepted:
        case UnsafeAny():
            return "any value, as the policy allows"
        case ByEventLog():
            return "left to the replay of an event log"
        case frozenset():
            if value not in accepted:
                raise Refused(reason, f"{value.hex()} is not accepted")
            return value.hex()


def _register(
    read: Callable[[TdBody10], bytes], accepted: Callable[[TdxPolicy], LoggedRegisters], why: Reason
) -> Callable[[PolicyState], str | None]:
    def step(state: PolicyState) -> str | None:
        return _require(read(state.body), accepted(state.policy), why)

    return step


def _step_30_8(state: PolicyState) -> str | None:
    body, policy = state.body, state.policy
    _require(body.mr_owner_config, policy.mr_owner_config, Reason.MROWNER_MISMATCH)
    return _require(body.mr_owner, policy.mr_owner, Reason.MROWNER_MISMATCH)


def _step_30_9(state: PolicyState) -> str:
    platform = state.verified.platform
    names = {platform.ppid} | {platform.platform_instance} - {None}
    if names & state.policy.blocked_platforms:
        raise Refused(Reason.PLATFORM_NOT_ALLOWED, f"{platform.ppid.hex()} is blocked")
    if isinstance(state.policy.platforms, UnsafeAny):
        return f"{platform.ppid.hex()}: any platform, as the policy allows"
    if not names & state.policy.platforms:
        raise Refused(Reason.PLATFORM_NOT_ALLOWED, f"{platform.ppid.hex()} is not on the list")
    return platform.ppid.hex()


def _step_30_10(state: PolicyState) -> None:
    platform, allowed = state.verified.platform, state.policy.platform_flags
    for flag, is_set, reason in (
        (PlatformFlag.DYNAMIC, platform.dynamic_platform, Reason.DYNAMIC_PLATFORM),
        (PlatformFlag.CACHED_KEYS, platform.cached_keys, Reason.PLATFORM_NOT_ALLOWED),
        (PlatformFlag.SMT, platform.smt_enabled, Reason.PLATFORM_NOT_ALLOWED),
    ):
        if is_set and flag not in allowed:
            raise Refused(reason, f"the platform flag {flag} is set")


def _step_30_11(state: PolicyState) -> str:
    anchor = state.verified.collateral.anchor
    if anchor.simulated and not state.policy.unsafe_simulated:
        raise Refused(Reason.SIMULATED_NOT_ALLOWED, "the anchor is a simulated one")
    return "SIMULATED" if anchor.simulated else "hardware"


def _step_31(state: PolicyState) -> None:
    # Constant time costs nothing here and keeps the rule without exception.
    if not hmac.compare_digest(state.body.report_data, state.report_data):
        raise Refused(Reason.REPORT_DATA_MISMATCH, "the quote was made for something else")


POLICY_STEPS: Final[tuple[Step[PolicyState], ...]] = (
    Step("tdx/4.2", f"{_DOC}#4", _step_4_2),
    Step("tdx/8.3", f"{_DOC}#8", _step_8_3),
    Step("tdx/9.3", f"{_DOC}#9", _step_9_3),
    Step("tdx/15.2", f"{_DOC}#15", _step_15_2),
    Step("tdx/18", f"{_DOC}#18", _step_18),
    Step("tdx/28", f"{_DOC}#28", _step_28),
    Step("tdx/29.1", f"{_DOC}#29", _step_29_1),
    Step("tdx/29.2", f"{_DOC}#29", _step_29_2),
    Step("tdx/29.3", f"{_DOC}#29", _step_29_3),
    Step("tdx/29.4", f"{_DOC}#29", _step_29_4),
    Step("tdx/29.5", f"{_DOC}#29", _step_29_5),
    Step(
        "tdx/30.1",
        f"{_DOC}#30",
        _register(lambda body: body.mr_td, lambda policy: policy.mr_td, Reason.MRTD_MISMATCH),
    ),
    Step(
        "tdx/30.2",
        f"{_DOC}#30",
        _register(lambda body: body.rtmr[0], lambda policy: policy.rtmr0, Reason.RTMR0_MISMATCH),
    ),
    Step(
        "tdx/30.3",
        f"{_DOC}#30",
        _register(lambda body: body.rtmr[1], lambda policy: policy.rtmr1, Reason.RTMR1_MISMATCH),
    ),
    Step(
        "tdx/30.4",
        f"{_DOC}#30",
        _register(lambda body: body.rtmr[2], lambda policy: policy.rtmr2, Reason.RTMR2_MISMATCH),
    ),
    Step(
        "tdx/30.5",
        f"{_DOC}#30",
        _register(lambda body: body.rtmr[3], lambda policy: policy.rtmr3, Reason.RTMR3_MISMATCH),
    ),
    Step(
        "tdx/30.6",
        f"{_DOC}#30",
        _register(
            lambda body: body.mr_seam, lambda policy: policy.mr_seam, Reason.MRSEAM_NOT_ALLOWED
        ),
    ),
    Step(
        "tdx/30.7",
        f"{_DOC}#30",
        _register(
            lambda body: body.mr_config_id,
            lambda policy: policy.mr_config_id,
            Reason.MRCONFIGID_MISMATCH,
        ),
    ),
    Step("tdx/30.8", f"{_DOC}#30", _step_30_8),
    Step("tdx/30.9", f"{_DOC}#30", _step_30_9),
    Step("tdx/30.10", f"{_DOC}#30", _step_30_10),
    Step("tdx/30.11", f"{_DOC}#30", _step_30_11),
    Step("tdx/31", f"{_DOC}#31", _step_31),
)
