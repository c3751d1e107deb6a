"""Targets: the SNP report, AMD's certificates, the whole appraisal of a simulated machine."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from functools import cache
from typing import Any

from confide.appraisal.snp import appraise_snp
from confide.appraisal.snp_leaf import read_components, read_owner, read_product
from confide.crypto.x509 import parse_crl_der
from confide.crypto.x509_rsa import (
    parse_leaf_der,
    parse_rsa_certificate_der,
    verify_crl_pss,
    verify_issued_by_pss,
)
from confide.errors import FormatError, Reason
from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine
from confide.trust.amd import AMD_ROOTS
from confide.wire.json import jcs, parse_json
from confide.wire.snp import Product, SigningKeyKind, encode_report, parse_report, reserved_not_zero
from fuzz import seeds
from fuzz.driver import Target

_NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
_REPORT_DATA = bytes(64)
_LAUNCH = SimulatedSnpLaunch(measurement=b"\1" * 48)
_PARTS = ("report", "leaf", "chain", "crl")
_DER = (b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x02\x01\x00", b"\x02\x01\xff", b"\x16\x01\xe9")


@cache
def _machines() -> tuple[SimulatedSnpMachine, ...]:
    return tuple(
        SimulatedSnpMachine(b"fuzz", _NOW, product=product, kind=kind, version=version)
        for product, kind, version in (
            (Product.MILAN, SigningKeyKind.VCEK, 2),
            (Product.GENOA, SigningKeyKind.VLEK, 3),
            (Product.TURIN, SigningKeyKind.VCEK, 5),
        )
    )


def _reports() -> tuple[bytes, ...]:
    made = (machine.report(_LAUNCH, report_data=_REPORT_DATA) for machine in _machines())
    return (*made, *seeds.vectors("snp/report-*.bin"))


def _leafs() -> tuple[bytes, ...]:
    return (*(machine.leaf_der for machine in _machines()), *seeds.vectors("snp/leaf-*.der"))


def _crls() -> tuple[bytes, ...]:
    return tuple(machine.crl_der or b"" for machine in _machines())


def _roots() -> tuple[bytes, ...]:
    made = _machines()[0].roots().anchors
    return tuple(anchor.der for anchor in (*made, *AMD_ROOTS.anchors))


def _report(raw: bytes) -> None:
    report = parse_report(raw)
    for product in Product:
        assert report.reported_tcb.components(product).microcode == raw[391]
    if report.signing_key and report.signature and not reserved_not_zero(report):
        assert encode_report(report) == raw


def _leaf(raw: bytes) -> None:
    leaf = parse_leaf_der(raw, what="input", reason=Reason.CHAIN)
    assert leaf.der == raw
    read_product(leaf)
    read_components(leaf)
    read_owner(leaf)


def _authority(raw: bytes) -> None:
    found = parse_rsa_certificate_der(raw, what="input", reason=Reason.CHAIN)
    verify_issued_by_pss(found, found)


def _crl(raw: bytes) -> None:
    crl = parse_crl_der(raw, what="input", reason=Reason.CRL_FORMAT)
    crl.contains(0)
    verify_crl_pss(crl, parse_rsa_certificate_der(_roots()[0], what="ARK", reason=Reason.CHAIN))


def _documents() -> tuple[bytes, ...]:
    """One JSON document for each machine: mutation reaches every part."""

    def document(machine: SimulatedSnpMachine) -> bytes:
        report = machine.report(_LAUNCH, report_data=_REPORT_DATA)
        parts = (report, machine.leaf_der, machine.chain_pem, machine.crl_der or b"")
        encoded = (base64.b64encode(part).decode("ascii") for part in parts)
        return jcs(dict(zip(_PARTS, encoded, strict=True)))

    return tuple(document(machine) for machine in _machines())


def _part(document: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(document[name], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError("input", reason=Reason.BUNDLE_FORMAT, clause="fuzz") from error


def _appraise(raw: bytes) -> None:
    document = parse_json(raw, what="input", reason=Reason.BUNDLE_FORMAT)
    if not isinstance(document, dict):
        return
    machine = _machines()[0]
    result = appraise_snp(
        _part(document, "report"),
        leaf_der=_part(document, "leaf"),
        chain_pem=_part(document, "chain"),
        crl_der=_part(document, "crl"),
        roots=machine.roots(),
        policy=machine.policy(_LAUNCH),
        report_data=_REPORT_DATA,
        now=_NOW,
    )
    # Accepted means: what the machine made, whatever stands around it.
    assert result.claims.report_data == _REPORT_DATA
    assert result.claims.measurement == _LAUNCH.measurement
    assert result.simulated


SNP_TARGETS: tuple[Target, ...] = (
    Target("snp-report", _report, _reports),
    Target("snp-leaf", _leaf, _leafs, tokens=_DER),
    Target("snp-authority", _authority, _roots, tokens=_DER),
    Target("snp-crl", _crl, _crls, tokens=_DER),
    Target("appraise-snp", _appraise, _documents, json_values=True),
)
