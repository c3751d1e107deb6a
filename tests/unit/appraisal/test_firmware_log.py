"""Firmware logs: their form, byte by byte, and which of their labels may be shown."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import pytest

from confide.appraisal.firmware_log import describe_event, judge_ccel
from confide.errors import FormatError, Reason
from confide.wire.ccel import EV_NO_ACTION, CcelEvent, encode_ccel, parse_ccel

if TYPE_CHECKING:
    from pathlib import Path

EVENTS = (CcelEvent(1, 4, b"\x01" * 48, bytes(4)), CcelEvent(0, 5, b"\x02" * 48, b"td"))
RAW = encode_ccel(EVENTS)
HEADER = encode_ccel(())
FIRST = len(HEADER)


def _at(offset: int, raw: bytes, base: bytes = RAW) -> bytes:
    return base[:offset] + raw + base[offset + len(raw) :]


@pytest.mark.parametrize(
    "fill",
    [b"", bytes(1), bytes(7), bytes(8), bytes(4096), b"\xff" * 3, b"\xff" * 8, b"\xff" * 4096],
)
def test_a_log_ends_with_zeros_or_with_ones(fill: bytes) -> None:
    assert parse_ccel(RAW + fill) == EVENTS


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", Reason.LOG_TRUNCATED),
        (HEADER[:20], Reason.LOG_TRUNCATED),
        (RAW[:-1], Reason.LOG_TRUNCATED),
        (RAW + b"\x01", Reason.LOG_TRUNCATED),
        (RAW + b"\x01" + bytes(6), Reason.LOG_TRUNCATED),
        (RAW + b"\xff\x00", Reason.LOG_TRUNCATED),
        (RAW + bytes(20) + b"\x01", Reason.LOG_FORMAT),
        (RAW + b"\xff" * 20 + b"\x00", Reason.LOG_FORMAT),
        (RAW + b"\xff" * 4 + bytes(4), Reason.LOG_FORMAT),
        (_at(FIRST, struct.pack("<I", 5)), Reason.LOG_REGISTER),
        (_at(FIRST, struct.pack("<I", 0xFFFFFFFE)), Reason.LOG_REGISTER),
        (_at(FIRST + 8, struct.pack("<I", 0)), Reason.LOG_FORMAT),
        (_at(FIRST + 8, struct.pack("<I", 2)), Reason.LOG_FORMAT),
        (_at(FIRST + 12, struct.pack("<H", 0x0B)), Reason.LOG_FORMAT),
        (_at(FIRST + 62, struct.pack("<I", 0xFFFFFFF0)), Reason.LOG_TRUNCATED),
        (_at(4, struct.pack("<I", 4)), Reason.LOG_FORMAT),
        (_at(0, struct.pack("<I", 9)), Reason.LOG_REGISTER),
        (_at(32, b"Spec ID Event02\0"), Reason.LOG_FORMAT),
        (_at(32 + 24, struct.pack("<I", 2)), Reason.LOG_FORMAT),
        (_at(32 + 28, struct.pack("<H", 0x0B)), Reason.LOG_FORMAT),
        (_at(32 + 30, struct.pack("<H", 32)), Reason.LOG_FORMAT),
        (HEADER + RAW[FIRST:] * 2100, Reason.LOG_FORMAT),
        (RAW + bytes(1 << 20), Reason.LOG_FORMAT),
    ],
)
def test_a_log_with_one_thing_wrong_is_refused(raw: bytes, reason: Reason) -> None:
    with pytest.raises(FormatError) as refused:
        parse_ccel(raw)
    assert refused.value.reason is reason
    quoted = (bytes(48), bytes(48), bytes(48), bytes(48))
    verdict = judge_ccel(raw, quoted=quoted, runtime_elsewhere=False)
    assert [finding.reason for finding in verdict.findings if finding.failed] == [reason]


# Names of algorithms, sizes of their digests; SHA-384 and others.
SHA1, SHA256, SHA384, SHA512 = (4, 20), (0x0B, 32), (0x0C, 48), (0x0D, 64)


def _with_algorithms(listed: tuple[tuple[int, int], ...], *measured: tuple[int, int]) -> bytes:
    """A log that lists `listed`, with one record that has digests of `measured`."""
    pairs = b"".join(struct.pack("<HH", *pair) for pair in listed)
    spec = HEADER[32:56] + struct.pack("<I", len(listed)) + pairs + b"\0"
    head = HEADER[:28] + struct.pack("<I", len(spec)) + spec
    digests = b"".join(struct.pack("<H", kind) + bytes([kind]) * size for kind, size in measured)
    return head + struct.pack("<III", 1, 4, len(measured)) + digests + struct.pack("<I", 0)


def test_of_several_algorithms_only_sha384_is_replayed() -> None:
    listed = (SHA1, SHA256, SHA384, SHA512)
    (event,) = parse_ccel(_with_algorithms(listed, *reversed(listed)))
    assert event == CcelEvent(1, 4, b"\x0c" * 48, b"")


@pytest.mark.parametrize(
    "raw",
    [
        _with_algorithms((SHA256,), SHA256),
        _with_algorithms((SHA256, SHA384), SHA384),
        _with_algorithms((SHA256, SHA384), SHA384, SHA384),
        _with_algorithms((SHA256, SHA384), SHA384, SHA1),
        _with_algorithms((SHA384, SHA384), SHA384, SHA384),
        _with_algorithms((SHA384, (0x27, 32)), SHA384, (0x27, 32)),
        _with_algorithms((SHA384, (0x0B, 48)), SHA384, (0x0B, 48)),
        _with_algorithms((SHA384,) * 6, *(SHA384,) * 6),
        _with_algorithms((), SHA384),
    ],
)
def test_algorithms_that_are_unknown_missing_or_twice_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError) as refused:
        parse_ccel(raw)
    assert refused.value.reason is Reason.LOG_FORMAT


def _event(kind: int, data: bytes, measured: bytes) -> CcelEvent:
    return CcelEvent(2, kind, hashlib.sha384(measured).digest(), data)


ACTION = b"Exit Boot Services Invocation"
NAME = "BootOrder".encode("utf-16-le")
VARIABLE = bytes(16) + struct.pack("<QQ", 9, 2) + NAME + b"\x00\x00"
TAGGED = struct.pack("<II", 0x4141454C, 5) + b"hello"


@pytest.mark.parametrize(
    ("event", "recomputed", "label"),
    [
        (_event(0x80000007, ACTION, ACTION), True, ACTION.decode()),
        (_event(0x80000007, ACTION, b"something else"), False, ""),
        (_event(4, bytes(4), bytes(4)), True, ""),
        (_event(0x80000001, VARIABLE, VARIABLE), True, "BootOrder"),
        (_event(0x80000002, VARIABLE, b"\x00\x00"), True, ""),
        (_event(6, TAGGED, b"hello"), True, "hello"),
        (_event(6, TAGGED, TAGGED), True, ""),
        (_event(6, b"short", b"long"), False, ""),
        (_event(5, b"\x1b[31mred", b"\x1b[31mred"), True, ""),
        (_event(5, b"x" * 97, b"x" * 97), True, ""),
        (_event(EV_NO_ACTION, b"claims", b"claims"), False, ""),
        (_event(0x12345678, b"x", b"y"), False, ""),
    ],
)
def test_a_label_is_shown_only_where_the_digest_binds_it(
    event: CcelEvent, recomputed: bool, label: str
) -> None:
    found = describe_event(event)
    assert (found.recomputed, found.label) == (recomputed, label)
    assert found.kind


def test_a_genuine_log_in_words(vectors: Path) -> None:
    raw = (vectors / "eventlog" / "ccel-cos113.bin").read_bytes()
    events = parse_ccel(raw)
    shown = [describe_event(event) for event in events]
    assert "Exit Boot Services Returned with Success" in {event.label for event in shown}
    assert {"SecureBoot", "PK", "KEK", "db", "dbx"} <= {event.label for event in shown}
    assert not any(event.label for event in shown if not event.recomputed)
