"""What a training node keeps of files: rows and leaves sealed on disk, all else in memory.

docs/protocols/training-files.md §2, §4. `DatasetWriter` blocks and is for a worker thread;
`FileTable` belongs to the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from confide.crypto.merkle import Frontier
from confide.errors import Unavailable
from confide.inference.plan import refuse
from confide.training.dataset import DatasetTree, RowSalts, require_commitment
from confide.training.handover import MAX_CHECKPOINT_BYTES
from confide.training.inclusion import DatasetProof, PathRecorder
from confide.training.rows import RowReader, require_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from confide.adapters.sealed_store import SealedStore
    from confide.training.dataset import Commitment
    from confide.training.rows import Row, RowError
    from confide.wire.json import JsonValue

__all__ = [
    "PURPOSE",
    "RESULTS",
    "STATE",
    "DatasetClaim",
    "DatasetWriter",
    "FileLimits",
    "FileTable",
    "KeptFile",
    "ResultFile",
    "StateWriter",
    "StoredFile",
    "file_document",
    "prove_leaf",
    "read_file",
    "remove_file",
    "remove_kept",
    "result_name",
    "rows_name",
]

PURPOSE: Final = "fine-tune"
RESULTS: Final = "fine-tune-results"
# From: docs/protocols/training-node.md 7.5.
STATE: Final = "fine-tune-state"
_LEAF_BYTES: Final = 32
_PIECE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Every cap of training-files.md §5, in bytes and counts."""

    max_form_bytes: int = 1 << 30
    max_file_bytes: int = 8 << 30
    max_state_bytes: int = MAX_CHECKPOINT_BYTES
    max_total_bytes: int = 64 << 30
    max_files: int = 10_000
    max_files_each: int = 1000
    max_uploads: int = 1000
    max_uploads_each: int = 64
    max_parts: int = 10_000
    upload_seconds: int = 3600
    concurrent: int = 8


@dataclass(frozen=True, slots=True)
class DatasetClaim:
    """What a client committed to: the digest, None where it said nothing, and the salt (2.1)."""

    commitment: bytes | None
    salt: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One data set that is here, whole and committed to."""

    id: str
    owner: str
    filename: str = field(repr=False)
    size: int
    created_at: int
    expires_at: int | None
    commitment: Commitment
    claim: DatasetClaim


@dataclass(frozen=True, slots=True)
class ResultFile:
    """
    What a job left for its owner, sealed or public; with purpose `STATE` what its owner brought.

    `place` is where a sealed checkpoint lies; what has none is in the store.
    """

    id: str
    owner: str
    filename: str
    size: int
    created_at: int
    place: Path | None = None
    expires_at: int | None = None
    purpose: str = RESULTS


KeptFile: TypeAlias = "StoredFile | ResultFile"


def file_document(file: KeptFile) -> dict[str, JsonValue]:
    """Return the file object (2.4), for its owner: with the salt where the node drew it."""
    document: dict[str, JsonValue] = {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": PURPOSE if isinstance(file, StoredFile) else file.purpose,
        "status": "processed",
        "status_details": None,
    }
    return document | ({"dataset": _dataset(file)} if isinstance(file, StoredFile) else {})


def _dataset(file: StoredFile) -> dict[str, JsonValue]:
    by_client = file.claim.commitment is not None
    dataset: dict[str, JsonValue] = {
        "commitment": file.commitment.digest.hex(),
        "kind": file.commitment.kind,
        "rows": file.commitment.rows,
        "root": file.commitment.root.hex(),
        "committed_by": "client" if by_client else "node",
    }
    if not by_client:
        dataset["salt"] = file.claim.salt.hex()
    return dataset


def rows_name(file_id: str) -> str:
    """Return the name of the sealed bytes of a file in the store."""
    return f"{file_id}-rows"


def result_name(file_id: str) -> str:
    """Return the name of a result in the store."""
    return f"{file_id}-result"


def read_file(store: SealedStore, file: KeptFile, *, start: int = 0) -> Iterator[bytes]:
    """
    Yield the bytes of `file` from `start` on, as its owner sent or gets them. Blocks.

    Raises `Unavailable`.
    """
    if isinstance(file, StoredFile):
        return store.read(rows_name(file.id), start=start)
    if file.place is None:
        return store.read(result_name(file.id), start=start)
    return _read_place(file.place, start)


def _read_place(place: Path, start: int) -> Iterator[bytes]:
    try:
        with place.open("rb") as handle:
            handle.seek(start)
            while piece := handle.read(_PIECE_BYTES):
                yield piece
    except OSError as error:
        raise Unavailable(f"a sealed checkpoint cannot be read: {error.strerror}") from error


def remove_kept(store: SealedStore, file: KeptFile) -> None:
    """Remove what is on the disk of `file`. Blocks. Raises `Unavailable`."""
    if isinstance(file, StoredFile):
        remove_file(store, file.id)
    elif file.place is None:
        store.remove(result_name(file.id))
    else:
        try:
            file.place.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"a checkpoint cannot be removed: {error.strerror}") from error


def _leaves_name(file_id: str) -> str:
    return f"{file_id}-leaves"


class DatasetWriter:
    """The bytes of one data set as they come: read, committed to and sealed. Blocks."""

    def __init__(self, store: SealedStore, file_id: str, salt: bytes) -> None:
        """Begin. Raises `Unavailable`."""
        self.id = file_id
        self._store = store
        self._reader = RowReader()
        self._tree = DatasetTree(RowSalts(salt))
        self._rows = store.begin(rows_name(file_id))
        try:
            self._leaves = store.begin(_leaves_name(file_id))
        except Unavailable:
            self._rows.abort()
            raise

    @property
    def size(self) -> int:
        """How many bytes came."""
        return self._rows.size

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises `RowError` and `Unavailable`; `abort` after both."""
        self._rows.write(data)
        self._append(self._reader.feed(data))

    def _append(self, found: Iterator[Row | RowError]) -> None:
        leaves = [self._tree.add(row) for row in require_rows(found)]
        self._leaves.write(b"".join(leaves))

    def finish(self, claim: DatasetClaim) -> Commitment:
        """
        Keep the file, if it is what the client committed to (2.2).

        Raises `RowError`, `DatasetRejected`, `Unavailable`; `abort` after each.
        """
        self._append(self._reader.end())
        commitment = self._tree.commitment()
        if claim.commitment is not None:
            require_commitment(commitment, claim.commitment)
        self._leaves.commit()
        self._rows.commit()
        return commitment

    def abort(self) -> None:
        """Leave nothing behind; not to be called after `finish` returned."""
        self._rows.abort()
        self._leaves.abort()
        remove_file(self._store, self.id)


class StateWriter:
    """What an owner brings of a job elsewhere, as it comes: kept as it is. Blocks."""

    def __init__(self, store: SealedStore, file_id: str) -> None:
        """Begin. Raises `Unavailable`."""
        self.id = file_id
        self._store = store
        self._writer = store.begin(result_name(file_id))

    @property
    def size(self) -> int:
        """How many bytes came."""
        return self._writer.size

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises `Unavailable`; `abort` after it."""
        self._writer.write(data)

    def finish(self) -> None:
        """Keep the file. Raises `Unavailable`; `abort` after it."""
        self._writer.commit()

    def abort(self) -> None:
        """Leave nothing behind; not to be called after `finish` returned."""
        self._writer.abort()
        self._store.remove(result_name(self.id))


def remove_file(store: SealedStore, file_id: str) -> None:
    """Remove what is on the disk of a file. Blocks. Raises `Unavailable`."""
    store.remove(rows_name(file_id))
    store.remove(_leaves_name(file_id))


def prove_leaf(store: SealedStore, file: StoredFile, index: int) -> DatasetProof:
    """Return the closed proof of one row (3.3), out of the stored leaves. Blocks."""
    path, frontier, held = PathRecorder(index), Frontier(), b""
    for piece in store.read(_leaves_name(file.id)):
        held += piece
        whole = len(held) - len(held) % _LEAF_BYTES
        for at in range(0, whole, _LEAF_BYTES):
            path.take(frontier.size, frontier.append(held[at : at + _LEAF_BYTES]))
        held = held[whole:]
    path.end(frontier)
    return DatasetProof(file.commitment, index, path.leaf, path.path(), None)


class FileTable:
    """The files of every owner. An owner sees no other's, not even that they are there (1.1)."""

    def __init__(self, limits: FileLimits) -> None:
        self._limits = limits
        self._files: dict[str, KeptFile] = {}

    def add(self, file: KeptFile) -> None:
        """Keep `file`."""
        self._files[file.id] = file

    def find_data(self, owner: str, file_id: str, *, param: str = "file_id") -> StoredFile:
        """Return a data set of `owner`; `RequestRefused` for what is none."""
        found = self.find(owner, file_id, param=param)
        if not isinstance(found, StoredFile):
            refuse("invalid_file", f"The purpose of this file is {found.purpose}.", param=param)
        return found

    def find_state(self, owner: str, file_id: str, *, param: str) -> ResultFile:
        """Return what `owner` brought of a job elsewhere; `RequestRefused` for what is none."""
        found = self.find(owner, file_id, param=param)
        if not isinstance(found, ResultFile) or found.purpose != STATE:
            refuse("invalid_file", f"The purpose of this file is not {STATE}.", param=param)
        return found

    def find(self, owner: str, file_id: str, *, param: str = "file_id") -> KeptFile:
        """Return a file of `owner`; `RequestRefused` (404) where it has none of this id."""
        found = self._files.get(file_id)
        if found is None or found.owner != owner:
            refuse("not_found", "No such file.", param=param, status=404)
        return found

    def forget(self, file: KeptFile) -> None:
        """Forget `file`; without effect where it is forgotten."""
        self._files.pop(file.id, None)

    def take_expired(self, now: int) -> list[KeptFile]:
        """Forget the files whose time has come, and return them."""
        over = [f for f in self._files.values() if f.expires_at is not None and f.expires_at <= now]
        for file in over:
            del self._files[file.id]
        return over

    def of(self, owner: str) -> list[KeptFile]:
        """Return the files of `owner`, oldest first."""
        return [file for file in self._files.values() if file.owner == owner]

    def room(self, owner: str, purpose: str = PURPOSE) -> int:
        """Return how many bytes a new file of `owner` may have; `RequestRefused` for none."""
        limits = self._limits
        if len(self.of(owner)) >= limits.max_files_each:
            most = f"At most {limits.max_files_each} files are kept for you; delete some."
            refuse("too_many_files", most, status=429)
        left = limits.max_total_bytes - sum(file.size for file in self._files.values())
        if left <= 0 or len(self._files) >= limits.max_files:
            refuse("too_many_files", "This node has no room for more files.", status=429)
        return min(limits.max_state_bytes if purpose == STATE else limits.max_file_bytes, left)
