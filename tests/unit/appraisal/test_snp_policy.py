"""The SNP policy: refusing by default, complete in its document, honest about relaxations."""

from __future__ import annotations

import hashlib
from dataclasses import MISSING, fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from confide.appraisal.snp import appraise_snp, appraise_snp_report, verify_snp_report
from confide.appraisal.snp_policy import SnpFloors, SnpPolicy
from confide.appraisal.snp_types import SEAL, VerifiedSnpReport
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import EvidenceRejected, PolicyRejected, Reason
from confide.rats import Status
from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine, SnpFault
from confide.wire.snp import Firmware, GuestPolicy, PlatformInfo, Product, SigningKeyKind, SnpTcb

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
REPORT_DATA = hashlib.sha512(b"report data").digest()
LAUNCH = SimulatedSnpLaunch(measurement=b"\1" * 48)
MACHINE = SimulatedSnpMachine(b"policy", NOW)
POLICY = MACHINE.policy(LAUNCH)
ZERO = SnpTcb(boot_loader=0, tee=0, snp=0, microcode=0)


def _appraise(
    policy: SnpPolicy,
    machine: SimulatedSnpMachine = MACHINE,
    launch: SimulatedSnpLaunch = LAUNCH,
    **changes: Any,
) -> Any:
    given: dict[str, Any] = {
        "leaf_der": machine.leaf_der,
        "chain_pem": machine.chain_pem,
        "crl_der": machine.crl_der,
        "roots": MACHINE.roots(),
        "policy": policy,
        "report_data": REPORT_DATA,
        "now": NOW,
        **changes,
    }
    return appraise_snp(machine.report(launch, report_data=REPORT_DATA), **given)


def test_what_is_not_said_is_refused() -> None:
    defaults = {
        item.name: item.default
        for item in fields(SnpPolicy)
        if item.init and item.default is not MISSING
    }
    assert defaults == {
        "guest_allowed": GuestPolicy(0),
        "max_vmpl": 0,
        "allow_vlek": False,
        "require_crl": True,
        "id_key_digest": frozenset({bytes(48)}),
        "author_key_digest": frozenset({bytes(48)}),
        "blocked_chips": frozenset(),
        "unsafe_debug": False,
        "unsafe_migration_agent": False,
        "unsafe_simulated": False,
    }


def test_the_document_has_every_field_and_the_digest_every_difference() -> None:
    assert set(POLICY.document()) == {item.name for item in fields(SnpPolicy) if item.init}
    (floors,) = POLICY.floors
    others: list[dict[str, Any]] = [
        {"floors": (replace(floors, launch=ZERO),)},
        {"floors": (replace(floors, committed=replace(floors.committed, fmc=1)),)},
        {"min_firmware": Firmware(1, 58, 4)},
        {"min_abi": (1, 52)},
        {"measurement": frozenset[bytes]()},
        {"measurement": UnsafeAny()},
        {"host_data": UnsafeAny()},
        {"chips": UnsafeAny()},
        {"platform_required": PlatformInfo(0)},
        {"guest_required": GuestPolicy.SINGLE_SOCKET},
        {"guest_allowed": GuestPolicy(0)},
        {"max_vmpl": 1},
        {"allow_vlek": True},
        {"require_crl": False},
        {"id_key_digest": UnsafeAny()},
        {"author_key_digest": UnsafeAny()},
        {"blocked_chips": frozenset({bytes(64)})},
        {"unsafe_debug": True},
        {"unsafe_migration_agent": True},
        {"unsafe_simulated": False},
    ]
    digests = [replace(POLICY, **other).digest for other in others]
    assert len({POLICY.digest, *digests}) == len(others) + 1


def test_everything_that_weakens_is_named() -> None:
    weak = replace(
        POLICY,
        measurement=UnsafeAny(),
        chips=UnsafeAny(),
        unsafe_debug=True,
        unsafe_migration_agent=True,
        require_crl=False,
        allow_vlek=True,
    )
    assert weak.relaxations == (
        "anchor: simulated",
        "chips: any",
        "crl: not required",
        "debug: allowed",
        "measurement: any",
        "migration-agent: allowed",
        "vlek: allowed",
    )
    assert _appraise(weak).relaxations == weak.relaxations


@pytest.mark.parametrize(
    "change",
    [
        {"products": frozenset(Product)},
        {"floors": ()},
        {"floors": POLICY.floors * 2},
        {"guest_allowed": GuestPolicy.DEBUG},
        {"guest_allowed": GuestPolicy.MIGRATE_MA},
        {"guest_required": GuestPolicy.SMT},
        {"max_vmpl": 4},
        {"max_vmpl": -1},
    ],
)
def test_a_policy_that_cannot_mean_what_it_says_is_not_made(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"one entry|only SMT|cannot be required|VMPL"):
        replace(POLICY, **change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"guest_allowed": GuestPolicy(0)}, Reason.GUEST_POLICY),
        ({"guest_required": GuestPolicy.CIPHERTEXT_HIDING_DRAM}, Reason.GUEST_POLICY),
        ({"min_abi": (2, 0)}, Reason.GUEST_POLICY),
        ({"min_firmware": Firmware(1, 58, 4)}, Reason.TCB_FLOOR),
        (
            {"platform_required": PlatformInfo.CIPHERTEXT_HIDING_DRAM_EN},
            Reason.PLATFORM_INFO,
        ),
        ({"measurement": frozenset[bytes]()}, Reason.MEASUREMENT_MISMATCH),
        ({"id_key_digest": frozenset[bytes]()}, Reason.ID_KEY_MISMATCH),
        ({"author_key_digest": frozenset({b"\1" * 48})}, Reason.ID_KEY_MISMATCH),
        ({"chips": frozenset({b"\1" * 64})}, Reason.PLATFORM_NOT_ALLOWED),
    ],
)
def test_a_stricter_policy_refuses(change: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(PolicyRejected) as refused:
        _appraise(replace(POLICY, **change))
    assert [found.reason for found in refused.value.failures] == [reason]


@pytest.mark.parametrize(
    "bit",
    [
        GuestPolicy.SINGLE_SOCKET,
        GuestPolicy.MEM_AES_256_XTS,
        GuestPolicy.RAPL_DIS,
        GuestPolicy.CIPHERTEXT_HIDING_DRAM,
        GuestPolicy.PAGE_SWAP_DISABLE,
    ],
)
def test_a_guest_that_demands_what_is_required_is_accepted(bit: GuestPolicy) -> None:
    launch = replace(LAUNCH, policy=LAUNCH.policy | bit)
    policy = replace(POLICY, guest_required=bit)
    _appraise(policy, launch=launch)
    _appraise(POLICY, launch=launch)
    with pytest.raises(PolicyRejected):
        _appraise(policy)


@pytest.mark.parametrize(
    ("fault", "switch"),
    [
        (SnpFault.DEBUG, "unsafe_debug"),
        (SnpFault.MIGRATION_AGENT, "unsafe_migration_agent"),
    ],
)
def test_only_the_unsafe_switch_accepts(fault: SnpFault, switch: str) -> None:
    machine = SimulatedSnpMachine(b"policy", NOW, fault=fault)
    with pytest.raises(PolicyRejected):
        _appraise(POLICY, machine)
    result = _appraise(replace(POLICY, **{switch: True}), machine)  # type: ignore[arg-type]
    assert len(result.relaxations) == len(POLICY.relaxations) + 1


def test_a_chip_list_accepts_no_key_of_an_operator() -> None:
    machine = SimulatedSnpMachine(b"policy", NOW, kind=SigningKeyKind.VLEK)
    policy = replace(machine.policy(LAUNCH), chips=frozenset({bytes(64)}))
    with pytest.raises(PolicyRejected) as refused:
        _appraise(policy, machine)
    assert refused.value.reason is Reason.PLATFORM_NOT_ALLOWED


def test_a_policy_that_requires_no_list_still_reads_the_one_it_gets() -> None:
    policy = replace(POLICY, require_crl=False)
    _appraise(policy, crl_der=None)
    revoked = SimulatedSnpMachine(b"policy", NOW, fault=SnpFault.REVOKED_ASK)
    with pytest.raises(EvidenceRejected) as refused:
        _appraise(policy, revoked)
    assert refused.value.reason is Reason.CERT_REVOKED
    with pytest.raises(EvidenceRejected) as refused:
        _appraise(policy, crl_der=b"")
    assert refused.value.reason is Reason.CRL_FORMAT


def test_several_products_have_each_their_own_floor() -> None:
    milan, turin = (
        SimulatedSnpMachine(b"policy", NOW, product=product)
        for product in (Product.MILAN, Product.TURIN)
    )
    both = replace(
        POLICY,
        products=frozenset({Product.MILAN, Product.TURIN}),
        floors=(*turin.policy(LAUNCH).floors, *milan.policy(LAUNCH).floors),
        chips=UnsafeAny(),
    )
    for machine in (milan, turin):
        _appraise(both, machine)
    # Milan's floor (SNP 24) is far above Turin's level (SNP 4), and the other way round (FMC 1).
    (floor,) = milan.policy(LAUNCH).floors
    swapped: SnpFloors = replace(floor, product=Product.TURIN)
    with pytest.raises(PolicyRejected) as refused:
        _appraise(replace(both, products=frozenset({Product.TURIN}), floors=(swapped,)), turin)
    assert refused.value.reason is Reason.TCB_FLOOR


def test_a_refusal_names_what_the_policy_would_refuse_as_well() -> None:
    machine = SimulatedSnpMachine(b"policy", NOW, fault=SnpFault.FORGED_REPORT)
    policy = replace(
        SimulatedSnpMachine(b"policy", NOW, product=Product.GENOA).policy(LAUNCH), max_vmpl=0
    )
    with pytest.raises(EvidenceRejected) as refused:
        _appraise(policy, machine)
    assert [found.step for found in refused.value.failures] == ["snp/5.2", "snp/8.1"]
    unproven = {f.step for f in refused.value.findings if f.status is Status.NOT_PROVEN}
    # Nothing that rests on the unsigned report is judged.
    assert unproven >= {"snp/9.1", "snp/9.4", "snp/10.1", "snp/11.1", "snp/11.4"}


def test_authenticity_stands_where_the_policy_refuses() -> None:
    verified = verify_snp_report(
        MACHINE.parsed_report(LAUNCH, report_data=REPORT_DATA),
        leaf_der=MACHINE.leaf_der,
        chain_pem=MACHINE.chain_pem,
        crl_der=MACHINE.crl_der,
        roots=MACHINE.roots(),
        now=NOW,
        subject="their-machine",
    )
    assert verified.product is Product.MILAN
    assert {finding.subject for finding in verified.findings} == {"their-machine"}
    with pytest.raises(PolicyRejected) as refused:
        appraise_snp_report(
            verified,
            replace(POLICY, measurement=frozenset()),
            expected_report_data=REPORT_DATA,
            now=NOW,
        )
    assert refused.value.reason is Reason.MEASUREMENT_MISMATCH
    with pytest.raises(EvidenceRejected) as other:
        appraise_snp_report(verified, POLICY, expected_report_data=bytes(64), now=NOW)
    assert other.value.reason is Reason.REPORT_DATA_MISMATCH


def test_nobody_else_makes_a_verified_report() -> None:
    with pytest.raises(TypeError, match="only verify_snp_report"):
        VerifiedSnpReport(
            **dict.fromkeys((f.name for f in fields(VerifiedSnpReport)), None),  # type: ignore[arg-type]
            seal=object(),
        )
    assert SEAL is not None


def test_arguments_that_mean_nothing_are_the_callers_fault() -> None:
    with pytest.raises(ValueError, match="time zone"):
        _appraise(POLICY, now=NOW.replace(tzinfo=None))
    with pytest.raises(ValueError, match="64 bytes"):
        _appraise(POLICY, report_data=b"")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("leaf_der", b""),
        ("leaf_der", b"\x30\x80"),
        ("leaf_der", b"\x30" * 100_000),
        ("chain_pem", b""),
        ("chain_pem", b"-----BEGIN CERTIFICATE-----"),
        ("chain_pem", MACHINE.chain_pem * 2),
        ("chain_pem", MACHINE.chain_pem.replace(b"\n", b"\n ", 3)),
        ("chain_pem", b"\xff" * 10_000),
    ],
)
def test_certificates_that_are_none_are_a_broken_chain(part: str, value: bytes) -> None:
    with pytest.raises(EvidenceRejected) as refused:
        _appraise(POLICY, MACHINE, LAUNCH, **{part: value})
    assert refused.value.reason is Reason.CHAIN
