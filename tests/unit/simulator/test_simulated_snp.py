"""The simulated SNP machine: honest everywhere, dishonest in exactly one way, never genuine."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from confide.appraisal.snp import SnpResult, appraise_snp
from confide.errors import EvidenceRejected, FormatError, PolicyRejected, Reason, Rejected
from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine, SnpFault
from confide.simulator.snp_faults import FAULTS
from confide.simulator.snp_pki import simulated_amd_roots
from confide.trust.amd import AMD_ROOTS, AmdRoots
from confide.wire.snp import Product, SigningKeyKind, SnpTcb

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
SEED = b"test"
REPORT_DATA = hashlib.sha512(b"report data").digest()
LAUNCH = SimulatedSnpLaunch(measurement=b"\1" * 48, host_data=b"\2" * 32)
SHAPES = [
    (product, kind, version)
    for product in Product
    for kind in SigningKeyKind
    for version in (2, 3, 4, 5)
]


def appraise(
    machine: SimulatedSnpMachine, *, roots: AmdRoots | None = None, simulated: bool = True
) -> SnpResult:
    return appraise_snp(
        machine.report(LAUNCH, report_data=REPORT_DATA),
        leaf_der=machine.leaf_der,
        chain_pem=machine.chain_pem,
        crl_der=machine.crl_der,
        roots=machine.roots() if roots is None else roots,
        policy=replace(machine.policy(LAUNCH), unsafe_simulated=simulated),
        report_data=REPORT_DATA,
        now=NOW,
    )


@pytest.mark.parametrize(("product", "kind", "version"), SHAPES)
def test_an_honest_machine_of_every_shape_is_accepted(
    product: Product, kind: SigningKeyKind, version: int
) -> None:
    machine = SimulatedSnpMachine(SEED, NOW, product=product, kind=kind, version=version)
    result = appraise(machine)
    claims = result.claims
    assert result.simulated
    assert claims.simulated
    assert (claims.product, claims.key, claims.version) == (product, kind, version)
    assert claims.anchor in machine.roots().sha256
    assert claims.measurement == LAUNCH.measurement
    assert claims.host_data == LAUNCH.host_data
    assert claims.report_data == REPORT_DATA
    assert bool(claims.operator) is (kind is SigningKeyKind.VLEK)
    assert (claims.cpuid is not None) is (version >= 3)
    assert (claims.launch_mitigations is not None) is (version >= 4)
    assert "alias-check-complete" in claims.platform_info
    assert "anchor: simulated" in result.relaxations
    assert all(finding.status == "pass" for finding in result.findings)


def test_each_product_has_its_own_tcb_layout() -> None:
    found = {
        product: appraise(SimulatedSnpMachine(SEED, NOW, product=product)).claims
        for product in Product
    }
    assert found[Product.TURIN].reported_tcb == SnpTcb(
        fmc=1, boot_loader=1, tee=1, snp=4, microcode=74, other=bytes(3)
    )
    assert found[Product.MILAN].reported_tcb.fmc == 0
    assert found[Product.TURIN].chip_id[8:] == bytes(56)
    assert found[Product.GENOA].chip_id[8:] != bytes(56)
    assert found[Product.MILAN].current_tcb.microcode > found[Product.MILAN].reported_tcb.microcode


def test_equal_inputs_give_equal_bytes() -> None:
    one, two = (SimulatedSnpMachine(SEED, NOW) for _ in range(2))
    assert one.report(LAUNCH, report_data=REPORT_DATA) == two.report(
        LAUNCH, report_data=REPORT_DATA
    )
    assert (one.leaf_der, one.chain_pem, one.crl_der) == (two.leaf_der, two.chain_pem, two.crl_der)


def test_the_roots_follow_from_the_seed_alone() -> None:
    later = SimulatedSnpMachine(SEED, NOW.replace(year=2027)).roots()
    assert later == SimulatedSnpMachine(SEED, NOW).roots() == simulated_amd_roots(SEED)
    assert not set(later.sha256) & set(simulated_amd_roots(b"another").sha256)


@pytest.mark.parametrize("roots", [AMD_ROOTS, simulated_amd_roots(b"another")])
def test_other_roots_refuse_it(roots: AmdRoots) -> None:
    with pytest.raises(EvidenceRejected) as refused:
        appraise(SimulatedSnpMachine(SEED, NOW), roots=roots)
    assert refused.value.reason is Reason.ARK_NOT_PINNED


def test_a_simulated_root_that_is_passed_as_genuine_does_not_have_amds_names() -> None:
    machine = SimulatedSnpMachine(SEED, NOW)
    with pytest.raises(EvidenceRejected) as refused:
        appraise(machine, roots=replace(machine.roots(), simulated=False), simulated=False)
    assert refused.value.reason is Reason.CHAIN


def test_a_policy_for_hardware_refuses_it() -> None:
    with pytest.raises(PolicyRejected) as refused:
        appraise(SimulatedSnpMachine(SEED, NOW), simulated=False)
    assert [found.reason for found in refused.value.failures] == [Reason.SIMULATED_NOT_ALLOWED]


def test_every_fault_is_in_the_table() -> None:
    assert set(FAULTS) == set(SnpFault)


def _may_name_more(fault: SnpFault) -> bool:
    # What another step sees too: a root that is not trusted leaves nothing to stand on, an issuer
    # in the wrong place signed nothing, a foreign key kind brings the question of the chip.
    return fault in {SnpFault.CHAIN_ORDER, SnpFault.CHAIN_WITHOUT_ROOT, SnpFault.CHAIN_TOO_LONG}


@pytest.mark.parametrize("fault", list(SnpFault))
@pytest.mark.parametrize("product", list(Product))
def test_a_fault_is_refused_for_its_reason_alone(fault: SnpFault, product: Product) -> None:
    machine = SimulatedSnpMachine(SEED, NOW, product=product, fault=fault)
    with pytest.raises((FormatError, EvidenceRejected, PolicyRejected)) as refused:
        appraise(machine)
    error = refused.value
    assert isinstance(error, (FormatError, Rejected))
    assert error.reason is FAULTS[fault].reason
    if isinstance(error, Rejected) and not _may_name_more(fault):
        assert {found.reason for found in error.failures} == {FAULTS[fault].reason}


@pytest.mark.parametrize(
    "fault",
    [
        SnpFault.OTHER_AUTHORITY,
        SnpFault.OTHER_KEY_KIND,
        SnpFault.OPERATOR_AND_CHIP,
        SnpFault.EXPIRED_LEAF,
        SnpFault.OLD_REPORTED_TCB,
        SnpFault.FORGED_REPORT,
    ],
)
def test_faults_under_the_key_of_an_operator(fault: SnpFault) -> None:
    machine = SimulatedSnpMachine(SEED, NOW, kind=SigningKeyKind.VLEK, version=5, fault=fault)
    with pytest.raises(Rejected) as refused:
        appraise(machine)
    assert refused.value.reason is FAULTS[fault].reason
