"""Uploads in parts, that can be resumed: docs/protocols/training-files.md 3.4 to 3.6.

A part is stored sealed, whole or not at all. When an upload is completed its parts are read in the
order that the client names, and become one file.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from starlette.responses import JSONResponse

from confide.errors import Unavailable
from confide.inference.plan import refuse
from confide.node.asgi import content_type_of
from confide.node.train_forms import (
    Asked,
    FileForm,
    claim_of,
    read_document,
    receive_form,
    require_filename,
    require_lifetime,
    require_no_dataset,
    require_purpose,
)
from confide.node.train_store import PURPOSE, STATE, DatasetWriter, StateWriter, file_document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from confide.adapters.sealed_store import SealedStore, SealedWriter
    from confide.node.train_files import Handler, TrainFiles
    from confide.node.train_forms import Sink
    from confide.node.train_store import KeptFile
    from confide.wire.json import JsonValue, Members

__all__ = ["UploadRoutes"]

_Status: TypeAlias = Literal["pending", "completed", "cancelled"]
_MAX_TYPE_CHARS: Final = 255


@dataclass(frozen=True, slots=True)
class _Part:
    id: str
    name: str
    size: int
    sha256: str
    created_at: int


@dataclass(slots=True)
class _Upload:
    """One upload; what it became stays known until it expires."""

    id: str
    owner: str
    filename: str = field(repr=False)
    size: int
    created_at: int
    expires_at: int
    asked: Asked
    purpose: str = PURPOSE
    status: _Status = "pending"
    parts: dict[str, _Part] = field(default_factory=dict)
    file: KeptFile | None = None
    changing: bool = False

    @property
    def ended(self) -> bool:
        """Whether no part comes any more."""
        return self.status != "pending"

    @contextmanager
    def change(self) -> Iterator[None]:
        """Let nobody else change the upload meanwhile; refuse where somebody does (3.6)."""
        if self.ended:
            refuse("invalid_upload_status", f"The upload is {self.status}.")
        if self.changing:
            refuse("upload_in_use", "The upload is being completed.", status=409)
        self.changing = True
        try:
            yield
        finally:
            self.changing = False


class _PartSink:
    """The bytes of one part on their way to the disk. Blocks."""

    def __init__(self, writer: SealedWriter) -> None:
        self._writer = writer
        self.sha256 = hashlib.sha256()

    @property
    def size(self) -> int:
        """How many bytes came."""
        return self._writer.size

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self.sha256.update(data)
        self._writer.write(data)

    def commit(self) -> None:
        """Keep the part."""
        self._writer.commit()

    def abort(self) -> None:
        """Leave nothing behind."""
        self._writer.abort()


class UploadRoutes:
    """The handlers of `/v1/uploads`, beside those of `TrainFiles`."""

    def __init__(self, files: TrainFiles) -> None:
        self._files = files
        self._uploads: dict[str, _Upload] = {}

    def routes(self) -> tuple[tuple[str, str, Handler], ...]:
        """Return path, method and handler of each."""
        one = "/v1/uploads/{id}"
        return (
            ("/v1/uploads", "POST", self._create),
            (one, "GET", self._retrieve),
            (f"{one}/parts", "POST", self._add_part),
            (f"{one}/complete", "POST", self._complete),
            (f"{one}/cancel", "POST", self._cancel),
        )

    async def sweep(self, now: int) -> None:
        """Let go of uploads whose time is over, and of their parts."""
        over = [u for u in self._uploads.values() if u.expires_at <= now and not u.changing]
        for upload in over:
            del self._uploads[upload.id]
            upload.status = "cancelled"
            with suppress(Unavailable):
                await self._drop_parts(upload)

    def _find(self, request: Request, owner: str) -> _Upload:
        upload = self._uploads.get(request.path_params["id"])
        if upload is None or upload.owner != owner:
            refuse("not_found", "No such upload.", param="upload_id", status=404)
        return upload

    async def _create(self, request: Request, owner: str) -> Response:
        files = self._files
        members = await read_document(request)
        size = members.integer("bytes", low=1)
        filename = require_filename(members.text("filename"))
        members.text("mime_type", max_chars=_MAX_TYPE_CHARS)
        purpose = members.text("purpose")
        lifetime = _lifetime(members)
        said = _optional(members, "dataset"), _optional(members, "dataset_salt")
        if purpose == STATE:
            require_no_dataset(said)
        else:
            require_purpose(purpose)
        claim = claim_of(*said, files.entropy)
        members.end()
        self._require_room(owner, size, purpose)
        now = files.now()
        upload = _Upload(
            id=f"upload_{files.entropy.token(12).hex()}",
            owner=owner,
            filename=filename,
            size=size,
            created_at=now,
            expires_at=now + files.limits.upload_seconds,
            asked=Asked(claim, lifetime),
            purpose=purpose,
        )
        self._uploads[upload.id] = upload
        return JSONResponse(_document(upload))

    def _require_room(self, owner: str, size: int, purpose: str) -> None:
        limits, pending = self._files.limits, [u for u in self._uploads.values() if not u.ended]
        mine = sum(upload.owner == owner for upload in pending)
        if mine >= limits.max_uploads_each or len(self._uploads) >= limits.max_uploads:
            refuse("too_many_files", "Too many uploads are open.", status=429)
        # Whatever is announced may still come.
        room = self._files.table.room(owner, purpose) - sum(upload.size for upload in pending)
        if size > room:
            refuse("file_too_large", "The file is larger than what may be kept.", status=413)

    async def _retrieve(self, request: Request, owner: str) -> Response:
        upload = self._find(request, owner)
        parts: list[JsonValue] = [
            {"id": part.id, "bytes": part.size, "sha256": part.sha256}
            for part in upload.parts.values()
        ]
        return JSONResponse({**_document(upload), "parts": parts})

    async def _add_part(self, request: Request, owner: str) -> Response:
        files, upload = self._files, self._find(request, owner)
        with upload.change():
            pass  # Parts come side by side; only completing excludes them.
        if len(upload.parts) >= files.limits.max_parts:
            refuse("too_many_parts", f"An upload has at most {files.limits.max_parts} parts.")
        token = files.entropy.token(12).hex()
        name = f"part-{token}"
        sinks: list[_PartSink] = []

        def begin(_fields: dict[str, str], _filename: str) -> _PartSink:
            sinks.append(_PartSink(files.store.begin(name)))
            return sinks[0]

        form = FileForm(
            content_type_of(request.scope),
            file_field="data",
            fields=frozenset(),
            begin=begin,
        )
        async with files.slot():
            most = min(files.limits.max_form_bytes, upload.size + 64 * 1024)
            await receive_form(request, form, max_bytes=most)
            await asyncio.to_thread(sinks[0].commit)
        part = _Part(f"part_{token}", name, sinks[0].size, sinks[0].sha256.hexdigest(), files.now())
        await self._accept(upload, part)
        return JSONResponse(
            {
                "id": part.id,
                "object": "upload.part",
                "created_at": part.created_at,
                "upload_id": upload.id,
            }
        )

    async def _accept(self, upload: _Upload, part: _Part) -> None:
        stored = sum(each.size for each in upload.parts.values())
        # Twice the size, so that a part whose answer was lost can be sent again.
        if stored + part.size > 2 * upload.size or upload.changing or upload.ended:
            await asyncio.to_thread(self._files.store.remove, part.name)
            if not upload.ended and not upload.changing:
                refuse("file_too_large", "The parts are larger than the upload.", status=413)
            refuse("upload_in_use", "The upload was ended meanwhile.", status=409)
        upload.parts[part.id] = part

    async def _complete(self, request: Request, owner: str) -> Response:
        upload = self._find(request, owner)
        members = await read_document(request)
        ids = members.texts("part_ids", max_items=self._files.limits.max_parts)
        md5 = _optional(members, "md5")
        members.end()
        if upload.status == "completed":
            return JSONResponse(_document(upload))
        with upload.change():
            parts = _named(upload, ids)
            async with self._files.slot():
                upload.file = await self._assemble(upload, parts, md5)
            upload.status = "completed"
        await self._drop_parts(upload)
        return JSONResponse(_document(upload))

    async def _assemble(self, upload: _Upload, parts: list[_Part], md5: str | None) -> KeptFile:
        files, asked = self._files, upload.asked
        files.table.room(upload.owner, upload.purpose)
        name, owner, filename = files.new_file_id(), upload.owner, upload.filename
        if upload.purpose == STATE:
            state = await asyncio.to_thread(StateWriter, files.store, name)
            await self._copied(parts, state, md5)
            return await files.keep_state(
                state, owner=owner, filename=filename, lifetime=asked.lifetime
            )
        writer = await asyncio.to_thread(DatasetWriter, files.store, name, asked.claim.salt)
        await self._copied(parts, writer, md5)
        return await files.keep(writer, owner=owner, filename=filename, asked=asked)

    async def _copied(self, parts: list[_Part], writer: Sink, md5: str | None) -> None:
        try:
            await asyncio.to_thread(_copy, self._files.store, parts, writer, md5)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(writer.abort))
            raise

    async def _cancel(self, request: Request, owner: str) -> Response:
        upload = self._find(request, owner)
        if upload.status != "cancelled":
            with upload.change():
                upload.status = "cancelled"
            await self._drop_parts(upload)
        return JSONResponse(_document(upload))

    async def _drop_parts(self, upload: _Upload) -> None:
        parts, upload.parts = upload.parts, {}
        for part in parts.values():
            await asyncio.to_thread(self._files.store.remove, part.name)


def _named(upload: _Upload, ids: tuple[str, ...]) -> list[_Part]:
    """Return the parts that a client names, in its order; refuse what does not add up."""
    if len(set(ids)) != len(ids) or any(each not in upload.parts for each in ids):
        refuse("invalid_part_ids", "part_ids names each part of this upload at most once.")
    parts = [upload.parts[each] for each in ids]
    if sum(part.size for part in parts) != upload.size:
        refuse("invalid_upload_size", f"The parts are not the {upload.size} bytes announced.")
    return parts


def _copy(store: SealedStore, parts: list[_Part], writer: Sink, md5: str | None) -> None:
    """Write the parts one after the other; in a worker thread."""
    digest = hashlib.md5(usedforsecurity=False)
    for part in parts:
        for piece in store.read(part.name):
            digest.update(piece)
            writer.write(piece)
    if md5 is not None and digest.hexdigest() != md5.lower():
        refuse("md5_mismatch", "The bytes do not have this MD5.", param="md5")


def _optional(members: Members, name: str) -> str | None:
    if members.null(name) or not members.has(name):
        return None
    return members.text(name)


def _lifetime(members: Members) -> int | None:
    if members.null("expires_after") or not members.has("expires_after"):
        return None
    inner = members.members("expires_after")
    anchor, seconds = inner.text("anchor"), inner.integer("seconds")
    inner.end()
    return require_lifetime(anchor, seconds)


def _document(upload: _Upload) -> dict[str, JsonValue]:
    file = upload.file
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.size,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": None if file is None else file_document(file),
    }
