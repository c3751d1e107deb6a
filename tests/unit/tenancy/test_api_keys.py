"""Keys: one spelling each, nothing of them stored, and what a stored one permits. tenancy.md §1."""

from __future__ import annotations

import hashlib
import string
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.tenancy.keys import (
    ENDPOINTS,
    Budget,
    KeyRecord,
    Limits,
    Period,
    Standing,
    make_key,
    parse_key,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RAW = bytes(range(32))
_RAW = st.binary(min_size=32, max_size=32)
_WORDS = string.ascii_letters + string.digits


def record(**changes: object) -> KeyRecord:
    key = make_key(RAW)
    made = KeyRecord(id=key.id, digest=key.digest, tenant="acme", created=NOW)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_key_is_spelled_as_the_protocol_says() -> None:
    key = make_key(RAW)
    assert key.text == "cfd_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf1UdQcg"
    assert key.digest == hashlib.sha256(b"confide api key v1\0" + RAW).digest()
    assert key.id == f"key_{key.digest.hex()[:16]}"


@given(_RAW)
def test_a_key_is_read_back(raw: bytes) -> None:
    key = make_key(raw)
    assert parse_key(key.text) == key
    assert len(key.text) == 53


@given(_RAW, st.integers(0, 52), st.sampled_from(_WORDS))
def test_a_key_with_one_character_changed_is_none(raw: bytes, at: int, char: str) -> None:
    text = make_key(raw).text
    changed = text[:at] + char + text[at + 1 :]
    assert (parse_key(changed) is None) == (changed != text)


@pytest.mark.parametrize(
    "text",
    ["", "cfd_", "sk-abc", "cfd_" + "z" * 49, "cfd_" + "0" * 49, make_key(RAW).text + "\n"],
)
def test_what_is_no_key_is_none(text: str) -> None:
    assert parse_key(text) is None


@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33)])
def test_a_key_is_made_of_32_bytes(raw: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        make_key(raw)


def test_the_text_of_a_key_is_not_in_what_is_printed_of_it() -> None:
    key = make_key(RAW)
    assert key.text not in repr(key)
    assert key.text not in repr(record())


def test_a_key_is_good_until_it_expires_or_is_revoked() -> None:
    ends = NOW + timedelta(days=1)
    assert record().standing(NOW) is Standing.GOOD
    assert record(expires=ends).standing(ends - timedelta(microseconds=1)) is Standing.GOOD
    assert record(expires=ends).standing(ends) is Standing.EXPIRED
    # A clock that is behind does not bring a revoked key back.
    assert record(revoked=ends).standing(NOW) is Standing.REVOKED


def test_an_empty_scope_permits_all_and_any_other_what_it_names() -> None:
    chat, other = "/v1/chat/completions", "/v1/embeddings"
    assert record().permits(model="m", endpoint=chat)
    narrow = record(models=("m",), endpoints=(chat,))
    assert narrow.permits(model="m", endpoint=chat)
    assert not narrow.permits(model="m", endpoint=other)
    assert not narrow.permits(model="n", endpoint=chat)
    assert "/v1/messages" in ENDPOINTS


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": ""},
        {"tenant": "a b"},
        {"tenant": "x" * 65},
        {"id": "key\n"},
        {"digest": bytes(31)},
        {"endpoints": ("/v1/other",)},
        {"models": ("",)},
        {"models": ("a\n",)},
    ],
)
def test_what_could_not_be_matched_or_shown_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"scope|tenant|SHA-256"):
        record(**changes)


@pytest.mark.parametrize("limit", [0, -1, 2**53, True, 1.5, None])
def test_a_limit_is_a_whole_number_above_0(limit: int) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Budget(limit, Period.DAY)
    if limit is not None:
        for limits in ((limit, None), (None, limit)):
            with pytest.raises(ValueError, match="above 0"):
                Limits(*limits)
