"""Bare evidence: whatever the writing, the same bytes come out, and nothing is bound."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from reader_cases import NONCE, capture, failed, gpus, quote, unsigned_report

from confide.appraisal.claim_names import ClaimName
from confide.errors import FormatError, Reason, Unsupported
from confide.formats.bare import FORMAT
from confide.wire.json import b64encode, jcs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK = UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
ASK = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
ARK = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
_WRITINGS: dict[str, Callable[[bytes], bytes]] = {
    "binary": lambda raw: raw,
    "hex": lambda raw: raw.hex().encode(),
    "upper hex": lambda raw: raw.hex().upper().encode(),
    "hex 0x": lambda raw: b"0x" + raw.hex().encode() + b"\n",
    "base64": base64.b64encode,
    "base64 in lines": base64.encodebytes,
}


def table(*entries: tuple[UUID, bytes], little: bool = False) -> bytes:
    at = 24 * (len(entries) + 1)
    head, body = b"", b""
    for guid, data in entries:
        name = guid.bytes_le if little else guid.bytes
        offset = (at + len(body)).to_bytes(4, "little")
        head += name + offset + len(data).to_bytes(4, "little")
        body += data
    return head + bytes(24) + body


def entries(*, nonce: str | None = NONCE.hex(), arch: bool = True) -> list[dict[str, Any]]:
    return [
        {
            **({"arch": "LS10" if device.kind == "switch" else "HOPPER"} if arch else {}),
            **({"nonce": nonce} if nonce is not None else {}),
            "evidence": b64encode(device.report),
            "certificate": b64encode(device.chain_pem),
        }
        for device in gpus()
    ]


@pytest.mark.parametrize("writing", _WRITINGS)
@pytest.mark.parametrize("kind", ["quote", "report"])
def test_every_writing_gives_the_same_bytes(writing: str, kind: str) -> None:
    raw = quote() if kind == "quote" else unsigned_report()
    document = _WRITINGS[writing](raw)
    assert FORMAT.recognise(document)
    attester = FORMAT.read(capture(document)).attesters[0]
    part = attester.tdx.quote if attester.tdx else attester.snp and attester.snp.report
    assert part == raw
    assert (attester.tdx is None) != (attester.snp is None)
    assert attester.binding.expected is None
    assert attester.binding.nonce is None
    assert not attester.keys


def test_an_sgx_quote_is_recognised_and_unsupported() -> None:
    raw = bytearray(quote())
    raw[4:8] = bytes(4)
    assert FORMAT.recognise(bytes(raw))
    with pytest.raises(Unsupported):
        FORMAT.read(capture(bytes(raw)))


@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("apart", [True, False])
def test_the_certificate_table_of_an_extended_request(little: bool, apart: bool) -> None:
    report = unsigned_report()
    along = table((ARK, b"ark"), (VCEK, b"leaf"), (ASK, b"ask"), (UUID(int=5), b"?"), little=little)
    documents = {"report": report, "auxblob": along} if apart else {"report": report + along}
    part = FORMAT.read(capture(documents)).attesters[0].snp
    assert part is not None
    assert part.report == report
    assert part.leaf_der == b"leaf"
    assert part.chain_pem is not None
    assert part.chain_pem.index(base64.b64encode(b"ask")) < part.chain_pem.index(
        base64.b64encode(b"ark")
    )


def test_certificates_given_beside_the_report_are_passed_along() -> None:
    documents = {"report": unsigned_report(), "vcek": b"leaf", "chain": b"pem"}
    part = FORMAT.read(capture(documents)).attesters[0].snp
    assert part is not None
    assert (part.leaf_der, part.chain_pem) == (b"leaf", b"pem")


@pytest.mark.parametrize(
    "along",
    [
        table((VCEK, b"a"), (VCEK, b"b")),
        table((VCEK, b"a"), (VLEK, b"b")),
        VCEK.bytes + (24).to_bytes(4, "little") + (1 << 31).to_bytes(4, "little"),
        VCEK.bytes + (1 << 31).to_bytes(4, "little") + (1).to_bytes(4, "little"),
        VCEK.bytes,
        (UUID(int=1).bytes + bytes(8)) * 17,
        table((VCEK, bytes(1 << 15))),
    ],
)
def test_a_table_that_lies_about_itself_is_refused(along: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        FORMAT.read(capture({"report": unsigned_report(), "auxblob": along}))
    assert caught.value.reason == Reason.SERVICE_FORMAT


def test_two_tables_are_one_too_many() -> None:
    along = table((VCEK, b"leaf"))
    with pytest.raises(FormatError):
        FORMAT.read(capture({"report": unsigned_report() + along, "auxblob": along}))


@pytest.mark.parametrize("shape", ["list", "request", "collected"])
def test_the_three_shapes_of_nvidias_list(shape: str) -> None:
    value: Any = {
        "list": entries(),
        "request": {
            "nonce": NONCE.hex(),
            "arch": "HOPPER",
            "claims_version": "3.0",
            "evidence_list": entries(nonce=None),
        },
        "collected": {"result_code": 0, "result_message": "Ok", "evidences": entries()},
    }[shape]
    document = jcs(value)
    assert FORMAT.recognise(document)
    evidence = FORMAT.read(capture(document))
    devices = evidence.attesters[0].devices
    assert devices is not None
    assert devices.devices == gpus()
    assert devices.nonce == NONCE
    assert {device.kind for device in devices.devices} == {"gpu", "switch"}
    assert not failed(evidence)


def test_the_architecture_of_a_request_speaks_for_its_entries() -> None:
    value = {"nonce": NONCE.hex(), "arch": "LS10", "evidence_list": entries(arch=False)}
    devices = FORMAT.read(capture(jcs(value))).attesters[0].devices
    assert devices is not None
    assert {device.kind for device in devices.devices} == {"switch"}


def test_different_nonces_in_one_list_are_a_contradiction() -> None:
    value = entries()
    value[1]["nonce"] = "ff" * 32
    assert failed(FORMAT.read(capture(jcs(value)))) == {ClaimName.GPU_FRESHNESS}


def test_a_quote_and_its_devices_in_one_capture() -> None:
    documents = {
        "gpus.json": jcs(entries()),
        "quote.bin": quote(),
        "collateral": b"{}",
        "ccel": b"log",
    }
    attester = FORMAT.read(capture(documents, nonce=NONCE)).attesters[0]
    assert attester.tdx is not None
    assert attester.tdx.collateral == b"{}"
    assert attester.firmware_log == b"log"
    assert attester.devices is not None
    assert ClaimName.GPU_BINDING in {remark.claim for remark in attester.remarks}


@pytest.mark.parametrize(
    "documents",
    [
        {"a": quote(), "b": quote()},
        {"a": jcs(entries()), "b": jcs(entries())},
        {"collateral": b"{}"},
        {"a": b"garbage"},
        {"a": b""},
        {"a": unsigned_report()[:-1]},
        {"a": quote()[:100]},
        {"a": jcs(entries() * 6)},
        {"a": jcs([{**entries()[0], "evidence": "?"}])},
        {"a": jcs([{**entries()[0], "evidence": ""}])},
        {"a": jcs([{**entries()[0], "evidence": b64encode(bytes(0x2001))}])},
        {"a": jcs([{**entries()[0], "nonce": "00"}])},
        {"a": jcs([entries()[0], 1])},
        {"a": jcs({"nonce": "x", "evidence_list": entries()})},
    ],
)
def test_what_is_no_bare_evidence_is_refused(documents: dict[str, bytes]) -> None:
    with pytest.raises(FormatError):
        FORMAT.read(capture(documents))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{}",
        b"[]",
        b"[1]",
        b'{"evidence":1}',
        b'[{"evidence":1}',
        bytes(1183),
        b"00" * 600,
        b"A" * 1184,
        b"{" * 1184,
        b"\xff" * 2000,
        b"\4\0\2\0\x81\0\0\0",
    ],
)
def test_other_documents_are_not_recognised(document: bytes) -> None:
    assert not FORMAT.recognise(document)


def test_the_shared_lists_and_reports_are_recognised(vectors: Path) -> None:
    lists = sorted((vectors / "nvidia" / "evidence").glob("*.json"))
    assert lists
    for path in lists:
        evidence = FORMAT.read(capture(path.read_bytes()))
        assert evidence.attesters[0].devices is not None, path.name
    for path in sorted((vectors / "snp").glob("report-milan*.bin")):
        assert FORMAT.read(capture(path.read_bytes())).attesters[0].snp is not None
    for path in sorted((vectors / "tdx" / "real").glob("quote-*.bin")):
        assert FORMAT.recognise(path.read_bytes()), path.name
