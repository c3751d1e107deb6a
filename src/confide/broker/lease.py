"""The record of one sealed state, and who may change it when. Pure.

Clause: docs/protocols/state.md §4. Each decision takes the record there is and returns the next
one, or raises `ReleaseRefused`; whoever calls writes it in one step, only in the place of the
record that was decided on. From that alone follows: one lease at a time, no update lost or merged,
and a counter that never goes down. The sealed bytes themselves are never seen here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from confide.broker.state_wire import (
    ID_BYTES,
    MAX_STATE_BYTES,
    SECRET_BYTES,
    SaveHead,
)
from confide.errors import Reason, ReleaseRefused
from confide.rats import Finding, Status
from confide.wire.json import Members, jcs, parse_json
from confide.wire.release_receipt import NO_STATE

if TYPE_CHECKING:
    from datetime import datetime

    from confide.wire.json import JsonValue

__all__ = [
    "GRACE_SECONDS",
    "Blob",
    "Lease",
    "Opened",
    "StateRecord",
    "add_piece",
    "begin_save",
    "close_lease",
    "commit_save",
    "expire",
    "is_repeated",
    "open_lease",
    "parse_state_record",
    "refuse_state",
    "require_holder",
]

# From: state.md 4.4.
GRACE_SECONDS: Final = 120
_TYPE: Final = "confide/state-record/v1"
_WHAT: Final = "state record"
_REASON: Final = Reason.VAULT_FORMAT
_MAX_SESSION_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to save one state once. `until` is in Unix seconds."""

    id: bytes
    session: bytes
    until: int
    secret: bytes = field(repr=False)

    def over(self, now: datetime) -> bool:
        """Whether it ended by its time."""
        return now.timestamp() >= self.until


@dataclass(frozen=True, slots=True)
class Blob:
    """Where a sealed state is: `pieces` records under a random id, each written once."""

    id: bytes
    pieces: int


@dataclass(frozen=True, slots=True)
class StateRecord:
    """
    One state: its key, what was saved last, who may save next.

    `staged` is a save under way: its pieces are no state until it is committed. `spent` is the
    lease of the last save, kept so that a save whose answer was lost is known when it comes again.
    """

    key: bytes = field(repr=False)
    counter: int = 0
    digest: bytes = NO_STATE
    size: int = 0
    blob: Blob | None = None
    staged: Blob | None = None
    lease: Lease | None = None
    spent: Lease | None = None

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Every blob whose pieces are stored."""
        return tuple(blob for blob in (self.blob, self.staged) if blob is not None)

    def encode(self) -> bytes:
        """Return the record. Secret."""
        return jcs(
            {
                "type": _TYPE,
                "key": self.key.hex(),
                "counter": self.counter,
                "digest": self.digest.hex(),
                "size": self.size,
                "blob": _blob_document(self.blob),
                "staged": _blob_document(self.staged),
                "lease": _lease_document(self.lease),
                "spent": _lease_document(self.spent),
            }
        )


def _blob_document(blob: Blob | None) -> JsonValue:
    return None if blob is None else {"id": blob.id.hex(), "pieces": blob.pieces}


def _lease_document(lease: Lease | None) -> JsonValue:
    if lease is None:
        return None
    return {
        "id": lease.id.hex(),
        "secret": lease.secret.hex(),
        "session": lease.session.hex(),
        "until": lease.until,
    }


def parse_state_record(raw: bytes) -> StateRecord:
    """Parse what `StateRecord.encode` returned. Raises `FormatError` with VAULT_FORMAT."""
    top = Members(parse_json(raw, what=_WHAT, reason=_REASON), what=_WHAT, reason=_REASON)
    top.choice("type", (_TYPE,))
    record = StateRecord(
        key=top.hexes("key", SECRET_BYTES),
        counter=top.integer("counter"),
        digest=top.hexes("digest", 32),
        size=top.integer("size", high=MAX_STATE_BYTES),
        blob=_read_blob(top, "blob"),
        staged=_read_blob(top, "staged"),
        lease=_read_lease(top, "lease"),
        spent=_read_lease(top, "spent"),
    )
    top.end()
    none = record.counter == 0
    if {record.digest == NO_STATE, record.size == 0, record.blob is None} != {none}:
        top.refuse("a counter without a state, or a state without a counter")
    if record.blob is not None and record.blob.pieces == 0:
        top.refuse("a state without pieces")
    if record.spent is not None and (none or record.lease is not None):
        top.refuse("a spent lease where nothing was saved, or beside an open one")
    if record.staged is not None and record.lease is None:
        top.refuse("a save under way without a lease")
    return record


def _read_blob(top: Members, name: str) -> Blob | None:
    if top.null(name):
        return None
    members = top.members(name)
    # A piece has at least one byte.
    blob = Blob(members.hexes("id", ID_BYTES), members.integer("pieces", high=MAX_STATE_BYTES))
    members.end()
    return blob


def _read_lease(top: Members, name: str) -> Lease | None:
    if top.null(name):
        return None
    members = top.members(name)
    lease = Lease(
        id=members.hexes("id", ID_BYTES),
        session=members.hexes("session"),
        until=members.integer("until"),
        secret=members.hexes("secret", SECRET_BYTES),
    )
    members.end()
    if not 0 < len(lease.session) <= _MAX_SESSION_BYTES:
        members.refuse("a session without a name, or with a long one")
    return lease


def refuse_state(reason: Reason, detail: str, *, clause: str) -> ReleaseRefused:
    """Return the refusal of a decision about a state, in our own words."""
    where = f"docs/protocols/state.md#{clause}"
    finding = Finding(Status.FAIL, f"state/{clause}", where, "sealed state", detail, reason)
    return ReleaseRefused((finding,))


@dataclass(frozen=True, slots=True)
class Opened:
    """The record with the lease that a session now holds; `fresh` when it was not there before."""

    record: StateRecord
    lease: Lease
    fresh: bool


def open_lease(
    record: StateRecord | None,
    *,
    session: bytes,
    wall_seconds: int,
    now: datetime,
    key: bytes,
    lease_id: bytes,
    secret: bytes,
) -> Opened:
    """
    Give `session` the lease of a state (4.1, 4.4); `record` is None before the first opening.

    `key`, `lease_id` and `secret` are fresh random bytes; `key` is taken at the first opening
    alone. The session that holds the lease is given the same one, which ends when it would have.
    Raises `ReleaseRefused` with `state-in-use` while another session holds it.
    """
    if not 0 < len(session) <= _MAX_SESSION_BYTES or wall_seconds <= 0:
        raise ValueError("a lease needs a session and a time")
    current = expire(record or StateRecord(key), now=now)
    if current.lease is not None:
        if current.lease.session != session:
            raise refuse_state(Reason.STATE_IN_USE, "another run holds the lease", clause="4.1")
        return Opened(current, current.lease, fresh=False)
    until = int(now.timestamp()) + wall_seconds + GRACE_SECONDS
    lease = Lease(lease_id, session, until, secret)
    return Opened(replace(current, lease=lease, spent=None), lease, fresh=True)


def expire(record: StateRecord, *, now: datetime) -> StateRecord:
    """Return `record` without a lease that is over, and without the save it was making (4.4)."""
    if record.lease is None or not record.lease.over(now):
        return record
    return replace(record, lease=None, staged=None)


def require_holder(record: StateRecord | None, *, session: bytes, now: datetime) -> StateRecord:
    """Return `record` where `session` holds its lease; `session-unknown` otherwise (4.2)."""
    current = None if record is None else expire(record, now=now)
    if current is None or current.lease is None or current.lease.session != session:
        detail = "this session holds no lease on it"
        raise refuse_state(Reason.SESSION_UNKNOWN, detail, clause="4.2")
    return current


def is_repeated(record: StateRecord, head: SaveHead) -> bool:
    """Whether `head` is the save that was taken last, come again under its own lease (4.3)."""
    spent = record.spent
    if spent is None or spent.id != head.lease:
        return False
    return (head.counter, head.digest) == (record.counter, record.digest)


def begin_save(
    record: StateRecord, head: SaveHead, *, blob_id: bytes, now: datetime
) -> StateRecord:
    """
    Return `record` with a place for the pieces of a save; one that was under way loses its own.

    Does not check the MAC. Raises `ReleaseRefused` with `state-fork` for a save that is not under
    the open lease, late, or not the one that follows (4.3, 4.4).
    """
    return replace(_saveable(record, head, now=now), staged=Blob(blob_id, 0))


def add_piece(record: StateRecord) -> StateRecord:
    """Return `record` with one more piece of the save under way."""
    if record.staged is None:
        raise ValueError("no save is under way")
    return replace(record, staged=replace(record.staged, pieces=record.staged.pieces + 1))


def commit_save(record: StateRecord, head: SaveHead, *, size: int, now: datetime) -> StateRecord:
    """
    Return `record` with what was staged as its state, and the lease spent (4.3).

    The caller knows that the pieces, of `size` bytes, have the digest of `head`. Judged again at
    `now`: `ReleaseRefused` with `state-fork` where the lease ended meanwhile.
    """
    if record.staged is None or not 0 < size <= MAX_STATE_BYTES:
        raise ValueError("nothing is staged, or nothing of that size")
    current = _saveable(record, head, now=now)
    return StateRecord(
        key=current.key,
        counter=head.counter,
        digest=head.digest,
        size=size,
        blob=record.staged,
        spent=current.lease,
    )


def _saveable(record: StateRecord, head: SaveHead, *, now: datetime) -> StateRecord:
    current = expire(record, now=now)
    if current.lease is None:
        detail = "no lease is open: it ended, or was used"
    elif current.lease.id != head.lease:
        detail = "it is made under another lease than the open one"
    elif head.counter != current.counter + 1:
        detail = f"it does not follow counter {current.counter}"
    elif head.digest == NO_STATE:
        detail = "it has the digest of no state"
    else:
        return current
    raise refuse_state(Reason.STATE_FORK, detail, clause="4.3")


def close_lease(record: StateRecord, *, lease_id: bytes, now: datetime) -> StateRecord:
    """Return `record` with its lease given back; `session-unknown` where it is not that one."""
    current = expire(record, now=now)
    if current.lease is None or current.lease.id != lease_id:
        raise refuse_state(Reason.SESSION_UNKNOWN, "it is not the open lease", clause="4.2")
    return replace(current, lease=None, staged=None)
