"""Which format a document is of: exactly one, or a refusal that says what was tried."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import near_service
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reader_cases import NONCE, NOW, capture, enclave, gpus, pod, quote, unsigned_report
from test_node import evidence_file
from test_trustee import token

from confide.errors import FormatError, Reason, Unsupported
from confide.formats import registry
from confide.simulator.aci import SimulatedAci
from confide.simulator.near import encode_report
from confide.simulator.trustee import snp_report_json
from confide.wire.json import b64encode, jcs, parse_json
from confide.wire.service import Capture, Evidence

if TYPE_CHECKING:
    from pathlib import Path

    from confide.formats.format import Format

_NAMES = ("near", "aci", "dstack", "tinfoil", "trustee", "confide", "bare")


@cache
def samples() -> dict[str, tuple[str, bytes]]:
    """One SIMULATED document of every shape, with the format that has to take it."""
    near = near_service.service()
    machine = {"attestation_report": snp_report_json(unsigned_report()), "cert_chain": None}
    profile = {"eat_profile": "tag:github.com,2024:confidential-containers/Trustee"}
    cards = [
        {"evidence": b64encode(device.report), "certificate": b64encode(device.chain_pem)}
        for device in gpus()
    ]
    dstack = {"quote": quote().hex(), "event_log": "[]", "report_data": "00" * 64}
    return {
        "near direct": ("near", encode_report(near.direct_report(NONCE))),
        "near gateway": ("near", encode_report(near.gateway_report(NONCE))),
        "aci report": ("aci", jcs(SimulatedAci(b"registry", NOW).report(NONCE))),
        "dstack quote": ("dstack", jcs(dstack)),
        "tinfoil v2": ("tinfoil", jcs(enclave().v2())),
        "tinfoil v3": ("tinfoil", jcs(enclave().v3(NONCE, gpus=gpus()))),
        "tinfoil bundle": ("tinfoil", jcs(enclave().bundle())),
        "trustee body": ("trustee", pod().exchange(NONCE)["attestation"]),
        "trustee tdx": ("trustee", jcs(pod().evidence(NONCE))),
        "trustee snp": ("trustee", jcs(machine)),
        "trustee sample": ("trustee", jcs({"svn": "1", "report_data": ""})),
        "trustee token": ("trustee", token(profile)),
        "our own file": ("confide", evidence_file()),
        "bare quote": ("bare", quote()),
        "bare quote in hex": ("bare", quote().hex().encode()),
        "bare report": ("bare", unsigned_report()),
        "bare list": ("bare", jcs(cards)),
        "bare request": ("bare", jcs({"nonce": NONCE.hex(), "evidence_list": cards})),
    }


def takers(document: bytes) -> list[Format]:
    return [known for known in registry.every_format() if known.recognise(document)]


def test_the_formats_are_these_and_their_names_are_unique() -> None:
    assert tuple(known.name for known in registry.every_format()) == _NAMES
    for name in _NAMES:
        assert registry.find_format(name).name == name
    with pytest.raises(Unsupported, match="near"):
        registry.find_format("other")


@pytest.mark.parametrize("name", samples())
def test_every_document_is_taken_by_its_own_format_alone(name: str) -> None:
    expected, document = samples()[name]
    assert [known.name for known in takers(document)] == [expected]
    assert registry.recognise(document).name == expected


@pytest.mark.parametrize("name", samples())
def test_blanks_around_a_document_change_nothing_about_its_format(name: str) -> None:
    expected, document = samples()[name]
    if document[:1] in {b"{", b"["}:
        assert [known.name for known in takers(b"\n " + document + b"\n")] == [expected]


def test_every_shared_document_is_taken_by_at_most_one(vectors: Path) -> None:
    seen: set[str] = set()
    for path in sorted(vectors.rglob("*")):
        if not path.is_file() or path.stat().st_size > 1 << 20:
            continue
        found = takers(path.read_bytes())
        assert len(found) <= 1, path.name
        seen.update(known.name for known in found)
    assert {"bare", "dstack"} <= seen


@settings(max_examples=150)
@given(st.data())
def test_a_document_of_two_services_at_once_is_read_by_nobody(data: st.DataObject) -> None:
    """Members of two documents in one object: one format, or a refusal, never a choice."""
    objects = [raw for _, raw in samples().values() if raw[:1] == b"{"]
    first, second = (data.draw(st.sampled_from(objects)) for _ in range(2))
    values: list[Any] = [
        parse_json(raw, what="sample", reason=Reason.SERVICE_FORMAT) for raw in (first, second)
    ]
    kept = {name: values[1][name] for name in values[1] if data.draw(st.booleans())}
    document = jcs({**values[0], **kept})
    found = takers(document)
    if len(found) == 1:
        assert registry.recognise(document) is found[0]
    else:
        with pytest.raises(FormatError) as caught:
            registry.recognise(document)
        assert caught.value.reason == Reason.SERVICE_FORMAT


def test_a_document_that_two_formats_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = (registry.find_format("bare"), registry.find_format("bare"))
    monkeypatch.setattr(registry, "every_format", lambda: twice)
    with pytest.raises(FormatError, match="say which"):
        registry.recognise(quote())


@settings(max_examples=150)
@given(st.binary(max_size=2048))
def test_garbage_is_refused_with_what_was_tried(document: bytes) -> None:
    if takers(document):
        return
    with pytest.raises(FormatError, match="tried near, aci, dstack"):
        registry.recognise(document)


@pytest.mark.parametrize(
    "document", [b"", b"{", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"null", bytes(1 << 20)]
)
def test_broken_documents_are_refused(document: bytes) -> None:
    with pytest.raises(FormatError):
        registry.read(capture(document))


def test_a_capture_is_read_by_the_format_it_names_or_by_its_first_document() -> None:
    document = jcs(enclave().v2())
    for known in ("", "tinfoil"):
        evidence = registry.read(capture(document, format=known))
        assert isinstance(evidence, Evidence)
        assert evidence.format == "tinfoil"
    with pytest.raises(FormatError):
        registry.read(capture(document, format="trustee"))
    with pytest.raises(Unsupported):
        registry.read(capture(document, format="nobody"))


@pytest.mark.parametrize(
    "documents",
    [
        {},
        {str(number): b"x" for number in range(33)},
        {"a" * 129: b"x"},
        {"a": bytes((16 << 20) + 1)},
        {"a": bytes(12 << 20), "b": bytes(12 << 20), "c": bytes(12 << 20)},
    ],
)
def test_a_capture_beyond_its_bounds_is_refused(documents: dict[str, bytes]) -> None:
    with pytest.raises(FormatError):
        registry.read(Capture(documents=documents))
    for document in documents.values():
        if len(document) > 16 << 20:
            with pytest.raises(FormatError):
                registry.recognise(document)
