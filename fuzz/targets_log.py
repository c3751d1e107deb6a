"""Targets: what a log, a witness or a proof file says. docs/protocols/log.md."""

from __future__ import annotations

from functools import cache

import log_world as world
from log_world import LOG, NOW, WITNESSES, policy, signed

from confide.crypto.cosign import load_signer
from confide.errors import LogRejected
from confide.tlog.leaf import LeafOpening, PendingEntry, parse_pending
from confide.tlog.verify import verify_head, verify_logged
from confide.wire.checkpoint import parse_checkpoint
from confide.wire.note import (
    PrivateKeyText,
    SignatureType,
    parse_note,
    parse_signature_lines,
    parse_verifier_key,
)
from confide.wire.tiles import ENTRIES, TilePath, encode_bundle, parse_bundle, parse_tile_path
from confide.wire.tlog_policy import parse_log_policy
from confide.wire.tlog_proof import TlogProof, parse_tlog_proof
from confide.wire.witness import AddCheckpoint, parse_add_checkpoint, parse_size_body
from fuzz.driver import Target
from fuzz.pieces import fixed, text

_DASH = "\u2014 ".encode()
_LINES = (b"\n\n", b"\n", _DASH, b" ", b"+", b"=", b"AAAAAAE=", "\u2003".encode(), b"0", b"9" * 400)
_OPENING = LeafOpening(b"b" * 32, b"d" * 32)
_POLICY = policy(2, *WITNESSES)


@cache
def _proof() -> TlogProof:
    keeper = world.open_log(world.MemoryDisk())
    keeper.append([*(world.entry(number) for number in range(5)), _OPENING.entry])
    found = keeper.prove(5, signed(keeper.head.head, *WITNESSES))
    return TlogProof(found.index, found.hashes, found.checkpoint, _OPENING.blinding)


def _checkpoints() -> tuple[bytes, ...]:
    return (_proof().checkpoint.encode(), signed(world.signed_head(9)).encode())


def _note(raw: bytes) -> None:
    # What is read has one spelling: the one that was read.
    assert parse_note(raw).encode() == raw


def _request(raw: bytes) -> None:
    assert parse_add_checkpoint(raw).encode() == raw


def _logged(raw: bytes) -> None:
    proof = parse_tlog_proof(raw)
    try:
        found = verify_logged(proof, digest=_OPENING.digest, made=NOW, policy=_POLICY, now=NOW)
    except LogRejected:
        return
    # Whatever is accepted is the entry that was logged.
    assert (found.index, found.opening) == (5, _OPENING)


def _head(raw: bytes) -> None:
    verify_head(parse_checkpoint(raw), policy=_POLICY, now=NOW)


def _policy(raw: bytes) -> None:
    found = parse_log_policy(raw)
    found.quorum.reached(frozenset(witness.name for witness in found.witnesses))


def _policies() -> tuple[bytes, ...]:
    lines = [f"log {LOG.key.encode()} https://log.example"]
    lines += [f"witness w{at} {each.key.encode()}" for at, each in enumerate(WITNESSES)]
    lines += ["group some 2 w0 w1 w2", "quorum some"]
    return ("\n".join(lines).encode(), f"{lines[0]}\nquorum none\n".encode())


def _keys() -> tuple[bytes, ...]:
    return tuple(signer.key.encode().encode() for signer in (LOG, *WITNESSES))


def _private() -> tuple[bytes, ...]:
    kind = SignatureType.COSIGNATURE
    key = world.signer("witness.example/a", kind).key
    # Another seed than the key's own: reading it comes to the end all the same with the true one.
    seed = bytes(32)
    own = type(LOG)(key.name, kind, seed).key
    return (PrivateKeyText(key.name, kind, own.key_id, seed).encode().encode(),)


def _tails() -> tuple[bytes, ...]:
    return tuple(raw.rpartition(b"\n\n")[2] for raw in _checkpoints())


LOG_TARGETS: tuple[Target, ...] = (
    Target("note", _note, _checkpoints, tokens=_LINES),
    Target("note-lines", parse_signature_lines, _tails, tokens=_LINES),
    Target("checkpoint", _head, lambda: _checkpoints()[:1], tokens=_LINES),
    Target("verifier-key", text(parse_verifier_key), _keys, tokens=(b"+", b"=", b"\n")),
    Target("private-key", text(load_signer), _private, tokens=(b"+", b"PRIVATE+KEY+")),
    Target(
        "tile-path",
        text(parse_tile_path),
        fixed(b"tile/0/x001/x234/067.p/8", b"tile/entries/000"),
        tokens=(b"x000/", b".p/", b"../", b"999", "\u0660".encode()),
    ),
    Target(
        "entry-bundle",
        lambda raw: parse_bundle(raw, TilePath(ENTRIES, 0, 3)),
        fixed(encode_bundle([b"a" * 32, b"", b"c"])),
    ),
    Target("log-proof", _logged, lambda: (_proof().encode(),), tokens=_LINES),
    Target(
        "add-checkpoint",
        _request,
        lambda: (AddCheckpoint(3, (b"h" * 32,), _proof().checkpoint).encode(),),
        tokens=(*_LINES, b"old "),
    ),
    Target(
        "pending-entry",
        parse_pending,
        fixed(
            PendingEntry(_OPENING, bytes(32), 7).encode(),
            PendingEntry(_OPENING, bytes(32)).encode(),
        ),
        json_values=True,
    ),
    Target("witness-size", parse_size_body, fixed(b"20852163\n", b"0\n")),
    Target(
        "log-policy",
        _policy,
        _policies,
        tokens=(b"\n", b"\t", b"#", b" none", b" all", b" any", b"group a 1 ", b"quorum none\n"),
    ),
)
