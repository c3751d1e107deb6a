"""Candidates of stage `broker`, kinds `state`, `lease` and `record`."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from confide.agents.state_files import StateEntry, pack_state
from confide.agents.state_seal import seal_state
from confide.broker.lease import GRACE_SECONDS
from confide.broker.vault import Vault
from confide.errors import Reason
from confide.wire.release_receipt import NO_STATE
from conformance.own.broker_case import make
from conformance.own.candidate import NOW, drawn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.own.candidate import Candidate

__all__ = ["candidates"]

_RESOURCE: Final = "acme/state/agent"
_KEY: Final = drawn("state key")
_ENTRIES: Final = (
    StateEntry("notes", None),
    StateEntry("notes/today.txt", b"what was said today\n"),
    StateEntry("seen.json", b"[]"),
)
_BLOCK: Final = 512


def _seal(archive: bytes, counter: int = 7) -> bytes:
    return seal_state(_KEY, archive, resource=_RESOURCE, counter=counter, salt=drawn("state salt"))


def _case(
    slug: str, sealed: bytes, reason: Reason | None = None, **changes: Any
) -> Candidate:  # fmt: skip
    members: dict[str, Any] = {
        "key": _KEY.hex(),
        "resource": _RESOURCE,
        "counter": 7,
        "digest": hashlib.sha256(sealed).hexdigest(),
        "max_bytes": 1 << 20,
        **changes,
    }
    return make("state", f"state-{slug}", reason, {"state.bin": sealed}, **members)


def _opened() -> Iterator[Candidate]:
    archive = pack_state(_ENTRIES)
    sealed = _seal(archive)
    claims = {
        "archive": hashlib.sha256(archive).hexdigest(),
        "paths": [entry.path for entry in _ENTRIES],
    }
    yield _case("saved", sealed, claims=claims)
    empty = pack_state(())
    none: dict[str, Any] = {"archive": hashlib.sha256(empty).hexdigest(), "paths": []}
    yield _case("empty", _seal(empty), claims=none)
    nothing: dict[str, Any] = {"counter": 0, "digest": NO_STATE.hex()}
    yield _case("none-yet", b"", claims={"archive": None, "paths": []}, **nothing)
    rollback = Reason.STATE_ROLLBACK
    yield _case("where-there-is-none", sealed, rollback, **nothing)
    digest = {"digest": hashlib.sha256(sealed).hexdigest()}
    yield _case("of-another-digest", _seal(empty), rollback, **digest)
    yield _case("of-the-number-before", _seal(archive, 6), rollback)
    yield _case("of-another-resource", sealed, rollback, resource="acme/state/other")
    yield _case("under-another-key", sealed, rollback, key=drawn("another key").hex())
    yield _case("cut-short", sealed[:40], rollback)
    flipped = sealed[:-1] + bytes((sealed[-1] ^ 1,))
    yield _case("changed", flipped, rollback)


def _edited(at: int, new: bytes) -> bytes:
    """Return an archive of one file with bytes of its header changed and the checksum mended."""
    archive = bytearray(pack_state((StateEntry("seen.json", b"[]"),)))
    archive[at : at + len(new)] = new
    archive[148:156] = b" " * 8
    archive[148:156] = b"%06o\0 " % sum(archive[:_BLOCK])
    return bytes(archive)


def _archives() -> Iterator[Candidate]:
    """Yield archives that packing does not write (3.1)."""
    first, second = (
        pack_state((StateEntry(name, b""),))[:_BLOCK] for name in ("a", "b")
    )  # fmt: skip
    end = bytes(2 * _BLOCK)
    archive = pack_state(_ENTRIES)
    for slug, tar in (
        ("a-link", _edited(156, b"2")),
        ("an-owner", _edited(108, b"0000001\0")),
        ("a-time", _edited(136, b"00000000001\0")),
        ("another-mode", _edited(100, b"0000755\0")),
        ("a-name-that-climbs", _edited(0, b"../seen\0\0")),
        ("an-absolute-name", _edited(0, b"/seen.txt")),
        ("out-of-order", second + first + end),
        ("the-same-twice", first + first + end),
        ("without-its-directory", pack_state(_ENTRIES[1:])),
        ("one-zero-block", archive[:-_BLOCK]),
        ("three-zero-blocks", archive + bytes(_BLOCK)),
        ("no-checksum", archive[:148] + b"000000\0 " + archive[156:]),
        ("no-archive", b"no archive"),
    ):
        yield _case(f"archive-{slug}", _seal(tar), Reason.BROKER_FORMAT)
    yield _case("archive-above-its-size", _seal(archive), Reason.BROKER_FORMAT, max_bytes=512)


_AT: Final = int(NOW.timestamp())
_WALL: Final = 600


def _lease(number: int) -> str:
    return drawn(f"lease {number}", 16).hex()


def _open(at: int, number: int, *, session: str = "one") -> dict[str, Any]:
    return {
        "do": "open",
        "at": _AT + at,
        "session": drawn(f"session {session}").hex(),
        "wall_seconds": _WALL,
        "lease": _lease(number),
    }


def _save(at: int, number: int, counter: int, *, content: str = "") -> dict[str, Any]:
    digest = drawn(f"sealed {counter} {content}").hex()
    return {
        "do": "save",
        "at": _AT + at,
        "lease": _lease(number),
        "counter": counter,
        "digest": digest,
        "bytes": 1024,
    }


def _close(at: int, number: int) -> dict[str, Any]:
    return {"do": "close", "at": _AT + at, "lease": _lease(number)}


def _leases() -> Iterator[Candidate]:
    end = _WALL + GRACE_SECONDS
    opened, saved = _open(0, 1), _save(9, 1, 1)
    second = _save(20, 2, 2)
    again = _open(10, 2, session="two")
    for slug, steps, last in (
        ("saved-twice-over", [opened, saved, again, second], second),
        ("answer-of-a-save-lost", [opened, saved, _save(10, 1, 1)], saved),
        # The same session is given its lease again: the id that it brings is not taken.
        ("answer-of-an-opening-lost", [opened, _open(5, 2), saved], saved),
        ("saved-in-the-last-second", [opened, _save(end - 1, 1, 1)], saved),
    ):
        claims = {"counter": last["counter"], "digest": last["digest"]}
        yield make("lease", f"lease-{slug}", steps=steps, claims=claims)
    none = {"counter": 0, "digest": NO_STATE.hex()}
    for slug, steps in (
        ("given-back", [opened, _close(9, 1), again]),
        ("over-by-its-time", [opened, _open(end, 2, session="two")]),
    ):
        yield make("lease", f"lease-{slug}", steps=steps, claims=none)
    for slug, steps, reason in (
        ("of-another-session", [opened, again], Reason.STATE_IN_USE),
        ("one-second-before-its-end", [opened, _open(end - 1, 2, session="two")],
         Reason.STATE_IN_USE),
        ("used-twice", [opened, saved, _save(10, 1, 2)], Reason.STATE_FORK),
        ("used-twice-for-one-number", [opened, saved, _save(10, 1, 1, content="other")],
         Reason.STATE_FORK),
        ("that-is-over", [opened, _save(end, 1, 1)], Reason.STATE_FORK),
        ("that-was-given-back", [opened, _close(5, 1), saved], Reason.STATE_FORK),
        ("of-somebody-else", [opened, _save(9, 2, 1)], Reason.STATE_FORK),
        ("and-a-number-left-out", [opened, _save(9, 1, 2)], Reason.STATE_FORK),
        ("and-the-number-before", [opened, saved, again, _save(20, 2, 1)], Reason.STATE_FORK),
        ("saved-too-late-after-another", [opened, _open(end, 2, session="two"),
         _save(end + 1, 1, 1)], Reason.STATE_FORK),
        ("given-back-twice", [opened, _close(5, 1), _close(6, 1)], Reason.SESSION_UNKNOWN),
    ):  # fmt: skip
        yield make("lease", f"lease-{slug}", reason, steps=steps)


def _records() -> Iterator[Candidate]:
    master, kind, name, plaintext = drawn("master"), "secret", "acme/secret/dataset", b"a record"
    vault = Vault(master)
    row = vault.row(kind, name)
    sealed = vault.seal(kind, row, revision=3, salt=drawn("record salt"), plaintext=plaintext)
    honest = {"master": master.hex(), "record_kind": kind, "name": name, "revision": 3}
    claims = {"row": row, "plaintext": hashlib.sha256(plaintext).hexdigest()}
    files = {"sealed.bin": sealed}
    yield make("record", "record", None, files, **honest, claims=claims)
    for slug, changes in (
        ("of-another-revision", {"revision": 2}),
        ("of-another-kind", {"record_kind": "state"}),
        ("of-another-name", {"name": "acme/secret/other"}),
        ("of-another-store", {"master": drawn("another master").hex()}),
    ):
        yield make("record", f"record-{slug}", Reason.VAULT_FORMAT, files, **{**honest, **changes})
    flipped = {"sealed.bin": sealed[:-1] + bytes((sealed[-1] ^ 1,))}
    yield make("record", "record-changed", Reason.VAULT_FORMAT, flipped, **honest)


def candidates() -> Iterator[Candidate]:
    """Yield every candidate."""
    yield from _opened()
    yield from _archives()
    yield from _leases()
    yield from _records()
