"""Steps of policy over a verified SEV-SNP report. Clauses docs/protocols/snp.md, "Policy".

What is acceptable is the relying party's word. Where the report as a whole is not authentic, those
steps still run whose ground (`needs`) was proven, so that a refusal names everything.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from confide.appraisal.steps import Refused, Step, established
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import Reason
from confide.wire.snp import GuestPolicy, PlatformInfo, SigningKeyKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from confide.appraisal.snp_policy import Digests, SnpFloors, SnpPolicy
    from confide.crypto.x509 import Crl
    from confide.trust.amd import AmdAnchor
    from confide.wire.snp import SnpReport, SnpTcb, Tcb

__all__ = ["POLICY_STEPS", "JudgedReport", "PolicyState"]

_DOC = "docs/protocols/snp.md"
_ABI_MASK: Final = 0xFFFF
_KNOWN_POLICY: Final = _ABI_MASK | sum(GuestPolicy)
# From: docs/protocols/snp.md#9: what a guest may have allowed on top of the policy's list.
_PERMISSIONS: Final = GuestPolicy.SMT | GuestPolicy.CXL_ALLOW
_SIGNED: Final = ("snp/8.1",)
_OF_PRODUCT: Final = ("snp/5.1", "snp/8.1")


class JudgedReport(Protocol):
    """What the policy steps read, verified before or judged in the same run."""

    @property
    def report(self) -> SnpReport:
        """The report."""
        ...

    @property
    def anchor(self) -> AmdAnchor | None:
        """The anchor."""
        ...

    @property
    def kind(self) -> SigningKeyKind | None:
        """The kind of the key that signed."""
        ...

    @property
    def crl(self) -> Crl | None:
        """The revocation list, where one was given."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether the roots are simulated."""
        ...

    @property
    def not_before(self) -> datetime:
        """Since when everything behind the report is valid."""
        ...

    @property
    def not_after(self) -> datetime:
        """Until when everything behind the report is valid."""
        ...


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What the policy steps read, what the caller accepts, and when."""

    judged: JudgedReport
    policy: SnpPolicy
    report_data: bytes
    now: datetime

    @property
    def report(self) -> SnpReport:
        """The report."""
        return self.judged.report


def _step_3_3(state: PolicyState) -> str:
    if state.judged.crl is not None:
        return f"issued {state.judged.crl.this_update}"
    if state.policy.require_crl:
        raise Refused(Reason.CRL_MISSING, "no revocation list of AMD was given")
    return "none, as the policy allows"


def _step_3_4(state: PolicyState) -> str:
    if not state.judged.not_before <= state.now <= state.judged.not_after:
        raise Refused(
            Reason.EVIDENCE_STALE, f"what was verified held until {state.judged.not_after}"
        )
    return f"until {state.judged.not_after}"


def _step_4_2(state: PolicyState) -> str:
    kind = established(state.judged.kind)
    if kind is SigningKeyKind.VLEK and not state.policy.allow_vlek:
        raise Refused(Reason.VLEK_NOT_ALLOWED, "signed with the key of an operator, not of a chip")
    return str(kind)


def _step_5_2(state: PolicyState) -> str:
    product = established(state.judged.anchor).product
    if product not in state.policy.products:
        raise Refused(Reason.PRODUCT_NOT_ALLOWED, str(product))
    return str(product)


def _step_7_2(state: PolicyState) -> str:
    chip, policy = state.report.chip_id, state.policy
    if chip in policy.blocked_chips:
        raise Refused(Reason.PLATFORM_NOT_ALLOWED, f"{chip.hex()} is blocked")
    if isinstance(policy.chips, UnsafeAny):
        return f"{chip.hex()}: any chip, as the policy allows"
    if chip not in policy.chips or not any(chip):
        raise Refused(Reason.PLATFORM_NOT_ALLOWED, f"{chip.hex()} is not on the list")
    return chip.hex()


def _step_9_1(state: PolicyState) -> str | None:
    if not state.report.policy & GuestPolicy.DEBUG:
        return None
    if state.policy.unsafe_debug:
        return "DEBUG is set, as the policy allows"
    raise Refused(Reason.DEBUG, "the host can read this guest's memory")


def _step_9_2(state: PolicyState) -> str | None:
    if not state.report.policy & GuestPolicy.MIGRATE_MA:
        return None
    if state.policy.unsafe_migration_agent:
        return "a migration agent is allowed, as the policy allows"
    raise Refused(Reason.MIGRATION_AGENT, "a migration agent may take this guest elsewhere")


def _step_9_3(state: PolicyState) -> None:
    if not state.report.policy & GuestPolicy.RESERVED_ONE:
        raise Refused(Reason.POLICY_RESERVED, "bit 17 is clear")
    unknown = state.report.policy & ~_KNOWN_POLICY
    if unknown:
        raise Refused(Reason.POLICY_RESERVED, f"bits {unknown:#x} are set")


def _step_9_4(state: PolicyState) -> str:
    if state.report.vmpl > state.policy.max_vmpl:
        raise Refused(Reason.VMPL, f"VMPL {state.report.vmpl:#x}, at most {state.policy.max_vmpl}")
    return f"VMPL {state.report.vmpl}"


def _named(bits: GuestPolicy | PlatformInfo) -> str:
    return ", ".join(sorted(str(bit.name) for bit in bits))


def _step_9_5(state: PolicyState) -> str:
    word, policy = state.report.policy, state.policy
    allowed = GuestPolicy(word & _PERMISSIONS) & ~policy.guest_allowed
    if allowed:
        raise Refused(Reason.GUEST_POLICY, f"the guest allows {_named(allowed)}")
    missing = policy.guest_required & ~GuestPolicy(word & policy.guest_required)
    if missing:
        raise Refused(Reason.GUEST_POLICY, f"the guest does not demand {_named(missing)}")
    if state.report.abi < policy.min_abi:
        raise Refused(Reason.GUEST_POLICY, f"ABI {state.report.abi}, at least {policy.min_abi}")
    return f"{word:#x}"


def _step_9_6(state: PolicyState) -> str:
    required = state.policy.platform_required
    missing = required & ~PlatformInfo(state.report.platform_info & required)
    if missing:
        raise Refused(Reason.PLATFORM_INFO, f"the machine lacks {_named(missing)}")
    return f"{state.report.platform_info:#x}"


def _step_9_7(state: PolicyState) -> str:
    if state.judged.simulated and not state.policy.unsafe_simulated:
        raise Refused(Reason.SIMULATED_NOT_ALLOWED, "the anchor is a simulated one")
    return "SIMULATED" if state.judged.simulated else "hardware"


def _floor(
    read: Callable[[SnpReport], Tcb], floor_of: Callable[[SnpFloors], SnpTcb]
) -> Callable[[PolicyState], str]:
    def step(state: PolicyState) -> str:
        product = established(state.judged.anchor).product
        floors = state.policy.floors_of(product)
        if floors is None:
            raise Refused(Reason.TCB_FLOOR, f"the policy has no floor for {product}")
        tcb = read(state.report).components(product)
        below = tcb.below(floor_of(floors))
        if below:
            raise Refused(Reason.TCB_FLOOR, f"{tcb}: below the floor in {', '.join(below)}")
        return str(tcb)

    return step


def _step_10_4(state: PolicyState) -> str:
    committed = state.report.committed
    if committed < state.policy.min_firmware:
        raise Refused(
            Reason.TCB_FLOOR, f"firmware {committed}, at least {state.policy.min_firmware}"
        )
    return f"firmware {committed}"


def _require(value: bytes, accepted: Digests, reason: Reason) -> str:
    if isinstance(accepted, UnsafeAny):
        return "any value, as the policy allows"
    if value not in accepted:
        raise Refused(reason, f"{value.hex()} is not accepted")
    return value.hex()


def _step_11_1(state: PolicyState) -> str:
    return _require(state.report.measurement, state.policy.measurement, Reason.MEASUREMENT_MISMATCH)


def _step_11_2(state: PolicyState) -> str:
    return _require(state.report.host_data, state.policy.host_data, Reason.HOST_DATA_MISMATCH)


def _step_11_3(state: PolicyState) -> str:
    report, policy = state.report, state.policy
    _require(report.author_key_digest, policy.author_key_digest, Reason.ID_KEY_MISMATCH)
    return _require(report.id_key_digest, policy.id_key_digest, Reason.ID_KEY_MISMATCH)


def _step_11_4(state: PolicyState) -> None:
    # Constant time costs nothing here and keeps the rule without exception.
    if not hmac.compare_digest(state.report.report_data, state.report_data):
        raise Refused(Reason.REPORT_DATA_MISMATCH, "the report was made for something else")


POLICY_STEPS: Final[tuple[Step[PolicyState], ...]] = (
    Step("snp/3.3", f"{_DOC}#3", _step_3_3, ("snp/3.2",)),
    Step("snp/3.4", f"{_DOC}#3", _step_3_4, ("snp/3.1", "snp/3.2")),
    Step("snp/4.2", f"{_DOC}#4", _step_4_2, ("snp/4.1",)),
    Step("snp/5.2", f"{_DOC}#5", _step_5_2, ("snp/5.1",)),
    Step("snp/7.2", f"{_DOC}#7", _step_7_2, ("snp/7.1", "snp/8.1")),
    Step("snp/9.1", f"{_DOC}#9", _step_9_1, _SIGNED),
    Step("snp/9.2", f"{_DOC}#9", _step_9_2, _SIGNED),
    Step("snp/9.3", f"{_DOC}#9", _step_9_3, _SIGNED),
    Step("snp/9.4", f"{_DOC}#9", _step_9_4, _SIGNED),
    Step("snp/9.5", f"{_DOC}#9", _step_9_5, _SIGNED),
    Step("snp/9.6", f"{_DOC}#9", _step_9_6, _SIGNED),
    Step("snp/9.7", f"{_DOC}#9", _step_9_7),
    Step(
        "snp/10.1",
        f"{_DOC}#10",
        _floor(lambda report: report.reported_tcb, lambda floors: floors.reported),
        (*_OF_PRODUCT, "snp/5.2"),
    ),
    Step(
        "snp/10.2",
        f"{_DOC}#10",
        _floor(lambda report: report.committed_tcb, lambda floors: floors.committed),
        (*_OF_PRODUCT, "snp/5.2"),
    ),
    Step(
        "snp/10.3",
        f"{_DOC}#10",
        _floor(lambda report: report.launch_tcb, lambda floors: floors.launch),
        (*_OF_PRODUCT, "snp/5.2"),
    ),
    Step("snp/10.4", f"{_DOC}#10", _step_10_4, _SIGNED),
    Step("snp/11.1", f"{_DOC}#11", _step_11_1, _SIGNED),
    Step("snp/11.2", f"{_DOC}#11", _step_11_2, _SIGNED),
    Step("snp/11.3", f"{_DOC}#11", _step_11_3, _SIGNED),
    Step("snp/11.4", f"{_DOC}#11", _step_11_4, _SIGNED),
)
