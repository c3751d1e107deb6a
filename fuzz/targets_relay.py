"""Targets: the directory of a relay, what it answers, and the operator's list of nodes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from confide.channel.directory import sign_directory, verify_directory
from confide.channel.padding import parse_cadence
from confide.crypto.cosign import NoteSigner
from confide.errors import DirectoryRejected
from confide.node.relay_nodes import parse_relay_nodes
from confide.wire.directory import (
    Directory,
    DirectoryAnswer,
    Listed,
    parse_directory,
    parse_directory_answer,
    parse_node_path,
    path_of_node,
)
from confide.wire.json import jcs
from confide.wire.note import SignatureType
from fuzz.driver import Target
from fuzz.pieces import fixed, text

_NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
_SIGNER = NoteSigner("relay.fuzz", SignatureType.ED25519, b"f" * 32)
_DIRECTORY = Directory(
    7,
    _NOW,
    _NOW + timedelta(hours=1),
    (Listed(b"a" * 32, "model", "m", "vendor"), Listed(b"b" * 32, "agent", "", "vendor")),
)
_SIGNED = sign_directory(_DIRECTORY, _SIGNER)
_ENTRY = {"url": "https://n.example", "role": "model", "model": "m", "roots": "vendor"}


def _parsed(raw: bytes) -> None:
    # What is read has one spelling: the one that was read.
    assert parse_directory(raw).note.encode() == raw


def _believed(raw: bytes) -> None:
    try:
        found = verify_directory(raw, key=_SIGNER.key, now=_NOW, floor=7)
    except DirectoryRejected:
        return
    # Whatever is believed is what was signed.
    assert found.directory == _DIRECTORY


def _answered(raw: bytes) -> None:
    found = parse_directory_answer(raw)
    assert parse_directory_answer(found.encode()) == found


def _path(path: str) -> None:
    found = parse_node_path(path)
    assert found is None or path_of_node(found[0]) + found[1] == path


RELAY_TARGETS: tuple[Target, ...] = (
    Target("directory", _parsed, fixed(_SIGNED), json_values=True),
    Target("directory-believed", _believed, fixed(_SIGNED), tokens=(b"\n\n", b"7", b"8")),
    Target(
        "directory-answer",
        _answered,
        fixed(DirectoryAnswer(_SIGNED, ((b"a" * 32, "up"),)).encode()),
        json_values=True,
    ),
    Target(
        "node-path", text(_path), fixed(path_of_node(b"a" * 32).encode() + b"/confide/v1/ohttp")
    ),
    Target(
        "relay-nodes",
        parse_relay_nodes,
        fixed(
            jcs({"type": "confide/relay-nodes/v1", "nodes": [_ENTRY]}),
            jcs(
                {
                    "type": "confide/relay-nodes/v1",
                    "nodes": [{**_ENTRY, "role": "agent", "model": "", "keyset": "ab" * 32}],
                }
            ),
        ),
        json_values=True,
    ),
    Target("cadence", parse_cadence, fixed(b"10", b"1000")),
)
