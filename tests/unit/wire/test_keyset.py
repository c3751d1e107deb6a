"""Keysets: one meaning for one document. binding.md §1."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from confide.errors import FormatError, Reason
from confide.wire.json import b64encode
from confide.wire.keyset import Keyset, KeysetKey, format_time, parse_keyset, parse_time

BEGIN = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
KEYSET = Keyset(
    "agent",
    b"s" * 32,
    BEGIN,
    BEGIN + timedelta(days=1),
    (
        KeysetKey(1, "MLKEM768-X25519", bytes(1216)),
        KeysetKey(2, "X25519", b"x" * 32),
        KeysetKey(3, "Ed25519", b"e" * 32),
    ),
)


def document() -> dict[str, Any]:
    return KEYSET.document()


def test_it_reads_back() -> None:
    assert parse_keyset(document()) == KEYSET


def test_keys_are_found_by_purpose_in_order_of_preference() -> None:
    assert [key.id for key in KEYSET.for_purpose("seal")] == [1, 2]
    assert [key.id for key in KEYSET.for_purpose("sign-receipt")] == [3]


def test_the_digest_names_every_part() -> None:
    changed: list[dict[str, Any]] = [
        {"role": "model"},
        {"software": "00" * 32},
        {"not_before": "2026-11-22T11:00:00Z"},
        {"not_after": "2026-11-24T11:00:00Z"},
        {"keys": list(reversed(document()["keys"]))},
    ]
    digests = {parse_keyset({**document(), **edit}).digest for edit in changed}
    assert len(digests | {KEYSET.digest}) == len(changed) + 1


def _keys(*edits: dict[str, Any]) -> list[Any]:
    return [{**key, **edit} for key, edit in zip(document()["keys"], edits, strict=True)]


SHORT = b64encode(bytes(31))


@pytest.mark.parametrize(
    "edit",
    [
        {"type": "confide/keyset/v2"},
        {"role": "broker"},
        {"software": "00" * 31},
        {"note": ""},
        {"not_after": "2026-11-22T12:00:00Z"},
        {"not_after": "2025-11-22T12:00:00Z"},
        {"not_before": "2026-11-22T12:00:00+00:00"},
        {"keys": []},
        {"keys": document()["keys"][:2]},
        {"keys": document()["keys"][2:]},
        {"keys": document()["keys"] * 6},
        {"keys": _keys({}, {"id": 1}, {})},
        {"keys": _keys({"id": 256}, {}, {})},
        {"keys": _keys({"id": True}, {}, {})},
        {"keys": _keys({}, {"algorithm": "P-256"}, {})},
        {"keys": _keys({}, {"public_key": SHORT}, {})},
        {"keys": _keys({}, {}, {"public_key": SHORT})},
        {"keys": _keys({}, {}, {"algorithm": "X25519"})},
        {"keys": _keys({}, {}, {"secret": "x"})},
    ],
)
def test_a_document_that_is_no_keyset_is_refused(edit: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as error:
        parse_keyset({**document(), **edit})
    assert error.value.reason is Reason.KEYSET_MISMATCH


@pytest.mark.parametrize("name", sorted(document()))
def test_no_member_may_be_absent(name: str) -> None:
    with pytest.raises(FormatError):
        parse_keyset({key: value for key, value in document().items() if key != name})


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22T12:00:00",
        "2026-11-22 12:00:00Z",
        "2026-11-22T12:00:00.0Z",
        "2026-11-22T12:00:00Z\n",
        "2026-02-30T12:00:00Z",
        "2026-11-22T24:00:00Z",
        "2026-11-22T12:00:60Z",
        "\N{FULLWIDTH DIGIT TWO}026-11-22T12:00:00Z",
        "26-11-22T12:00:00Z",
        "",
    ],
)
def test_other_spellings_of_a_time_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_time(text, what="time", reason=Reason.KEYSET_MISMATCH)


def test_times_are_written_in_utc() -> None:
    west = BEGIN.astimezone(timezone(timedelta(hours=-5)))
    assert format_time(west) == "2026-11-22T12:00:00Z"
    with pytest.raises(ValueError, match="zone"):
        format_time(BEGIN.replace(tzinfo=None))
