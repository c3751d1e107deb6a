"""A relay's directory: signed, in force, never older. docs/protocols/relay.md §4."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from confide.channel.directory import sign_directory, verify_directory
from confide.crypto.cosign import NoteSigner
from confide.errors import DirectoryRejected, FormatError, Reason
from confide.wire.directory import (
    Directory,
    DirectoryAnswer,
    Listed,
    parse_directory,
    parse_directory_answer,
    parse_node_path,
    path_of_node,
)
from confide.wire.note import SignatureType

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SIGNER = NoteSigner("relay.example", SignatureType.ED25519, b"s" * 32)
HOUR = timedelta(hours=1)
NODES = (
    Listed(b"a" * 32, "model", "support-notes", "vendor"),
    Listed(b"b" * 32, "agent", "", "vendor"),
)
MANY = tuple(replace(NODES[0], keyset=b"%032d" % number) for number in range(1025))
DIRECTORY = Directory(7, NOW - HOUR, NOW + HOUR, NODES)


def refusal(work: Callable[[], object]) -> Reason:
    with pytest.raises((DirectoryRejected, FormatError)) as caught:
        work()
    reason = getattr(caught.value, "reason", None)
    assert isinstance(reason, Reason)
    return reason


def test_what_was_signed_is_what_is_believed() -> None:
    raw = sign_directory(DIRECTORY, SIGNER)
    found = verify_directory(raw, key=SIGNER.key, now=NOW, floor=7)
    assert (found.directory, found.signer) == (DIRECTORY, "relay.example")
    again = verify_directory(raw, key=SIGNER.key, now=NOW, floor=0, held=found)
    assert again == found


def test_another_key_is_refused_also_under_the_same_name() -> None:
    other = NoteSigner("relay.example", SignatureType.ED25519, b"t" * 32)
    raw = sign_directory(DIRECTORY, other)
    reason = refusal(lambda: verify_directory(raw, key=SIGNER.key, now=NOW, floor=0))
    assert reason is Reason.DIRECTORY_SIGNATURE


def test_the_key_of_a_witness_signs_and_verifies_no_directory() -> None:
    witness = NoteSigner("relay.example", SignatureType.COSIGNATURE, b"s" * 32)
    with pytest.raises(ValueError, match="Ed25519"):
        sign_directory(DIRECTORY, witness)
    raw = sign_directory(DIRECTORY, SIGNER)
    reason = refusal(lambda: verify_directory(raw, key=witness.key, now=NOW, floor=0))
    assert reason is Reason.DIRECTORY_SIGNATURE


def test_every_changed_character_of_the_list_is_noticed() -> None:
    raw = sign_directory(DIRECTORY, SIGNER)
    end = raw.index(b"\n")
    for at in range(0, end, 7):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        assert refusal(
            lambda changed=changed: verify_directory(changed, key=SIGNER.key, now=NOW, floor=0)  # type: ignore[misc]
        ) in (Reason.DIRECTORY_FORMAT, Reason.DIRECTORY_SIGNATURE)


@pytest.mark.parametrize("now", [NOW - HOUR * 1.01, NOW + HOUR * 1.01])
def test_outside_its_time_it_is_refused(now: datetime) -> None:
    raw = sign_directory(DIRECTORY, SIGNER)
    reason = refusal(lambda: verify_directory(raw, key=SIGNER.key, now=now, floor=0))
    assert reason is Reason.DIRECTORY_TIME


def test_an_older_one_is_refused_and_another_one_of_the_same_number() -> None:
    raw = sign_directory(DIRECTORY, SIGNER)
    held = verify_directory(raw, key=SIGNER.key, now=NOW, floor=0)
    for directory in (replace(DIRECTORY, sequence=6), replace(DIRECTORY, nodes=NODES[:1])):
        older = sign_directory(directory, SIGNER)
        reason = refusal(
            lambda older=older: verify_directory(  # type: ignore[misc]
                older, key=SIGNER.key, now=NOW, floor=0, held=held
            )
        )
        assert reason is Reason.DIRECTORY_ROLLBACK
    reason = refusal(lambda: verify_directory(raw, key=SIGNER.key, now=NOW, floor=8))
    assert reason is Reason.DIRECTORY_ROLLBACK


@pytest.mark.parametrize(
    "directory",
    [
        replace(DIRECTORY, nodes=(NODES[0], NODES[0])),
        replace(DIRECTORY, not_after=NOW - HOUR),
        replace(DIRECTORY, not_after=NOW + timedelta(days=8)),
        replace(DIRECTORY, sequence=0),
        replace(DIRECTORY, nodes=(replace(NODES[0], model=""),)),
        replace(DIRECTORY, nodes=(replace(NODES[1], model="m"),)),
        replace(DIRECTORY, nodes=(replace(NODES[0], roots=""),)),
        replace(DIRECTORY, nodes=(replace(NODES[0], model="a\u202eb"),)),
        replace(DIRECTORY, nodes=MANY),
    ],
)  # fmt: skip
def test_a_signature_makes_no_directory_of_what_is_none(directory: Directory) -> None:
    raw = sign_directory(directory, SIGNER)
    assert refusal(lambda: parse_directory(raw)) is Reason.DIRECTORY_FORMAT


def test_a_spelling_of_its_own_is_refused() -> None:
    text = DIRECTORY.text().replace('":', '": ', 1)
    raw = text.encode() + b"\n" + sign_directory(DIRECTORY, SIGNER).split(b"\n\n")[1]
    assert refusal(lambda: parse_directory(raw)) is Reason.DIRECTORY_FORMAT


def test_the_answer_of_a_relay_comes_back_as_it_was() -> None:
    answer = DirectoryAnswer(sign_directory(DIRECTORY, SIGNER), ((b"a" * 32, "up"),))
    assert parse_directory_answer(answer.encode()) == answer


def test_a_path_names_a_keyset_in_one_spelling() -> None:
    path = path_of_node(b"\xab" * 32)
    assert parse_node_path(path + "/confide/v1/ohttp") == (b"\xab" * 32, "/confide/v1/ohttp")
    assert parse_node_path(path.upper().replace("/CONFIDE/V1/NODES/", "/confide/v1/nodes/")) is None
    assert parse_node_path(path[:-1] + "/confide/v1/ohttp") is None
    assert parse_node_path("/confide/v1/ohttp") is None
