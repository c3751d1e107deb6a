"""Rows on their way to a training node: read, committed to, sent; in parts where there are many.

docs/protocols/training-files.md §2 and §3. A file is read in pieces, whatever its size. What the
node says of a file is compared with the commitment that was made here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from confide.client.train_node import NodeRefused, Outgoing, words_of_the_node
from confide.errors import ConfigurationError, DatasetRejected, Reason, Unavailable
from confide.rats import Finding, Status
from confide.training.dataset import DatasetTree, RowSalts
from confide.training.rows import RowReader, require_rows
from confide.wire.json import Members

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

    from confide.client.train_folder import OwnedFile
    from confide.client.train_node import TrainingNode
    from confide.ports import Entropy
    from confide.training.dataset import Commitment
    from confide.training.rows import Row, RowError
    from confide.wire.json import JsonValue

__all__ = [
    "PartSizes",
    "claim_of",
    "commit_file",
    "find_upload",
    "send_file",
    "send_state",
    "send_upload",
]

_PIECE: Final = 256 * 1024
_MAX_ID: Final = 128
_MAX_PARTS: Final = 10_000
_TYPE: Final = "application/jsonl"
# Says nothing of what the owner calls the file.
_FILENAME: Final = "rows.jsonl"
_STATE: Final = "fine-tune-state"
_CLAUSE: Final = "docs/protocols/training-files.md#2.2"


@dataclass(frozen=True, slots=True)
class PartSizes:
    """From how many bytes on a file is sent in parts, and how large they are at least."""

    whole_bytes: int = 32 * 1024 * 1024
    part_bytes: int = 32 * 1024 * 1024
    max_parts: int = 10_000

    def cut(self, size: int) -> list[tuple[int, int]]:
        """Return (start, length) of every part of a file of `size` bytes."""
        length = max(self.part_bytes, -(-size // self.max_parts))
        return [(at, min(length, size - at)) for at in range(0, size, length)]


def commit_file(
    path: Path, salt: bytes, on_read: Callable[[int, int], None]
) -> tuple[int, Commitment]:
    """
    Read every row of `path`; return its size and the commitment under `salt`.

    `on_read` gets bytes and rows so far. Raises `RowError` that names line and place,
    `ConfigurationError` where the file cannot be read.
    """
    reader, tree = RowReader(), DatasetTree(RowSalts(salt))
    size = rows = 0

    def add(found: Iterator[Row | RowError]) -> None:
        nonlocal rows
        for row in require_rows(found):
            tree.add(row)
            rows += 1

    for piece in _pieces(path, 0, None):
        size += len(piece)
        add(reader.feed(piece))
        on_read(size, rows)
    add(reader.end())
    return size, tree.commitment()


def _pieces(path: Path, start: int, length: int | None) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            left = length
            while left is None or left > 0:
                piece = file.read(_PIECE if left is None else min(_PIECE, left))
                if not piece:
                    break
                left = None if left is None else left - len(piece)
                yield piece
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if left:
        raise Unavailable(f"{path} became shorter while it was sent")


def _form(
    path: Path,
    stretch: tuple[int, int | None],
    *,
    mark: str,
    fields: dict[str, str],
    file_field: str,
    on_sent: Callable[[int], None],
) -> Outgoing:
    """Return a form: fields, then the bytes of the stretch, read as they are sent."""
    disposition = "content-disposition: form-data; name="
    head = "".join(
        f'--{mark}\r\n{disposition}"{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    )
    head += f'--{mark}\r\n{disposition}"{file_field}"; filename="{_FILENAME}"\r\n'
    head += f"content-type: {_TYPE}\r\n\r\n"

    async def body() -> AsyncIterator[bytes]:
        yield head.encode()
        sent = 0
        for piece in _pieces(path, *stretch):
            yield piece
            sent += len(piece)
            on_sent(sent)
        yield f"\r\n--{mark}--\r\n".encode()

    return Outgoing(f"multipart/form-data; boundary={mark}", body)


async def send_file(
    node: TrainingNode,
    owned: OwnedFile,
    salt: bytes,
    *,
    entropy: Entropy,
    on_sent: Callable[[int], None],
) -> str:
    """Send a file in one form; return its id. Raises as `TrainingNode.send`."""
    fields = {"purpose": "fine-tune", **claim_of(owned.commitment, salt)}
    form = _form(
        owned.path,
        (0, owned.size),
        mark=_mark(entropy),
        fields=fields,
        file_field="file",
        on_sent=on_sent,
    )
    return _accepted(await node.send("/v1/files", form), owned.commitment)


async def send_state(node: TrainingNode, path: Path, *, sizes: PartSizes, entropy: Entropy) -> str:
    """
    Send what is kept as it is (`fine-tune-state`); return its id. Raises as `TrainingNode.send`.

    In one form, or in parts where it is large: one request carries at most 1 GiB (channel.md 2.6).
    """
    size = _size(path)
    if size > sizes.whole_bytes:
        upload = await _begin_upload(node, {"bytes": size, "purpose": _STATE})
        parts = _Sending(node, path, size, sizes, entropy, lambda _sent: None)
        file = await parts.send(upload)
        with words_of_the_node():
            return file.text("id", max_chars=_MAX_ID)
    form = _form(
        path,
        (0, None),
        mark=_mark(entropy),
        fields={"purpose": _STATE},
        file_field="file",
        on_sent=lambda _sent: None,
    )
    made = await node.send("/v1/files", form)
    with words_of_the_node():
        return made.text("id", max_chars=_MAX_ID)


async def find_upload(node: TrainingNode, owned: OwnedFile, salt: bytes) -> str:
    """
    Return the id of the upload of this file: the one that was begun, or a new one.

    Raises as `TrainingNode.ask`.
    """
    if owned.upload is not None:
        try:
            found = await node.ask("GET", f"/v1/uploads/{owned.upload}")
            with words_of_the_node():
                status = found.text("status")
        except NodeRefused as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
        else:
            if status != "cancelled":
                return owned.upload
    claim = claim_of(owned.commitment, salt)
    return await _begin_upload(node, {"bytes": owned.size, "purpose": "fine-tune", **claim})


async def _begin_upload(node: TrainingNode, what: Mapping[str, JsonValue]) -> str:
    asked: JsonValue = {"filename": _FILENAME, "mime_type": _TYPE, **what}
    made = await node.ask("POST", "/v1/uploads", asked)
    with words_of_the_node():
        return made.text("id", max_chars=_MAX_ID)


async def send_upload(
    node: TrainingNode,
    owned: OwnedFile,
    upload: str,
    *,
    sizes: PartSizes,
    entropy: Entropy,
    on_sent: Callable[[int], None],
) -> str:
    """
    Send the parts that the node does not have yet, complete the upload, return the file's id.

    A part counts where its SHA-256 is that of the bytes here. Raises as `TrainingNode.send`;
    what was sent until then need not be sent again.
    """
    sending = _Sending(node, owned.path, owned.size, sizes, entropy, on_sent)
    return _accepted(await sending.send(upload), owned.commitment)


@dataclass(frozen=True, slots=True)
class _Sending:
    """A file that goes in parts; `size` are its bytes."""

    node: TrainingNode
    path: Path
    size: int
    sizes: PartSizes
    entropy: Entropy
    on_sent: Callable[[int], None]

    async def send(self, upload: str) -> Members:
        """Send the parts that the node does not have; return the file that they became."""
        ids: list[JsonValue] = []
        there = _Parts(await self.node.ask("GET", f"/v1/uploads/{upload}"))
        for start, length in self.sizes.cut(self.size) if there.pending else ():
            known = there.take(length, _digest(self.path, start, length))
            ids.append(await self._part(upload, start, length) if known is None else known)
            self.on_sent(start + length)
        done = await self.node.ask("POST", f"/v1/uploads/{upload}/complete", {"part_ids": ids})
        with words_of_the_node():
            return done.members("file")

    async def _part(self, upload: str, start: int, length: int) -> str:
        form = _form(
            self.path,
            (start, length),
            mark=_mark(self.entropy),
            fields={},
            file_field="data",
            on_sent=lambda sent: self.on_sent(start + sent),
        )
        made = await self.node.send(f"/v1/uploads/{upload}/parts", form)
        with words_of_the_node():
            return made.text("id", max_chars=_MAX_ID)


def _mark(entropy: Entropy) -> str:
    return f"confide-{entropy.token(16).hex()}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _digest(path: Path, start: int, length: int) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(path, start, length):
        digest.update(piece)
    return digest.hexdigest()


class _Parts:
    """The parts of an upload that the node has."""

    def __init__(self, upload: Members) -> None:
        self._ids: dict[tuple[int, str], list[str]] = {}
        with words_of_the_node():
            self.pending = upload.text("status") == "pending"
            for value in upload.items("parts", max_items=_MAX_PARTS):
                part = Members(value, what="part of an upload", reason=Reason.REQUEST_FORMAT)
                key = (part.integer("bytes"), part.text("sha256"))
                self._ids.setdefault(key, []).append(part.text("id", max_chars=_MAX_ID))

    def take(self, length: int, digest: str) -> str | None:
        """Return the id of a part with these bytes, once; None where there is none (left)."""
        known = self._ids.get((length, digest))
        return known.pop(0) if known else None


def claim_of(commitment: Commitment, salt: bytes) -> dict[str, str]:
    """Return what says to a node what was committed to: the salt goes sealed, with the rows."""
    return {"dataset": commitment.digest.hex(), "dataset_salt": salt.hex()}


def _accepted(file: Members, commitment: Commitment) -> str:
    """Return the id of a file that the node committed to as we did."""
    with words_of_the_node():
        dataset = file.members("dataset")
        found, file_id = dataset.hexes("commitment", 32), file.text("id", max_chars=_MAX_ID)
    if found != commitment.digest:
        detail = "the node read other rows than were committed to here"
        finding = Finding(Status.FAIL, "files/1", _CLAUSE, "rows", detail, Reason.DATASET_MISMATCH)
        raise DatasetRejected((finding,))
    return file_id
