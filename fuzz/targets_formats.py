"""Targets: the readers of other services' documents, and the registry in front of them."""

from __future__ import annotations

import base64
from functools import cache
from typing import TYPE_CHECKING

import reader_cases as cases

from confide.formats import bare, node, registry, tinfoil, trustee
from confide.formats.snp_json import read_certificate_table
from confide.simulator.tinfoil import gzip_bytes
from confide.simulator.trustee import snp_report_json
from confide.wire.init_data import parse_init_data
from confide.wire.json import b64encode, jcs
from confide.wire.service import Capture
from fuzz import seeds
from fuzz.driver import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.formats.format import Format


def _read(known: Format) -> Callable[[bytes], object]:
    """Both halves of a reader on the same bytes: neither may lean on the other."""

    def run(raw: bytes) -> object:
        known.recognise(raw)
        return known.read(Capture(documents={"document": raw}, nonce=cases.NONCE))

    return run


def _any(raw: bytes) -> object:
    return registry.read(Capture(documents={"document": raw}))


def _inflated(raw: bytes) -> object:
    document = {**cases.enclave().v2(), "body": b64encode(raw)}
    return tinfoil.FORMAT.read(Capture(documents={"document": jcs(document)}))


def _table(raw: bytes) -> object:
    return read_certificate_table(bytes(1184), raw)


@cache
def _tinfoil_seeds() -> tuple[bytes, ...]:
    enclave = cases.enclave()
    return (
        jcs(enclave.v2()),
        jcs(enclave.v3(cases.NONCE, gpus=cases.gpus()[:1])),
        jcs(enclave.bundle()),
    )


@cache
def _trustee_seeds() -> tuple[bytes, ...]:
    machine = {
        "attestation_report": snp_report_json(cases.unsigned_report()),
        "cert_chain": [{"cert_type": "VCEK", "data": [1, 2, 3]}],
    }
    return (
        cases.pod(devices=False).exchange(cases.NONCE)["attestation"],
        jcs(cases.pod().evidence(cases.NONCE)),
        jcs(machine),
    )


@cache
def _bare_seeds() -> tuple[bytes, ...]:
    entries = [
        {
            "arch": "HOPPER",
            "nonce": cases.NONCE.hex(),
            "evidence": b64encode(device.report),
            "certificate": b64encode(device.chain_pem),
        }
        for device in cases.gpus()[:1]
    ]
    return (
        cases.quote(),
        cases.quote().hex().encode(),
        cases.unsigned_report(),
        base64.b64encode(cases.unsigned_report()),
        jcs(entries),
        jcs({"nonce": cases.NONCE.hex(), "arch": "HOPPER", "evidence_list": entries}),
    )


_JSON = (b"https://tinfoil.sh/predicate/", b'"tee-evidence"', b'"evidence_list"', b"[" * 40)

FORMAT_TARGETS: tuple[Target, ...] = (
    Target("tinfoil", _read(tinfoil.FORMAT), _tinfoil_seeds, json_values=True, tokens=_JSON),
    Target("tinfoil-body", _inflated, lambda: (gzip_bytes(cases.quote()), gzip_bytes(b""))),
    Target("trustee", _read(trustee.FORMAT), _trustee_seeds, json_values=True, tokens=_JSON),
    Target("bare", _read(bare.FORMAT), _bare_seeds, json_values=True, tokens=_JSON),
    Target("node-file", _read(node.FORMAT), seeds.evidence_files, json_values=True),
    Target(
        "any-format",
        _any,
        lambda: (*_tinfoil_seeds(), *_trustee_seeds(), *_bare_seeds()),
        json_values=True,
        tokens=_JSON,
    ),
    Target("certificate-table", _table, lambda: (bytes(24), bytes(range(96)))),
    Target("init-data-head", parse_init_data, lambda: (cases.INIT_DATA,)),
)
