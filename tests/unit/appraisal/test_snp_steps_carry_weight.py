"""Every numbered step carries weight: without it, some fault is no longer refused as it must be.

A mutant is the procedure with one step removed and nothing else changed. `ACCEPTED_WITHOUT` is the
strong form: without the step the fault is *accepted*.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from confide.appraisal import snp
from confide.errors import PolicyRejected, Reason, Rejected
from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine, SnpFault
from confide.simulator.snp_faults import FAULTS
from confide.wire.snp import Product, SigningKeyKind

if TYPE_CHECKING:
    from confide.appraisal.snp_policy import SnpFloors, SnpPolicy
    from confide.appraisal.steps import Step

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
REPORT_DATA = hashlib.sha512(b"report data").digest()
LAUNCH = SimulatedSnpLaunch(measurement=b"\1" * 48, host_data=b"\2" * 32)
HONEST = SimulatedSnpMachine(b"test", NOW)

# Without the step, the fault is accepted.
ACCEPTED_WITHOUT = {
    "snp/2.2": SnpFault.FORGED_LEAF,
    "snp/2.3": SnpFault.OTHER_AUTHORITY,
    "snp/3.2": SnpFault.REVOKED_ASK,
    "snp/3.3": SnpFault.MISSING_CRL,
    "snp/4.1": SnpFault.OTHER_KEY_KIND,
    "snp/5.1": SnpFault.OTHER_PRODUCT,
    "snp/6": SnpFault.OTHER_TCB,
    "snp/7.1": SnpFault.OPERATOR_AND_CHIP,
    "snp/8.1": SnpFault.FORGED_REPORT,
    "snp/8.2": SnpFault.RESERVED_BYTE,
    "snp/8.3": SnpFault.OTHER_CPUID,
    "snp/9.1": SnpFault.DEBUG,
    "snp/9.2": SnpFault.MIGRATION_AGENT,
    "snp/9.3": SnpFault.POLICY_BIT_CLEAR,
    "snp/9.4": SnpFault.HOST_REPORT,
    "snp/9.5": SnpFault.CXL_ALLOWED,
    "snp/9.6": SnpFault.NO_ALIAS_CHECK,
    "snp/10.1": SnpFault.OLD_REPORTED_TCB,
    "snp/10.2": SnpFault.OLD_COMMITTED_TCB,
    "snp/10.3": SnpFault.OLD_LAUNCH_TCB,
    "snp/10.4": SnpFault.OLD_FIRMWARE,
    "snp/11.1": SnpFault.WRONG_MEASUREMENT,
    "snp/11.2": SnpFault.WRONG_HOST_DATA,
    "snp/11.3": SnpFault.WRONG_ID_KEY,
    "snp/11.4": SnpFault.REPLAYED_NONCE,
}
# Without the step, the fault is still refused, but by a later step: times are held against the
# validity of the whole.
BACKED_UP = {"snp/3.1": (SnpFault.EXPIRED_LEAF, "snp/3.4")}
# Without the step there is no anchor to report, and the procedure stops as a bug would.
STOPPED = {"snp/2.1": SnpFault.WRONG_ROOT}
# Shown below: no fault, because the machine cannot know what the policy says, or time passes.
BY_POLICY = {"snp/3.4", "snp/4.2", "snp/5.2", "snp/7.2", "snp/9.7"}

REGISTRIES = ("_STEPS", "POLICY_STEPS")


def _remove(monkeypatch: pytest.MonkeyPatch, removed: str) -> None:
    """Remove one step, and its name from the needs of the others."""

    def without(steps: tuple[Step[Any], ...]) -> tuple[Step[Any], ...]:
        return tuple(
            replace(step, needs=tuple(need for need in step.needs if need != removed))
            for step in steps
            if step.id != removed
        )

    for registry in REGISTRIES:
        monkeypatch.setattr(snp, registry, without(getattr(snp, registry)))


def _appraise(
    fault: SnpFault | None = None,
    *,
    policy: SnpPolicy | None = None,
    machine: SimulatedSnpMachine | None = None,
) -> None:
    found = machine or SimulatedSnpMachine(b"test", NOW, fault=fault)
    snp.appraise_snp(
        found.report(LAUNCH, report_data=REPORT_DATA),
        leaf_der=found.leaf_der,
        chain_pem=found.chain_pem,
        crl_der=found.crl_der,
        roots=HONEST.roots(),
        policy=policy or found.policy(LAUNCH),
        report_data=REPORT_DATA,
        now=NOW,
    )


def test_the_tables_name_every_step() -> None:
    steps = {step.id for registry in REGISTRIES for step in getattr(snp, registry)}
    assert steps == {*ACCEPTED_WITHOUT, *BACKED_UP, *STOPPED, *BY_POLICY}


@pytest.mark.parametrize(("step", "fault"), ACCEPTED_WITHOUT.items(), ids=ACCEPTED_WITHOUT)
def test_without_the_step_the_fault_is_accepted(
    monkeypatch: pytest.MonkeyPatch, step: str, fault: SnpFault
) -> None:
    with pytest.raises(Rejected) as refused:
        _appraise(fault)
    assert [found.step for found in refused.value.failures] == [step]
    _remove(monkeypatch, step)
    _appraise(fault)


@pytest.mark.parametrize(("step", "backed_up"), BACKED_UP.items(), ids=BACKED_UP)
def test_without_the_step_a_later_one_refuses(
    monkeypatch: pytest.MonkeyPatch, step: str, backed_up: tuple[SnpFault, str]
) -> None:
    fault, later = backed_up
    _remove(monkeypatch, step)
    with pytest.raises(Rejected) as refused:
        _appraise(fault)
    assert [failure.step for failure in refused.value.failures] == [later]
    assert refused.value.reason is not FAULTS[fault].reason


@pytest.mark.parametrize(("step", "fault"), STOPPED.items(), ids=STOPPED)
def test_without_the_step_the_procedure_stops(
    monkeypatch: pytest.MonkeyPatch, step: str, fault: SnpFault
) -> None:
    _remove(monkeypatch, step)
    with pytest.raises(RuntimeError):
        _appraise(fault)


def _refused_by(step: str, policy: SnpPolicy, machine: SimulatedSnpMachine) -> None:
    with pytest.raises(PolicyRejected) as refused:
        _appraise(policy=policy, machine=machine)
    assert [failure.step for failure in refused.value.failures] == [step]


def test_without_its_step_the_key_of_an_operator_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = SimulatedSnpMachine(b"test", NOW, kind=SigningKeyKind.VLEK)
    policy = replace(machine.policy(LAUNCH), allow_vlek=False)
    _refused_by("snp/4.2", policy, machine)
    _remove(monkeypatch, "snp/4.2")
    _appraise(policy=policy, machine=machine)


def test_without_its_step_a_product_that_is_not_accepted_meets_no_floor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = SimulatedSnpMachine(b"test", NOW, product=Product.GENOA).policy(LAUNCH)
    policy = replace(HONEST.policy(LAUNCH), products=other.products, floors=other.floors)
    _refused_by("snp/5.2", policy, HONEST)
    _remove(monkeypatch, "snp/5.2")
    with pytest.raises(PolicyRejected) as refused:
        _appraise(policy=policy, machine=HONEST)
    assert {failure.reason for failure in refused.value.failures} == {Reason.TCB_FLOOR}


def test_without_its_step_a_blocked_chip_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = replace(HONEST.policy(LAUNCH), blocked_chips=frozenset({HONEST.chip_id}))
    _refused_by("snp/7.2", policy, HONEST)
    _remove(monkeypatch, "snp/7.2")
    _appraise(policy=policy, machine=HONEST)


def test_without_its_step_a_policy_for_hardware_accepts_simulation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = replace(HONEST.policy(LAUNCH), unsafe_simulated=False)
    _refused_by("snp/9.7", policy, HONEST)
    _remove(monkeypatch, "snp/9.7")
    _appraise(policy=policy, machine=HONEST)


def test_without_the_stale_step_an_expired_proof_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verified = snp.verify_snp_report(
        HONEST.parsed_report(LAUNCH, report_data=REPORT_DATA),
        leaf_der=HONEST.leaf_der,
        chain_pem=HONEST.chain_pem,
        crl_der=HONEST.crl_der,
        roots=HONEST.roots(),
        now=NOW,
    )
    later = NOW + timedelta(days=400)

    def appraise() -> None:
        snp.appraise_snp_report(
            verified, HONEST.policy(LAUNCH), expected_report_data=REPORT_DATA, now=later
        )

    with pytest.raises(PolicyRejected) as refused:
        appraise()
    assert [failure.reason for failure in refused.value.failures] == [Reason.EVIDENCE_STALE]
    _remove(monkeypatch, "snp/3.4")
    appraise()


def test_the_floor_of_each_component_is_kept() -> None:
    """No component is compared with another one's floor, on any product."""
    for product in Product:
        machine = SimulatedSnpMachine(b"test", NOW, product=product)
        honest = machine.policy(LAUNCH)
        (floors,) = honest.floors
        names = ["boot_loader", "tee", "snp", "microcode"]
        for name in [*names, "fmc"] if product is Product.TURIN else names:
            for kind in ("reported", "committed", "launch"):
                least = getattr(floors, kind)
                higher = replace(least, **{name: getattr(least, name) + 1})
                raised: SnpFloors = replace(floors, **{kind: higher})
                with pytest.raises(PolicyRejected) as refused:
                    _appraise(policy=replace(honest, floors=(raised,)), machine=machine)
                (failure,) = refused.value.failures
                assert failure.reason is Reason.TCB_FLOOR
                assert failure.detail.endswith(f"below the floor in {name}")
