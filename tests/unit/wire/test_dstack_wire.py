"""Envelopes, RA-TLS certificates and measurement files: what is read, and what is refused."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from dstack_logs import cbor
from dstack_wire import compact, msgpack, ratls_certificate, v0_envelope, v1_document, vector

from confide.errors import FormatError, Reason, Unsupported
from confide.wire.cbor import parse_cbor
from confide.wire.dstack import (
    RATLS_ATTESTATION,
    RATLS_EVENT_LOG,
    RATLS_QUOTE,
    decode_log_extension,
    is_envelope,
    parse_envelope,
    parse_ratls_certificate,
)
from confide.wire.msgpack import as_bytes, parse_msgpack
from confide.wire.rtmr_log import parse_log
from confide.wire.scale import ScaleReader

if TYPE_CHECKING:
    from pathlib import Path

SERVICE = Reason.SERVICE_FORMAT


def _cbor(raw: bytes) -> object:
    return parse_cbor(raw, what="test", reason=SERVICE)


def _msgpack(raw: bytes) -> object:
    return parse_msgpack(raw, what="test", reason=SERVICE)


@pytest.mark.parametrize(
    "value",
    [0, 23, 24, 255, 256, 65536, b"", b"\x00" * 300, "ü", [1, [2, b"x"]], {"a": {"b": 1}, "c": []}],
)
def test_cbor_of_the_subset_reads_back(value: Any) -> None:
    assert _cbor(cbor(value)) == value


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "empty"),
        (b"\x01\x01", "two values"),
        (b"\x18\x17", "a head that could be shorter"),
        (b"\x19\x00\xff", "a head that could be shorter"),
        (b"\x1b" + bytes(8), "a head that could be shorter"),
        (b"\x20", "a negative number"),
        (b"\xc0\x00", "a tag"),
        (b"\xf5", "true"),
        (b"\xf9\x00\x00", "a float"),
        (b"\x5f\x41x\xff", "an indefinite length"),
        (b"\xa2\x61a\x00\x61a\x01", "a key twice"),
        (b"\xa1\x00\x00", "a key that is a number"),
        (b"\x61\xff", "text that is not UTF-8"),
        (b"\x5a\xff\xff\xff\xff", "a length that is not there"),
        (b"\x9a\x7f\xff\xff\xff", "items that are not there"),
        (b"\x81" * 9 + b"\x00", "nested too deep"),
        (b"\x99\x04\x01" + bytes(1025), "too many values"),
        (bytes(65 * 1024), "too long"),
    ],
)
def test_cbor_outside_the_subset_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(FormatError) as refused:
        _cbor(raw)
    assert refused.value.reason is SERVICE, why


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, 127, 128, 255, 256, 1 << 31, 1 << 40),
        *(b"", b"\x00" * 70000, "ü" * 40, "x" * 300, [1] * 20, {"a": [b"x"], "b": None}),
    ],
)
def test_messagepack_of_the_subset_reads_back(value: Any) -> None:
    assert _msgpack(msgpack(value)) == value


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "empty"),
        (b"\x01\x01", "two values"),
        (b"\xff", "a negative number"),
        (b"\xd0\x80", "a negative number"),
        (b"\xca\x00\x00\x00\x00", "a float"),
        (b"\xd4\x00\x00", "an extension"),
        (b"\xc1", "a reserved head"),
        (b"\x82\xa1a\x00\xa1a\x01", "a key twice"),
        (b"\x81\x00\x00", "a key that is a number"),
        (b"\xa1\xff", "text that is not UTF-8"),
        (b"\xc6\xff\xff\xff\xff", "a length that is not there"),
        (b"\xdd\xff\xff\xff\xff", "items that are not there"),
        (b"\x91" * 17 + b"\x00", "nested too deep"),
        (b"\xdd\x00\x09\x00\x00" + bytes(0x90000), "too many values"),
    ],
)
def test_messagepack_outside_the_subset_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(FormatError) as refused:
        _msgpack(raw)
    assert refused.value.reason is SERVICE, why


def test_bytes_are_read_from_both_forms_that_rust_writes() -> None:
    assert as_bytes(b"\x00\xff") == as_bytes([0, 255]) == b"\x00\xff"
    assert as_bytes([256]) is None
    assert as_bytes([True]) is None
    assert as_bytes("00") is None


@pytest.mark.parametrize("number", [0, 63, 64, 16383, 16384, (1 << 30) - 1])
def test_compact_numbers_read_back(number: int) -> None:
    reader = ScaleReader(compact(number), what="test", reason=SERVICE)
    assert reader.compact() == number
    reader.finish()


@pytest.mark.parametrize("raw", [b"\x01\x00", b"\x02\x00\x00\x00", b"\x03", b"\x01", b"", b"\xfc"])
def test_compact_numbers_have_one_form_and_bound_what_follows(raw: bytes) -> None:
    with pytest.raises(FormatError):
        ScaleReader(raw, what="test", reason=SERVICE).octets()


def test_the_genuine_v0_envelope(vectors: Path) -> None:
    raw = (vectors / "dstack" / "attestation-scale-v0.bin").read_bytes()
    found = parse_envelope(raw)
    assert is_envelope(raw)
    assert found.quote is not None
    entries = parse_log(found.event_log)
    assert [entry.event.name for entry in entries if entry.register == 3] == [
        name for name, _ in found.runtime_events
    ]
    assert json.loads(found.config)["vm_config"]
    for size in (0, 1, 2, 3, 4, 100, len(raw) // 2, len(raw) - 1):
        with pytest.raises((FormatError, Unsupported)):
            parse_envelope(raw[:size])
    with pytest.raises(FormatError):
        parse_envelope(raw + b"\x00")


def test_both_envelopes_of_one_machine_say_the_same() -> None:
    old, new = parse_envelope(v0_envelope()), parse_envelope(msgpack(v1_document()))
    assert old == new
    assert new.quote == b"\x04\x00quote"
    assert len(parse_log(new.event_log)) == 2


def test_an_envelope_of_an_snp_machine() -> None:
    document = v1_document()
    document["platform"] = {
        "kind": "sev-snp",
        "data": {"report": [1, 2], "cert_chain": [b"leaf", [3]], "mr_config": "{}"},
    }
    found = parse_envelope(msgpack(document))
    assert found.quote is None
    assert found.snp_report == b"\x01\x02"
    assert found.snp_certificates == (b"leaf", b"\x03")
    raw = b"\x00\x03" + vector(b"\x01\x02") + compact(2) + vector(b"leaf") + vector(b"\x03")
    raw += vector(b"{}") + v0_envelope()[-v0_tail() :]
    assert parse_envelope(raw) == found


def v0_tail() -> int:
    return len(v0_envelope()) - len(v0_envelope(tail=False))


def _edit(path: str, value: Any) -> Any:
    def change(document: Any) -> None:
        *parents, last = path.split(".")
        for name in parents:
            document = document[int(name) if name.isdigit() else name]
        document[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _edit("stack.data.report_data", bytes(63)),
        _edit("stack.data.runtime_events.0.event", "other"),
        _edit("stack.data.runtime_events.0.payload", b"other"),
        _edit("stack.data.runtime_events", []),
        _edit("stack.data.config", b"{}"),
        _edit("stack.data.extra", 1),
        _edit("platform.data.extra", 1),
        _edit("platform.data.quote", "0400"),
        _edit("platform.data.event_log", {}),
        _edit("platform.data.event_log.0.imr", True),
        _edit("platform.data.event_log.0.event_type", 1 << 32),
        _edit("platform.data.event_log.0.extra", 1),
        _edit("extra", 1),
        _edit("stack", []),
    ],
)
def test_a_v1_envelope_with_one_thing_wrong_is_refused(change: Any) -> None:
    document = v1_document()
    change(document)
    with pytest.raises(FormatError):
        parse_envelope(msgpack(document))


@pytest.mark.parametrize(
    "change",
    [
        _edit("version", 2),
        _edit("platform.kind", "nitro-enclave"),
        _edit("platform.kind", "gcp-tdx"),
        _edit("stack.kind", "other"),
    ],
)
def test_what_is_not_judged_here_is_said_to_be_so(change: Any) -> None:
    document = v1_document()
    change(document)
    with pytest.raises(Unsupported):
        parse_envelope(msgpack(document))
    with pytest.raises(Unsupported):
        parse_envelope(b"\x00\x02" + v0_envelope()[2:])


def test_a_certificate_gives_its_exact_key_and_extensions() -> None:
    der, spki = ratls_certificate({RATLS_QUOTE: b"quote", RATLS_EVENT_LOG: b"[]"})
    found = parse_ratls_certificate(der)
    assert found.spki == spki
    assert found.extensions[RATLS_QUOTE] == b"quote"
    assert RATLS_ATTESTATION not in found.extensions


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_certificate_that_is_cut_or_continued_is_refused(cut: int) -> None:
    der, _ = ratls_certificate({RATLS_QUOTE: b"quote"})
    for raw in (der[:-cut], der + bytes(cut), der[cut:], b""):
        with pytest.raises(FormatError):
            parse_ratls_certificate(raw)


LOG = json.dumps([{"imr": 3}]).encode()
# The time in the header of gzip would give the cases another name in every process.
PACKED = gzip.compress(LOG, mtime=0)


def test_a_log_in_a_certificate_is_plain_or_compressed() -> None:
    assert decode_log_extension(LOG) == decode_log_extension(b"ELGZv1" + gzip.compress(LOG))


def test_a_log_of_16_kib_is_read_and_one_byte_more_is_not() -> None:
    most = b"[" + b" " * (16 * 1024 - 2) + b"]"
    assert decode_log_extension(b"ELGZv1" + gzip.compress(most)) == []
    for raw in (most + b" ", b"ELGZv1" + gzip.compress(most + b" ")):
        with pytest.raises(FormatError):
            decode_log_extension(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"ELGZv1",
        b"ELGZv1" + PACKED[:-1],
        b"ELGZv1" + PACKED + b"\x00",
        b"ELGZv1" + PACKED * 2,
        b"ELGZv1" + PACKED[:-8] + bytes(8),
        b"ELGZv1" + gzip.compress(bytes(50 * 1024 * 1024), mtime=0),
        b"ELGZv2" + PACKED,
        b"\xff",
    ],
)
def test_a_compressed_log_that_is_not_one_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_log_extension(raw)


def test_what_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(FormatError, match="at most"):
        parse_envelope(bytes(10 * 1024 * 1024 + 1))
    with pytest.raises(FormatError, match="bytes"):
        parse_ratls_certificate(bytes(1024 * 1024 + 1))


def test_extensions_are_few_and_stand_once() -> None:
    many = {f"1.3.6.1.4.1.99999.{n}": b"" for n in range(64)}
    assert len(parse_ratls_certificate(ratls_certificate(many)[0]).extensions) == 64
    with pytest.raises(FormatError, match="more than"):
        parse_ratls_certificate(ratls_certificate({**many, "2.5.29.15": b""})[0])
    with pytest.raises(FormatError, match="twice"):
        parse_ratls_certificate(ratls_twice())


def ratls_twice() -> bytes:
    der, _ = ratls_certificate({"1.2.3.4": b"", "1.2.3.5": b""})
    # 1.2.3.4 is 2a 03 04, 1.2.3.5 is 2a 03 05.
    assert der.count(b"\x06\x03\x2a\x03\x05") == 1
    return der.replace(b"\x06\x03\x2a\x03\x05", b"\x06\x03\x2a\x03\x04")


@pytest.mark.parametrize(
    "change",
    [
        _edit("platform.data.event_log.1.version", "2"),
        _edit("platform.data.event_log.1.preimage", "00"),
        _edit("platform.data.event_log.0.event", b"x"),
        _edit("platform.data.event_log.0.digest", "00"),
        _edit("platform.data.event_log.0", 7),
        _edit("platform", {"kind": "tdx"}),
        _edit("version", "1"),
    ],
)
def test_a_member_of_another_type_is_refused(change: Any) -> None:
    document = v1_document()
    change(document)
    with pytest.raises(FormatError):
        parse_envelope(msgpack(document))


def test_entries_of_version_2_keep_how_their_digest_was_made() -> None:
    document = v1_document()
    document["platform"]["data"]["event_log"][1] |= {"version": 2, "preimage": b"{}"}
    _, entry = parse_log(parse_envelope(msgpack(document)).event_log)
    assert (entry.version, entry.preimage) == (2, b"{}")


@pytest.mark.parametrize("stack", ["dstack", "dstack-pod"])
@pytest.mark.parametrize("payload", [{}, {"report_data_payload": "{}"}])
def test_what_report_data_is_made_of_may_be_named(stack: str, payload: dict[str, str]) -> None:
    document = v1_document()
    document["stack"]["kind"] = stack
    document["stack"]["data"] |= payload
    assert parse_envelope(msgpack(document)).quote is not None


def test_nil_is_as_if_it_were_absent() -> None:
    document = v1_document()
    document["stack"]["data"]["report_data_payload"] = None
    document["platform"]["data"]["event_log"][1] |= {"version": None, "preimage": None}
    _, entry = parse_log(parse_envelope(msgpack(document)).event_log)
    assert (entry.version, entry.preimage) == (1, None)
    document["platform"]["data"]["more"] = None
    with pytest.raises(FormatError):
        parse_envelope(msgpack(document))
