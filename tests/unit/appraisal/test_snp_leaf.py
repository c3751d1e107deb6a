"""AMD's extensions, on every product: what binds a leaf to a report, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from confide.appraisal.snp import SnpResult, appraise_snp
from confide.errors import EvidenceRejected, Reason
from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine
from confide.simulator.snp_faults import Fault
from confide.trust.amd import AmdAnchor, AmdRoots
from confide.wire.der import OCTET_STRING, encode_integer, encode_tlv
from confide.wire.snp import Product, SigningKeyKind, Tcb

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.simulator.snp_pki import CertificateSpec
    from confide.wire.snp import SnpReport

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
REPORT_DATA = bytes(64)
LAUNCH = SimulatedSnpLaunch(measurement=b"\1" * 48)
AMD = "1.3.6.1.4.1.3704.1"
IA5 = 0x16


def _machine(
    product: Product,
    extensions: dict[str, bytes | None] | None = None,
    *,
    report: Callable[[SnpReport], SnpReport] = lambda report: report,
    kind: SigningKeyKind = SigningKeyKind.VCEK,
) -> SimulatedSnpMachine:
    """Return a machine whose leaf has these extensions, by their arc, put or (None) left out."""

    def edit(specs: dict[str, CertificateSpec]) -> None:
        leaf = specs["leaf"]
        changed = {f"{AMD}.{arc}": der for arc, der in (extensions or {}).items()}
        kept = tuple(found for found in leaf.extensions if found[0] not in changed)
        added = tuple((oid, der, False) for oid, der in changed.items() if der is not None)
        specs["leaf"] = replace(leaf, extensions=kept + added)

    fault = Fault(certificates=edit, report=report)
    return SimulatedSnpMachine(b"leaf", NOW, product=product, kind=kind, version=5, fault=fault)


def _appraise(machine: SimulatedSnpMachine, **changes: Any) -> SnpResult:
    given: dict[str, Any] = {
        "leaf_der": machine.leaf_der,
        "chain_pem": machine.chain_pem,
        "crl_der": machine.crl_der,
        "roots": machine.roots(),
        "policy": machine.policy(LAUNCH),
        "report_data": REPORT_DATA,
        "now": NOW,
        **changes,
    }
    return appraise_snp(machine.report(LAUNCH, report_data=REPORT_DATA), **given)


def _refused(machine: SimulatedSnpMachine, step: str, reason: Reason) -> None:
    with pytest.raises(EvidenceRejected) as refused:
        _appraise(machine)
    (failure,) = refused.value.failures
    assert (failure.step, failure.reason) == (step, reason)


@pytest.mark.parametrize(
    ("product", "name"),
    [
        (Product.MILAN, "Milan-B1"),
        (Product.MILAN, "Milan"),
        (Product.GENOA, "Genoa-B2"),
        (Product.GENOA, "Siena-B1"),
        (Product.GENOA, "Bergamo-A0"),
        (Product.TURIN, "Turin-C1"),
    ],
)
def test_names_of_each_product(product: Product, name: str) -> None:
    result = _appraise(_machine(product, {"2": encode_tlv(IA5, name.encode())}))
    assert result.claims.product is product
    assert result.claims.product_name == name


@pytest.mark.parametrize(
    "name",
    [
        encode_tlv(IA5, b"Genoa-B0"),
        encode_tlv(IA5, b"milan-B0"),
        encode_tlv(IA5, b"MilanX"),
        encode_tlv(IA5, b""),
        encode_tlv(IA5, b"Milan\xe9"),
        encode_tlv(0x0C, b"Milan-B0"),
        encode_tlv(IA5, b"Milan-B0") + b"\0",
        b"Milan-B0",
        b"",
    ],
)
def test_other_names_are_another_product(name: bytes) -> None:
    machine = _machine(Product.MILAN, {"2": name})
    with pytest.raises(EvidenceRejected) as refused:
        _appraise(machine)
    (failure,) = refused.value.failures
    assert (failure.step, failure.reason) == ("snp/5.1", Reason.PRODUCT_MISMATCH)
    # What rests on the product is not judged.
    unproven = {found.step for found in refused.value.findings if found.status == "not-proven"}
    assert unproven >= {"snp/5.2", "snp/6", "snp/7.1", "snp/10.1"}


@pytest.mark.parametrize("product", Product)
@pytest.mark.parametrize("arc", [1, 2, 3, 8])
def test_each_component_of_the_leaf_counts(product: Product, arc: int) -> None:
    for value in (
        None,
        encode_integer(99),
        encode_integer(256),
        b"\x02\x01\xff",
        b"\x02\x02\x00\x01",
        b"",
    ):
        _refused(_machine(product, {f"3.{arc}": value}), "snp/6", Reason.TCB_MISMATCH)


def test_the_fmc_counts_on_turin_and_exists_nowhere_else() -> None:
    for value in (None, encode_integer(0), encode_integer(2)):
        _refused(_machine(Product.TURIN, {"3.9": value}), "snp/6", Reason.TCB_MISMATCH)
    for product in (Product.MILAN, Product.GENOA):
        _refused(_machine(product, {"3.9": encode_integer(0)}), "snp/6", Reason.TCB_MISMATCH)


@pytest.mark.parametrize("product", Product)
@pytest.mark.parametrize("arc", [4, 5, 6, 7])
def test_components_without_a_name_count_too(product: Product, arc: int) -> None:
    _refused(_machine(product, {f"3.{arc}": encode_integer(1)}), "snp/6", Reason.TCB_MISMATCH)
    _appraise(_machine(product, {f"3.{arc}": None}))


@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize("product", Product)
def test_each_byte_of_the_reported_tcb_counts(product: Product, at: int) -> None:
    def edit(report: SnpReport) -> SnpReport:
        raw = bytearray(report.reported_tcb.raw)
        raw[at] += 1
        return replace(report, reported_tcb=Tcb(bytes(raw)))

    _refused(_machine(product, report=edit), "snp/6", Reason.TCB_MISMATCH)


@pytest.mark.parametrize("product", Product)
def test_a_hardware_id_in_an_octet_string_is_the_same(product: Product) -> None:
    chip = _machine(product).hardware_id
    result = _appraise(_machine(product, {"4": encode_tlv(OCTET_STRING, chip)}))
    assert result.claims.chip_id == chip.ljust(64, b"\0")


@pytest.mark.parametrize(
    "value", [None, b"", bytes(8), bytes(64), bytes(65), encode_tlv(OCTET_STRING, bytes(16))]
)
@pytest.mark.parametrize("product", Product)
def test_another_hardware_id_is_another_chip(product: Product, value: bytes | None) -> None:
    _refused(_machine(product, {"4": value}), "snp/7.1", Reason.CHIP_ID)


def test_turin_has_eight_bytes_and_zeros() -> None:
    def tail(report: SnpReport) -> SnpReport:
        return replace(report, chip_id=report.chip_id[:-1] + b"\1")

    _refused(_machine(Product.TURIN, report=tail), "snp/7.1", Reason.CHIP_ID)
    full = _machine(Product.TURIN).hardware_id.ljust(64, b"\0")
    _refused(_machine(Product.TURIN, {"4": full}), "snp/7.1", Reason.CHIP_ID)


def test_eight_bytes_are_no_hardware_id_of_an_older_chip() -> None:
    chip = _machine(Product.MILAN).hardware_id[:8]

    def short(report: SnpReport) -> SnpReport:
        return replace(report, chip_id=chip.ljust(64, b"\0"))

    _refused(_machine(Product.MILAN, {"4": chip}, report=short), "snp/7.1", Reason.CHIP_ID)


@pytest.mark.parametrize("value", [None, encode_tlv(IA5, b""), encode_tlv(IA5, b"\xff"), b"\x16"])
def test_a_vlek_is_of_an_operator(value: bytes | None) -> None:
    machine = _machine(Product.GENOA, {"5": value}, kind=SigningKeyKind.VLEK)
    _refused(machine, "snp/7.1", Reason.CHIP_ID)


def test_the_operator_is_a_claim() -> None:
    name = encode_tlv(IA5, b"CN=cloud.example")
    machine = _machine(Product.TURIN, {"5": name}, kind=SigningKeyKind.VLEK)
    assert _appraise(machine).claims.operator == "CN=cloud.example"


def test_a_root_that_may_not_sign_lists_signs_none() -> None:
    def only_certificates(specs: dict[str, CertificateSpec]) -> None:
        specs["ark"] = replace(specs["ark"], extensions=specs["ask"].extensions)

    fault = Fault(certificates=only_certificates)
    machine = SimulatedSnpMachine(b"leaf", NOW, fault=fault)
    root = machine._pki.certificate("ark")
    roots = AmdRoots((AmdAnchor(Product.MILAN, root),), simulated=True)
    with pytest.raises(EvidenceRejected) as refused:
        _appraise(machine, roots=roots)
    assert refused.value.reason is Reason.CRL_SIGNATURE
    _appraise(machine, roots=roots, crl_der=None, policy=_without_list(machine))


def _without_list(machine: SimulatedSnpMachine) -> Any:
    return replace(machine.policy(LAUNCH), require_crl=False)


def test_an_anchor_counts_for_its_own_product_alone() -> None:
    """A root of Genoa that a caller wrongly pins as Milan's still has the name of Genoa."""
    machine = _machine(Product.GENOA)
    (genoa,) = [found for found in machine.roots().anchors if found.product is Product.GENOA]
    wrong = AmdRoots((AmdAnchor(Product.MILAN, genoa.der),), simulated=True)
    with pytest.raises(EvidenceRejected) as refused:
        _appraise(machine, roots=wrong)
    assert refused.value.reason is Reason.CHAIN


def test_without_roots_nothing_is_believed() -> None:
    machine = _machine(Product.MILAN)
    with pytest.raises(EvidenceRejected) as refused:
        _appraise(machine, roots=AmdRoots((), simulated=True))
    assert refused.value.reason is Reason.ARK_NOT_PINNED
