"""Candidates of stage `tlog`: an honest log, and one fault at a time."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from confide.crypto.cosign import NoteSigner
from confide.errors import Reason
from confide.tlog.leaf import LeafOpening
from confide.tlog.log import EMPTY_EDGE, Growth, grow
from confide.tlog.prove import (
    prove_consistency,
    prove_inclusion,
    tiles_for_consistency,
    tiles_for_inclusion,
    verify_tiles,
)
from confide.wire.checkpoint import Checkpoint, SignedCheckpoint
from confide.wire.note import Note, NoteSignature, SignatureType
from confide.wire.tlog_proof import TlogProof
from conformance.own.candidate import NOW, SEED, Candidate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

__all__ = ["candidates", "document"]

_ORIGIN: Final = "log.example/confide"
_SECONDS: Final = int(NOW.timestamp())
_DIGEST: Final = hashlib.sha256(b"the receipt").digest()
_OPENING: Final = LeafOpening(hashlib.sha256(b"blinding").digest(), _DIGEST)
_AT: Final = 299


def _signer(name: str, kind: SignatureType) -> NoteSigner:
    return NoteSigner(name, kind, hashlib.sha256(SEED + name.encode()).digest())


_LOG: Final = _signer(_ORIGIN, SignatureType.ED25519)
# Ed25519 alone: ML-DSA signatures are drawn anew each time, and vectors are the same bytes always.
_WITNESSES: Final = (
    _signer("witness.example/a", SignatureType.COSIGNATURE),
    _signer("witness.example/b", SignatureType.COSIGNATURE),
)


def document() -> dict[str, Any]:
    """Return the top of the index."""
    return {}


def _policy(*, quorum: str = "both") -> bytes:
    lines = [f"log {_LOG.key.encode()}"]
    lines += [f"witness w{at} {each.key.encode()}" for at, each in enumerate(_WITNESSES)]
    lines += ["group both all w0 w1", f"quorum {quorum}", ""]
    return "\n".join(lines).encode()


def _grown(size: int, *, past: bytes = b"entry") -> Growth:
    entries = [hashlib.sha256(past + number.to_bytes(4, "big")).digest() for number in range(size)]
    if size > _AT:
        entries[_AT] = _OPENING.entry
    return grow(EMPTY_EDGE, entries)


def _signed(
    head: Checkpoint, *, seconds: int = _SECONDS, by: NoteSigner = _LOG, witnesses: int = 2
) -> SignedCheckpoint:
    lines: list[NoteSignature] = [by.sign_checkpoint(head)]
    lines += [each.cosign(head, seconds=seconds) for each in _WITNESSES[:witnesses]]
    return SignedCheckpoint(Note(head.text(), tuple(lines)), head)


def _proof(size: int = 300) -> TlogProof:
    growth = _grown(size)
    head = growth.edge.head(_ORIGIN)
    files = dict(growth.files)
    raw = {path: files[path] for path in tiles_for_inclusion(_AT, size)}
    hashes = prove_inclusion(_AT, size, verify_tiles(head, raw, known={}))
    return TlogProof(_AT, hashes, _signed(head), _OPENING.blinding)


def _case(kind: str, roles: dict[str, str], **more: object) -> dict[str, Any]:
    now = NOW.isoformat().replace("+00:00", "Z")
    return {"kind": kind, "files": {**roles, "policy": "policy.txt"}, "now": now, **more}


def _inclusion(
    slug: str,
    raw: bytes,
    reason: Reason | None = None,
    *,
    digest: bytes = _DIGEST,
    made: datetime | None = None,
) -> Candidate:
    more = {} if made is None else {"made": made.isoformat().replace("+00:00", "Z")}
    case = _case("inclusion", {"proof": "proof.txt"}, digest=digest.hex(), **more)
    return Candidate(slug, case, {"proof.txt": raw, "policy.txt": _policy()}, reason)


def _inclusions() -> Iterator[Candidate]:
    proof = _proof()
    raw, head = proof.encode(), proof.checkpoint.head
    yield _inclusion("honest", raw)
    yield _inclusion("leading-zero", raw.replace(b"index 2", b"index 02"), Reason.TLOG_FORMAT)
    other = _signer("log.example/other", SignatureType.ED25519)
    elsewhere = _signed(replace(head, origin="log.example/other"), by=other)
    for slug, checkpoint, reason in (
        ("other-log", elsewhere, Reason.TLOG_LOG_UNKNOWN),
        ("wrong-key", _signed(head, by=_signer_of_the_same_name()), Reason.TLOG_SIGNATURE),
        ("one-witness", _signed(head, witnesses=1), Reason.TLOG_WITNESSES),
        ("future-cosignature", _signed(head, seconds=_SECONDS + 301), Reason.TLOG_TIME),
    ):
        yield _inclusion(slug, replace(proof, checkpoint=checkpoint).encode(), reason)
    yield _inclusion("other-receipt", raw, Reason.TLOG_INCLUSION, digest=bytes(32))
    yield _inclusion("no-blinding", replace(proof, extra=None).encode(), Reason.TLOG_LEAF)
    skew = timedelta(seconds=300)
    yield _inclusion("made-within-the-skew", raw, made=NOW + skew)
    late = NOW + skew + timedelta(seconds=1)
    yield _inclusion("made-after-it-was-seen", raw, Reason.TLOG_POSTDATED, made=late)


def _signer_of_the_same_name() -> NoteSigner:
    return NoteSigner(_ORIGIN, SignatureType.ED25519, hashlib.sha256(b"another key").digest())


def _heads(
    slug: str,
    known: SignedCheckpoint,
    seen: SignedCheckpoint,
    proof: tuple[bytes, ...],
    reason: Reason | None = None,
) -> Candidate:
    roles = {"known": "known.txt", "seen": "seen.txt"}
    hashes = [each.hex() for each in proof]
    case = _case("heads", roles, proof=hashes, max_age=3600)
    files = {"known.txt": known.encode(), "seen.txt": seen.encode(), "policy.txt": _policy()}
    return Candidate(slug, case, files, reason)


def _monitored() -> Iterator[Candidate]:
    growth = _grown(700)
    small, large = _grown(300).edge.head(_ORIGIN), growth.edge.head(_ORIGIN)
    files = dict(growth.files)
    raw = {path: files[path] for path in tiles_for_consistency(300, 700)}
    proof = prove_consistency(300, 700, verify_tiles(large, raw, known={}))
    forked = _grown(300, past=b"another").edge.head(_ORIGIN)
    yield _heads("grown", _signed(small), _signed(large), proof)
    yield _heads("fork", _signed(forked), _signed(large), proof, Reason.TLOG_FORK)
    yield _heads("rollback", _signed(large), _signed(small), proof, Reason.TLOG_ROLLBACK)
    stale = _signed(large, seconds=_SECONDS - 3601)
    yield _heads("stale", _signed(small), stale, proof, Reason.TLOG_STALE)


def _tiles() -> Iterator[Candidate]:
    growth = _grown(300)
    head = _signed(growth.edge.head(_ORIGIN))
    written = dict(growth.files)
    tiles = {path: written[path] for path in tiles_for_inclusion(7, 300)}
    for slug, changed, reason in (
        ("tiles", b"", None),
        ("tile-changed", bytes(32), Reason.TLOG_TILE),
    ):
        names = {str(path): f"tile{number}.bin" for number, path in enumerate(tiles)}
        files = {names[str(path)]: changed + raw[len(changed) :] for path, raw in tiles.items()}
        case = _case("tiles", {"checkpoint": "checkpoint.txt"}, tiles=names, index=7)
        files |= {"checkpoint.txt": head.encode(), "policy.txt": _policy()}
        yield Candidate(slug, case, files, reason)


def candidates() -> Iterator[Candidate]:
    """Yield the honest log and the faults."""
    yield from _inclusions()
    yield from _monitored()
    yield from _tiles()
