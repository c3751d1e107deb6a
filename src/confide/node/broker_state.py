"""Sealed states at the broker: opened under one lease, saved whole or not at all. Blocking.

Clause: docs/protocols/state.md §4. The decisions are `broker.lease`'s; here they are written. A
record changes only in the place of the one that was decided on, so several processes may share a
store. Every piece of a save is written together with the record that names it: a save that is cut
leaves the old state whole, and nothing that the record does not know of.

What the store cannot tell (broker.md 7.5) is told only in part: 5.2 says which part.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Final

from confide.broker.lease import (
    StateRecord,
    add_piece,
    begin_save,
    close_lease,
    commit_save,
    expire,
    is_repeated,
    open_lease,
    parse_state_record,
    refuse_state,
    require_holder,
)
from confide.broker.state_wire import (
    CLOSE_LABEL,
    ID_BYTES,
    MAX_STATE_BYTES,
    SAVE_LABEL,
    SECRET_BYTES,
    OpenAnswer,
    SaveAnswer,
    lease_mac,
    parse_close,
    parse_head_size,
    parse_save_head,
)
from confide.errors import FormatError, Reason, ReleaseRefused, Unavailable
from confide.node.broker_store import Edit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from confide.broker.lease import Blob, Lease
    from confide.node.broker_store import SealedStore
    from confide.ports import Clock, Entropy

__all__ = ["PIECE_BYTES", "StateDesk", "StateOpening", "StoredBlob"]

PIECE_BYTES: Final = 1024 * 1024
_STATE: Final = "state"
_BLOB: Final = "state-blob"
# Another process was faster: that often in a row, somebody else should be served first.
_ATTEMPTS: Final = 8


@dataclass(frozen=True, slots=True)
class StateOpening:
    """An answer to give, and whether the lease in it was drawn for it."""

    answer: OpenAnswer
    fresh: bool


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A sealed state on its way out: its size, and its pieces, once."""

    size: int
    pieces: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class _Seen:
    """A record as it was read or written: its place, its revision (0: there is none)."""

    resource: str
    revision: int
    record: StateRecord | None


class StateDesk:
    """
    The states of one store; may be called from several threads.

    Every method raises `Unavailable`, `FormatError` with VAULT_FORMAT for a record that does not
    open, and `ReleaseRefused` with `state-rollback` for one that is older than one seen before.
    """

    def __init__(
        self, store: SealedStore, *, entropy: Entropy, clock: Clock, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self._store = store
        self._entropy = entropy
        self._clock = clock
        self._piece_bytes = piece_bytes
        # The newest that this process saw of each record: no store may show it an older one (5.2).
        self._newest: dict[str, tuple[int, bytes]] = {}
        self._lock = threading.Lock()

    def open(self, resource: str, *, session: bytes, wall_seconds: int) -> StateOpening:
        """
        Give `session` the lease of `resource`, beginning its state at the first opening (4.1).

        Establishes that what is stored is what was saved last, as far as 5.2 says. Raises
        `ReleaseRefused` with `state-in-use` or `state-rollback`.
        """
        for _ in range(_ATTEMPTS):
            seen = self._read(resource)
            opened = open_lease(
                seen.record,
                session=session,
                wall_seconds=wall_seconds,
                now=self._clock.now(),
                key=self._entropy.token(SECRET_BYTES),
                lease_id=self._entropy.token(ID_BYTES),
                secret=self._entropy.token(SECRET_BYTES),
            )
            if opened.fresh and not self._take(seen, opened.record):
                continue
            record, lease = opened.record, opened.lease
            answer = OpenAnswer(
                record.counter, record.digest, lease.id, lease.until, record.key, lease.secret
            )
            return StateOpening(answer, opened.fresh)
        raise _moving()

    def _take(self, seen: _Seen, record: StateRecord) -> bool:
        """Write the lease where the state is whole; False where another process was faster."""
        whole = self._is_whole(seen.resource, record)
        if not whole and self._read(seen.resource).revision == seen.revision:
            detail = "what is stored is not what was saved last"
            raise refuse_state(Reason.STATE_ROLLBACK, detail, clause="5.2")
        return whole and self._write(seen, record) is not None

    def blob(self, resource: str, *, session: bytes) -> StoredBlob:
        """
        Return the sealed state to the session that holds the lease, empty where there is none.

        `ReleaseRefused` with `session-unknown` for any other. The pieces raise when a save of
        somebody else removes them, which needs that the lease ended.
        """
        seen = self._read(resource)
        record = require_holder(seen.record, session=session, now=self._clock.now())
        return StoredBlob(record.size, self._pieces(resource, record.blob))

    def save(self, resource: str, body: IO[bytes], *, mac: bytes) -> SaveAnswer:
        """
        Save what `body` holds, if `mac` says that the lease's holder sent it (4.2, 4.3).

        Nothing but the length of the head is read before the MAC is known to be true, and nothing
        is written. The save that was taken last, sent again, is answered again. Raises
        `ReleaseRefused` with `state-fork`, and `FormatError` with BROKER_FORMAT.
        """
        seen = self._read(resource)
        record, holder = _holder(seen.record)
        raw, digest, size = _authentic(body, holder, mac)
        head = parse_save_head(raw)
        if digest != head.digest or not 0 < size <= MAX_STATE_BYTES:
            raise FormatError(
                "save body: the state is not of that digest, or of no size a state has",
                reason=Reason.BROKER_FORMAT,
                clause="docs/protocols/state.md#4.2",
            )
        if is_repeated(record, head):
            return SaveAnswer(record.counter, record.digest)
        blob_id = self._entropy.token(ID_BYTES)
        record = begin_save(record, head, blob_id=blob_id, now=self._clock.now())
        seen = self._replace(seen, record)
        seen, record = self._stage(seen, record, body, skip=4 + len(raw))
        self._replace(seen, commit_save(record, head, size=size, now=self._clock.now()))
        return SaveAnswer(head.counter, head.digest)

    def _stage(
        self, seen: _Seen, record: StateRecord, body: IO[bytes], *, skip: int
    ) -> tuple[_Seen, StateRecord]:
        body.seek(skip)
        while piece := body.read(self._piece_bytes):
            record = add_piece(record)
            blob = record.staged
            if blob is None:
                raise ValueError("a piece of nothing")
            name = _piece_name(seen.resource, blob, blob.pieces - 1)
            seen = self._replace(seen, record, Edit(_BLOB, name, 0, piece))
        return seen, record

    def close(self, resource: str, body: bytes, *, mac: bytes) -> None:
        """Give the lease back that `body` names (4.2). `session-unknown` for any other."""
        for _ in range(_ATTEMPTS):
            seen = self._read(resource)
            lease = None if seen.record is None else seen.record.lease
            if seen.record is None or lease is None:
                raise refuse_state(Reason.SESSION_UNKNOWN, "no lease is open", clause="4.2")
            if not hmac.compare_digest(lease_mac(lease.secret, CLOSE_LABEL, [body]), mac):
                detail = "the MAC is not that of the open lease"
                raise refuse_state(Reason.SESSION_UNKNOWN, detail, clause="4.2")
            now = self._clock.now()
            closed = close_lease(seen.record, lease_id=parse_close(body), now=now)
            if self._write(seen, closed) is not None:
                return
        raise _moving()

    def give_back(self, resource: str, *, lease: bytes) -> None:
        """End a lease that was drawn and never told to anybody; nothing where it is gone."""
        for _ in range(_ATTEMPTS):
            seen = self._read(resource)
            record = seen.record
            if record is None or record.lease is None or record.lease.id != lease:
                return
            if self._write(seen, replace(record, lease=None, staged=None)) is not None:
                return
        raise _moving()

    def tidy(self) -> int:
        """Remove what cut saves left under leases that are over; return how many. At a start."""
        tidied = 0
        for entry in self._store.entries(_STATE):
            seen = self._read(entry.name)
            if seen.record is None:
                continue
            current = expire(seen.record, now=self._clock.now())
            # Where another process was faster, it did the same or more.
            if current != seen.record and self._write(seen, current) is not None:
                tidied += 1
        return tidied

    def _read(self, resource: str) -> _Seen:
        # Taken before the store is asked: whatever it says then may not be older.
        with self._lock:
            newest = self._newest.get(resource)
        entry = self._store.get(_STATE, resource)
        revision, value = (0, b"") if entry is None else (entry.revision, entry.value)
        found = (revision, hashlib.sha256(value).digest())
        if newest is not None and (
            found[0] < newest[0] or (found[0] == newest[0] and found[1] != newest[1])
        ):
            detail = f"a record of revision {found[0]} after one of revision {newest[0]}"
            raise refuse_state(Reason.STATE_ROLLBACK, detail, clause="5.2")
        if entry is None:
            return _Seen(resource, 0, None)
        self._remember(resource, found)
        return _Seen(resource, revision, parse_state_record(value))

    def _remember(self, resource: str, found: tuple[int, bytes]) -> None:
        with self._lock:
            newest = self._newest.get(resource)
            if newest is None or newest[0] < found[0]:
                self._newest[resource] = found

    def _write(self, seen: _Seen, record: StateRecord, *more: Edit) -> _Seen | None:
        """Put `record` in the place of the one that was seen; None where that one has moved."""
        value = record.encode()
        gone = _piece_names(seen.resource, seen.record) - _piece_names(seen.resource, record)
        edits = [
            Edit(_STATE, seen.resource, seen.revision, value),
            *more,
            # A piece is written once: its revision is 1.
            *(Edit(_BLOB, name, 1, None) for name in sorted(gone)),
        ]
        if not self._store.apply(edits):
            return None
        written = (seen.revision + 1, hashlib.sha256(value).digest())
        self._remember(seen.resource, written)
        return _Seen(seen.resource, written[0], record)

    def _replace(self, seen: _Seen, record: StateRecord, *more: Edit) -> _Seen:
        """Do as `_write` does; `state-fork` where somebody else changed the record meanwhile."""
        written = self._write(seen, record, *more)
        if written is None:
            detail = "the state changed while it was saved"
            raise refuse_state(Reason.STATE_FORK, detail, clause="4.3")
        return written

    def _is_whole(self, resource: str, record: StateRecord) -> bool:
        digest, size = hashlib.sha256(), 0
        try:
            for piece in self._pieces(resource, record.blob):
                digest.update(piece)
                size += len(piece)
        except FormatError:
            return False
        return record.blob is None or (digest.digest(), size) == (record.digest, record.size)

    def _pieces(self, resource: str, blob: Blob | None) -> Iterator[bytes]:
        if blob is None:
            return
        for number in range(blob.pieces):
            entry = self._store.get(_BLOB, _piece_name(resource, blob, number))
            if entry is None:
                raise FormatError(
                    f"sealed state: piece {number} of {blob.pieces} is missing",
                    reason=Reason.VAULT_FORMAT,
                    clause="docs/protocols/state.md#5.2",
                )
            yield entry.value


def _piece_name(resource: str, blob: Blob, number: int) -> str:
    return f"{resource}/{blob.id.hex()}/{number}"


def _piece_names(resource: str, record: StateRecord | None) -> set[str]:
    blobs: Sequence[Blob] = () if record is None else record.blobs
    return {_piece_name(resource, blob, n) for blob in blobs for n in range(blob.pieces)}


def _holder(record: StateRecord | None) -> tuple[StateRecord, Lease]:
    """Return the record and whose save it takes: the lease that is open, or the one spent last."""
    lease = None if record is None else record.lease or record.spent
    if record is None or lease is None:
        raise _unknown_holder()
    return record, lease


def _authentic(body: IO[bytes], holder: Lease, mac: bytes) -> tuple[bytes, bytes, int]:
    """Return the head of a body that `holder` sent, and digest and size of what follows it."""
    body.seek(0)
    prefix = body.read(4)
    head = body.read(parse_head_size(prefix))
    digest, size = hashlib.sha256(), 0

    def pieces() -> Iterator[bytes]:
        nonlocal size
        yield prefix
        yield head
        while piece := body.read(PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
            yield piece

    if not hmac.compare_digest(lease_mac(holder.secret, SAVE_LABEL, pieces()), mac):
        raise _unknown_holder()
    return head, digest.digest(), size


def _unknown_holder() -> ReleaseRefused:
    detail = "the MAC is not that of the open lease"
    return refuse_state(Reason.STATE_FORK, detail, clause="4.3")


def _moving() -> Unavailable:
    return Unavailable("the state is changed by others at this moment; try again")
