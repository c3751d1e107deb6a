"""The statement: one definition of what evidence binds. binding.md §2."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from confide.appraisal.binding import (
    Statement,
    closing_nonce,
    devices_digest,
    parse_statement,
)
from confide.errors import FormatError, Reason
from confide.wire.evidence import GpuEvidence

CHANNEL = Statement("channel", b"n" * 32, b"k" * 32, b"e" * 32)
CLAIM = replace(CHANNEL, purpose="claim", claim=b"c" * 32)


@pytest.mark.parametrize(
    "statement", [CHANNEL, CLAIM, replace(CHANNEL, devices=b"d" * 32)], ids=["a", "b", "c"]
)
def test_it_reads_back(statement: Statement) -> None:
    assert parse_statement(statement.document()) == statement
    assert None not in statement.document().values()


def test_report_data_is_the_definition() -> None:
    # Written out once, so that a change of the format cannot pass unseen.
    canonical = (
        b'{"expectation":"' + b"65" * 32 + b'","keyset":"' + b"6b" * 32 + b'","nonce":"'
        b"" + b"6e" * 32 + b'","purpose":"channel","type":"confide/statement/v1"}'
    )
    assert CHANNEL.report_data == hashlib.sha512(b"confide/report-data/v1\0" + canonical).digest()
    assert CHANNEL.gpu_nonce == hashlib.sha256(b"confide/gpu-nonce/v1\0" + canonical).digest()


def test_the_gpu_nonce_precedes_the_devices_and_the_report_data_covers_them() -> None:
    named = replace(CHANNEL, devices=b"d" * 32)
    assert named.gpu_nonce == CHANNEL.gpu_nonce
    assert named.report_data != CHANNEL.report_data


def test_every_member_changes_both_hashes() -> None:
    others = [
        CHANNEL,
        CLAIM,
        replace(CHANNEL, nonce=b"x" * 32),
        replace(CHANNEL, keyset=b"x" * 32),
        replace(CHANNEL, expectation=b"x" * 32),
        replace(CLAIM, claim=b"x" * 32),
    ]
    assert len({other.report_data for other in others}) == len(others)
    assert len({other.gpu_nonce for other in others}) == len(others)


@pytest.mark.parametrize(
    "members",
    [
        {"purpose": "claim"},
        {"claim": b"c" * 32},
        {"nonce": b"short"},
        {"keyset": bytes(33)},
        {"devices": b""},
    ],
)
def test_a_statement_that_means_nothing_cannot_be_made(members: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"claim|32 bytes"):
        replace(CHANNEL, **members)


@pytest.mark.parametrize(
    "edit",
    [
        {"claim": "63" * 32},
        {"purpose": "claim"},
        {"purpose": "seal"},
        {"nonce": "6E" * 32},
        {"devices": None},
        {"devices": "00"},
        {"extra": 1},
        {"type": "confide/statement/v0"},
    ],
)
def test_a_document_that_is_no_statement_is_refused(edit: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as error:
        parse_statement({**CHANNEL.document(), **edit})
    assert error.value.reason is Reason.STATEMENT_MISMATCH


def test_device_evidence_cannot_be_cut_differently() -> None:
    sets = [
        (),
        (GpuEvidence(b"", b""),),
        (GpuEvidence(b"ab", b"c"),),
        (GpuEvidence(b"a", b"bc"),),
        (GpuEvidence(b"ab", b""), GpuEvidence(b"c", b"")),
        (GpuEvidence(b"c", b""), GpuEvidence(b"ab", b"")),
    ]
    assert len({devices_digest(devices) for devices in sets}) == len(sets)


def test_a_closing_is_about_one_run_of_one_owner() -> None:
    made = {closing_nonce(n, t) for n in (b"1" * 32, b"2" * 32) for t in (b"3" * 32, b"4" * 32)}
    assert len(made) == 4
