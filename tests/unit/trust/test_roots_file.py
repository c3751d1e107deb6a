"""Roots files: simulated, named by their digest, and never the vendors'. evidence.md §3."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from confide.errors import FormatError, Reason
from confide.simulator.machine import simulated_roots
from confide.trust.roots import VENDOR_ROOTS, encode_roots_file, parse_roots_file
from confide.wire.json import b64encode, jcs

ROOTS = simulated_roots(b"roots", datetime(2026, 11, 22, tzinfo=UTC))
RAW = encode_roots_file(ROOTS)


def document() -> dict[str, Any]:
    value = json.loads(RAW)
    assert isinstance(value, dict)
    return value


def test_it_reads_back_under_its_digest() -> None:
    assert parse_roots_file(RAW) == ROOTS
    assert ROOTS.name == f"simulated:{hashlib.sha256(RAW).hexdigest()}"
    assert ROOTS.simulated


def test_the_time_does_not_enter_them() -> None:
    assert simulated_roots(b"roots", datetime(2027, 1, 1, tzinfo=UTC)) == ROOTS


def test_vendor_roots_do_not_stand_in_a_file() -> None:
    assert not VENDOR_ROOTS.simulated
    with pytest.raises(ValueError, match="simulated"):
        encode_roots_file(VENDOR_ROOTS)


def test_a_file_that_holds_the_vendors_roots_is_simulated_all_the_same() -> None:
    raw = jcs(
        {
            **document(),
            "tdx": b64encode(VENDOR_ROOTS.tdx.der),
            "nvidia_device": b64encode(VENDOR_ROOTS.nvidia.device),
            "nvidia_rim": b64encode(VENDOR_ROOTS.nvidia.rim),
        }
    )
    roots = parse_roots_file(raw)
    assert roots.simulated
    assert roots.name.startswith("simulated:")


def test_other_bytes_have_another_name() -> None:
    assert parse_roots_file(RAW + b" ").name != ROOTS.name


@pytest.mark.parametrize(
    "edit",
    [
        {"type": "confide/simulated-roots/v2"},
        {"tdx": None},
        {"nvidia_rim": "QR=="},
        {"simulated": False},
        {"name": "vendor"},
    ],
)
def test_what_is_no_roots_file_is_refused(edit: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as error:
        parse_roots_file(jcs({**document(), **edit}))
    assert error.value.reason is Reason.ROOT_MISMATCH


@pytest.mark.parametrize("name", sorted(document()))
def test_no_member_may_be_absent(name: str) -> None:
    with pytest.raises(FormatError):
        parse_roots_file(jcs({key: value for key, value in document().items() if key != name}))


def test_roots_are_shown_by_name_and_not_by_their_bytes() -> None:
    """They are the default of an argument: `help(confide.openai_client)` shows them."""
    for roots in (VENDOR_ROOTS, ROOTS):
        assert roots.name in repr(roots)
        assert len(repr(roots)) < 500
        assert "\\x" not in repr(roots)
