"""Files for training over HTTP, in OpenAI's shapes: an inner ASGI application of a node.

docs/protocols/training-files.md. Behind the sealed channel, or mounted where a connection is
private: nothing here encrypts. Rows pass through memory, and are on the disk only sealed.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from confide.errors import DatasetRejected, FormatError, Unavailable
from confide.inference.faults import ApiFault, RequestRefused
from confide.inference.plan import refuse
from confide.node.asgi import content_type_of
from confide.node.train_forms import (
    Asked,
    FileForm,
    asked_of,
    bearer_owner,
    lifetime_of,
    receive_form,
    require_filename,
    require_no_dataset,
)
from confide.node.train_store import (
    STATE,
    DatasetWriter,
    FileLimits,
    FileTable,
    KeptFile,
    ResultFile,
    StateWriter,
    StoredFile,
    file_document,
    prove_leaf,
    read_file,
    remove_kept,
)
from confide.node.train_uploads import UploadRoutes
from confide.training.rows import RowError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from confide.adapters.sealed_store import SealedStore
    from confide.ports import Clock, Entropy

__all__ = ["Handler", "TrainFiles"]

Handler: TypeAlias = "Callable[[Request, str], Awaitable[Response]]"

_FIELDS: Final = frozenset(
    (
        *("purpose", "dataset", "dataset_salt"),
        *("expires_after[anchor]", "expires_after[seconds]"),
    )
)
_MAX_LISTED: Final = 10_000
_LIMIT: Final = re.compile(r"[0-9]{1,5}\Z")
# Of several ranges, or one from the end, the whole file is the right answer too.
_RANGE: Final = re.compile(r"bytes=([0-9]{1,15})-([0-9]{1,15})\Z")
_INDEX: Final = re.compile(r"[0-9]{1,8}\Z")
_STORAGE: Final = ApiFault(
    507,
    "server_error",
    "storage_failed",
    "The node cannot store this now; nothing of it was kept. Try again, or ask its operator.",
)
_BUSY: Final = ApiFault(
    429, "rate_limit_error", "node_busy", "Too many uploads are in progress.", retry_after=1
)
_NO_ROUTE: Final = ApiFault(404, "invalid_request_error", "not_found", "No such route.")
_NO_METHOD: Final = ApiFault(405, "invalid_request_error", "method_not_allowed", "No such method.")


class TrainFiles:
    """
    The application. One for a store; its files are found through `table`.

    `owner` says whose files a request is about, or raises `RequestRefused`.
    """

    def __init__(
        self,
        store: SealedStore,
        *,
        clock: Clock,
        entropy: Entropy,
        limits: FileLimits | None = None,
        owner: Callable[[Request], str] = bearer_owner,
    ) -> None:
        self.limits = limits or FileLimits()
        self.store = store
        self.table = FileTable(self.limits)
        self._clock = clock
        self.entropy = entropy
        self._owner = owner
        self._busy = 0
        self._uploads = UploadRoutes(self)
        self._app = Starlette(
            routes=[
                self._route("/v1/files", "POST", self._create),
                self._route("/v1/files", "GET", self._list),
                self._route("/v1/files/{id}", "GET", self._retrieve),
                self._route("/v1/files/{id}", "DELETE", self._delete),
                self._route("/v1/files/{id}/content", "GET", self._content),
                self._route("/v1/files/{id}/inclusion/{index}", "GET", self._inclusion),
                *(self._route(*each) for each in self._uploads.routes()),
            ],
            exception_handlers={404: _no_route, 405: _no_method},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        await self._app(scope, receive, send)

    def now(self) -> int:
        """Return the time in whole seconds."""
        return int(self._clock.now().timestamp())

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the places for requests with a body; `RequestRefused` where none is free."""
        if self._busy >= self.limits.concurrent:
            raise RequestRefused(_BUSY)
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    async def keep(
        self, writer: DatasetWriter, *, owner: str, filename: str, asked: Asked
    ) -> StoredFile:
        """Keep what was written, if it is what was committed to; or leave nothing of it."""
        try:
            found = await asyncio.to_thread(writer.finish, asked.claim)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(writer.abort))
            raise
        now = self.now()
        expires = None if asked.lifetime is None else now + asked.lifetime
        file = StoredFile(writer.id, owner, filename, writer.size, now, expires, found, asked.claim)
        self.table.add(file)
        return file

    async def keep_state(
        self, writer: StateWriter, *, owner: str, filename: str, lifetime: int | None
    ) -> ResultFile:
        """Keep what an owner brought of a job elsewhere (training-node.md 7.5)."""
        try:
            await asyncio.to_thread(writer.finish)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(writer.abort))
            raise
        now = self.now()
        expires = None if lifetime is None else now + lifetime
        file = ResultFile(
            writer.id, owner, filename, writer.size, now, expires_at=expires, purpose=STATE
        )
        self.table.add(file)
        return file

    async def remove(self, owner: str, file_id: str) -> None:
        """Remove a file. Raises `RequestRefused` where there is none, `Unavailable`."""
        file = self.table.find(owner, file_id)
        await asyncio.to_thread(remove_kept, self.store, file)
        self.table.forget(file)

    async def content(self, request: Request, file: KeptFile) -> Response:
        """Answer `request` with bytes of `file` (3.2). Raises `RequestRefused`, `Unavailable`."""
        start, size = _range(request, file.size)
        pieces = read_file(self.store, file, start=start)
        # The first piece before the head: a file that is gone is an error, not half an answer.
        first = await asyncio.to_thread(next, pieces, b"")
        headers = {"content-length": str(size), "accept-ranges": "bytes"}
        if size < file.size:
            headers["content-range"] = f"bytes {start}-{start + size - 1}/{file.size}"
        return StreamingResponse(
            _streamed(first, pieces, size),
            206 if size < file.size else 200,
            headers=headers,
            media_type="application/octet-stream",
        )

    def new_file_id(self) -> str:
        """Draw the id of a file."""
        return f"file-{self.entropy.token(12).hex()}"

    # --- the routes -------------------------------------------------------------------------------

    def _route(self, path: str, method: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                owner = self._owner(request)
                await self._sweep()
                return await handler(request, owner)
            except (RequestRefused, FormatError, DatasetRejected, Unavailable) as error:
                return _refusal(_fault_of(error))
            except ClientDisconnect:
                return Response(status_code=400)

        return Route(path, endpoint, methods=[method])

    async def _sweep(self) -> None:
        now = self.now()
        over = self.table.take_expired(now)
        await self._uploads.sweep(now)
        for file in over:
            # Forgotten whatever the disk does: somebody else's request is being answered.
            with suppress(Unavailable):
                await asyncio.to_thread(remove_kept, self.store, file)

    async def _create(self, request: Request, owner: str) -> Response:
        room, begun = self.table.room(owner), _Begun(self)
        form = FileForm(
            content_type_of(request.scope),
            file_field="file",
            fields=_FIELDS,
            begin=begun.begin,
        )
        async with self.slot():
            # The fields and boundaries of a form are small beside a file.
            most = min(self.limits.max_form_bytes, room + 64 * 1024)
            await receive_form(request, form, max_bytes=most)
            file = await begun.finish(owner)
        return JSONResponse(file_document(file))

    async def _list(self, request: Request, owner: str) -> Response:
        query = request.query_params
        files = self.table.of(owner)
        if "purpose" in query:
            wanted = query["purpose"]
            files = [file for file in files if file_document(file)["purpose"] == wanted]
        order, limit = query.get("order", "desc"), query.get("limit", str(_MAX_LISTED))
        if order not in {"asc", "desc"}:
            refuse("invalid_value", "order is asc or desc.", param="order")
        if not _LIMIT.match(limit) or not 1 <= int(limit) <= _MAX_LISTED:
            refuse("invalid_value", f"limit is 1 to {_MAX_LISTED}.", param="limit")
        if order == "desc":
            files.reverse()
        if "after" in query:
            after = self.table.find(owner, query["after"])
            files = files[files.index(after) + 1 :]
        page = files[: int(limit)]
        return JSONResponse(
            {
                "object": "list",
                "data": [file_document(file) for file in page],
                "first_id": page[0].id if page else None,
                "last_id": page[-1].id if page else None,
                "has_more": len(page) < len(files),
            }
        )

    async def _retrieve(self, request: Request, owner: str) -> Response:
        return JSONResponse(file_document(self.table.find(owner, request.path_params["id"])))

    async def _delete(self, request: Request, owner: str) -> Response:
        file_id = request.path_params["id"]
        await self.remove(owner, file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    async def _content(self, request: Request, owner: str) -> Response:
        return await self.content(request, self.table.find(owner, request.path_params["id"]))

    async def _inclusion(self, request: Request, owner: str) -> Response:
        file = self.table.find_data(owner, request.path_params["id"])
        text = request.path_params["index"]
        if not _INDEX.match(text) or int(text) >= file.commitment.rows:
            refuse("not_found", f"The file has {file.commitment.rows} rows.", status=404)
        async with self.slot():
            proof = await asyncio.to_thread(prove_leaf, self.store, file, int(text))
        return Response(proof.encode(), media_type="application/json")


class _Begun:
    """The one file of a form: begun when its fields were read, finished when it is whole."""

    def __init__(self, files: TrainFiles) -> None:
        self._files = files
        self._filename = ""
        self._asked: Asked | None = None
        self._writer: DatasetWriter | None = None
        self._state: StateWriter | None = None
        self._lifetime: int | None = None

    def begin(self, fields: dict[str, str], filename: str) -> DatasetWriter | StateWriter:
        """Begin the file; in a worker thread."""
        files = self._files
        self._filename = require_filename(filename)
        if fields.get("purpose") == STATE:
            require_no_dataset(fields.get(name) for name in ("dataset", "dataset_salt"))
            self._lifetime = lifetime_of(fields)
            self._state = StateWriter(files.store, files.new_file_id())
            return self._state
        self._asked = asked_of(fields, files.entropy)
        self._writer = DatasetWriter(files.store, files.new_file_id(), self._asked.claim.salt)
        return self._writer

    async def finish(self, owner: str) -> KeptFile:
        """Keep the file, or leave nothing of it."""
        if self._state is not None:
            return await self._files.keep_state(
                self._state, owner=owner, filename=self._filename, lifetime=self._lifetime
            )
        writer, asked = self._writer, self._asked
        if writer is None or asked is None:  # pragma: no cover - a form that ended has its file
            refuse("missing_file", "The form has no file.", param="file")
        return await self._files.keep(writer, owner=owner, filename=self._filename, asked=asked)


def _range(request: Request, size: int) -> tuple[int, int]:
    """Return start and length of what is asked for: one range (RFC 9110 §14.2), or everything."""
    found = _RANGE.match(request.headers.get("range", ""))
    if found is None:
        return 0, size
    first, last = int(found[1]), min(int(found[2]), size - 1)
    if first > last:
        refuse("invalid_range", f"The file has {size} bytes.", status=416)
    return first, last - first + 1


async def _streamed(first: bytes, rest: Iterator[bytes], size: int) -> AsyncIterator[bytes]:
    piece: bytes | None = first
    while piece is not None and size:
        if piece:
            yield piece[:size]
            size -= min(size, len(piece))
        # After the last one too: that a whole file is whole is known at its end.
        piece = await asyncio.to_thread(next, rest, None)


def _fault_of(error: RequestRefused | FormatError | DatasetRejected | Unavailable) -> ApiFault:
    if isinstance(error, RequestRefused):
        return error.fault
    if isinstance(error, Unavailable):
        return _STORAGE
    kind = "invalid_request_error"
    if isinstance(error, RowError):
        return ApiFault(400, kind, "invalid_training_file", f"{error}.", "file")
    if isinstance(error, DatasetRejected):
        detail = error.failures[0].detail
        return ApiFault(400, kind, "dataset_mismatch", f"Not what was committed to: {detail}.")
    return ApiFault(400, kind, "invalid_request", f"{error.what}.")


def _refusal(fault: ApiFault) -> Response:
    headers = {} if fault.retry_after is None else {"retry-after": str(fault.retry_after)}
    return Response(fault.body(), fault.status, headers, "application/json")


async def _no_route(_request: Request, _error: Exception) -> Response:
    return _refusal(_NO_ROUTE)


async def _no_method(_request: Request, _error: Exception) -> Response:
    return _refusal(_NO_METHOD)
