"""Requests about training files: whose they are, their fields, forms that stream. ASGI rim.

docs/protocols/training-files.md 1.1, 2.1, 3.1. Everything in a request is hostile.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from confide.errors import FormatError, Reason
from confide.inference.faults import ApiFault, RequestRefused
from confide.inference.form_stream import FormReader, PartBegin, PartData
from confide.inference.plan import refuse
from confide.node.train_store import PURPOSE, DatasetClaim
from confide.training.dataset import SALT_BYTES
from confide.wire.json import JsonLimits, Members, is_hex, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from starlette.requests import Request

    from confide.inference.form_stream import FormEvent
    from confide.ports import Entropy

__all__ = [
    "Asked",
    "FileForm",
    "Sink",
    "asked_of",
    "bearer_owner",
    "claim_of",
    "lifetime_of",
    "read_document",
    "receive_form",
    "require_filename",
    "require_lifetime",
    "require_no_dataset",
    "require_purpose",
]

_BEARER: Final = re.compile(r"Bearer ([!-~]{16,512})\Z", re.IGNORECASE)
_SECONDS: Final = re.compile(r"[0-9]{4,7}\Z")
# From: the OpenAI API reference, files: one hour to thirty days.
_EXPIRES: Final = range(3600, 2_592_001)
_MAX_FIELD_BYTES: Final = 4096
_MAX_FILENAME: Final = 255
_BODY_LIMITS: Final = JsonLimits(max_bytes=1024 * 1024, max_depth=4)
# What is handed to a worker thread at once: few hand-overs, little memory.
_BATCH_BYTES: Final = 512 * 1024

_UNKNOWN: Final = ApiFault(
    401,
    "invalid_request_error",
    "invalid_api_key",
    "Send a token of 16 to 512 characters as the API key: it is what your files belong to.",
)


class Sink(Protocol):
    """Where the bytes of a file go. Blocks."""

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        ...

    def abort(self) -> None:
        """Leave nothing behind."""
        ...


AnySink = TypeVar("AnySink", bound=Sink)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for beside the bytes: when the file ends, and what it has to be."""

    claim: DatasetClaim
    lifetime: int | None


def bearer_owner(request: Request) -> str:
    """Return whose files a request is about (1.1). Raises `RequestRefused`."""
    given = request.headers.getlist("authorization")
    found = _BEARER.match(given[0]) if len(given) == 1 else None
    if found is None:
        raise RequestRefused(_UNKNOWN)
    return hashlib.sha256(b"confide/file-owner/v1\0" + found[1].encode()).hexdigest()


def require_filename(name: str) -> str:
    """Return the name of a file, which is shown and never used. Raises `RequestRefused`."""
    if not name or len(name) > _MAX_FILENAME or not name.isprintable():
        refuse("invalid_filename", f"A file name has 1 to {_MAX_FILENAME} printable characters.")
    return name


def claim_of(commitment: str | None, salt: str | None, entropy: Entropy) -> DatasetClaim:
    """Return what the client committed to; a drawn salt where it said nothing (2.3)."""
    if commitment is None and salt is None:
        return DatasetClaim(None, entropy.token(SALT_BYTES))
    for name, text in (("dataset", commitment), ("dataset_salt", salt)):
        if text is None or not is_hex(text, 32):
            both = "dataset and dataset_salt come together, 64 lower-case hex digits each."
            refuse("invalid_dataset", both, param=name)
    return DatasetClaim(bytes.fromhex(commitment or ""), bytes.fromhex(salt or ""))


def asked_of(fields: Mapping[str, str], entropy: Entropy) -> Asked:
    """Return what the fields of a form ask for (3.1). Raises `RequestRefused`."""
    require_purpose(fields.get("purpose"))
    lifetime = lifetime_of(fields)
    return Asked(claim_of(fields.get("dataset"), fields.get("dataset_salt"), entropy), lifetime)


def lifetime_of(fields: Mapping[str, str]) -> int | None:
    """Return how long the file of a form is kept, in seconds. Raises `RequestRefused`."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    right = _SECONDS.match(seconds or "") is not None
    return require_lifetime(anchor, int(seconds or "") if right else None)


def require_purpose(purpose: str | None) -> None:
    """Require the one purpose that this node has."""
    if purpose != PURPOSE:
        refuse("invalid_purpose", f"purpose is {PURPOSE} here.", param="purpose")


def require_no_dataset(said: Iterable[str | None]) -> None:
    """Refuse a commitment to what is kept as it is (training-node.md 7.5)."""
    if any(each is not None for each in said):
        refuse("invalid_dataset", "What goes on elsewhere is no data set.", param="dataset")


def require_lifetime(anchor: str | None, seconds: int | None) -> int:
    """Return how long a file is kept, in seconds."""
    if anchor != "created_at" or seconds is None or seconds not in _EXPIRES:
        what = "expires_after is created_at and 3600 to 2592000 seconds."
        refuse("invalid_expires_after", what, param="expires_after")
    return seconds


async def read_document(request: Request) -> Members:
    """Read a JSON object. Raises `RequestRefused`."""
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > _BODY_LIMITS.max_bytes:
            refuse("request_too_large", "The request is above 1 MiB.", status=413)
    try:
        reason = Reason.REQUEST_FORMAT
        value = parse_json(bytes(raw), what="The request", reason=reason, limits=_BODY_LIMITS)
        return Members(value, what="The request", reason=reason)
    except FormatError as error:
        refuse("invalid_json", f"{error.what}.")


class FileForm:
    """
    One form: fields, then one file whose bytes go to a sink. Blocks: for a worker thread.

    `begin` gets the fields and the file name, and gives the sink.
    """

    def __init__(
        self,
        content_type: str,
        *,
        file_field: str,
        fields: frozenset[str],
        begin: Callable[[dict[str, str], str], AnySink],
    ) -> None:
        self._reader = FormReader(content_type)
        self._file_field = file_field
        self._known = fields
        self._begin = begin
        self._fields: dict[str, str] = {}
        self._text: bytearray | None = None
        self._name = ""
        self._sink: Sink | None = None

    def write(self, data: bytes) -> None:
        """Take the next bytes of the form."""
        for event in self._reader.feed(data):
            self._take(event)

    def end(self) -> None:
        """The form has no more bytes: refuse one that is cut, or has no file."""
        self._reader.end()
        if self._sink is None:
            refuse("missing_file", "The form has no file.", param=self._file_field)

    def abort(self) -> None:
        """Leave nothing behind."""
        if self._sink is not None:
            self._sink.abort()

    def _take(self, event: FormEvent) -> None:
        match event:
            case PartBegin(name=name, filename=filename):
                self._part(name, filename)
            case PartData(data=data):
                if self._text is None and self._sink is not None:
                    self._sink.write(data)
                elif self._text is not None:
                    self._text += data
                    if len(self._text) > _MAX_FIELD_BYTES:
                        refuse("invalid_multipart", "A field of the form is too long.")
            case _:
                self._ended()

    def _part(self, name: str, filename: str | None) -> None:
        if self._sink is not None:
            refuse("invalid_multipart", "The file is the last part; fields come before it.")
        if filename is not None:
            if name != self._file_field:
                refuse("unknown_parameter", "The form has a file this endpoint does not take.")
            self._sink = self._begin(self._fields, filename)
            return
        if name not in self._known:
            refuse("unknown_parameter", "The form has a field this endpoint does not take.")
        if name in self._fields:
            refuse("invalid_multipart", "A field of the form stands twice.")
        self._name, self._text = name, bytearray()

    def _ended(self) -> None:
        if self._text is None:
            return
        try:
            self._fields[self._name] = self._text.decode("utf-8")
        except UnicodeDecodeError:
            refuse("invalid_multipart", "A field of the form is not UTF-8.")
        self._text = None


async def receive_form(request: Request, form: FileForm, *, max_bytes: int) -> None:
    """
    Read the body of `request` into `form`, in a worker thread, a batch at a time.

    Whatever is raised, a caller that went away included, leaves nothing of the file behind.
    """
    try:
        held, size, total = [], 0, 0
        async for piece in request.stream():
            held.append(piece)
            size += len(piece)
            total += len(piece)
            if total > max_bytes:
                refuse("file_too_large", f"The request is above {max_bytes} bytes.", status=413)
            if size >= _BATCH_BYTES:
                await asyncio.to_thread(form.write, b"".join(held))
                held, size = [], 0
        await asyncio.to_thread(form.write, b"".join(held))
        await asyncio.to_thread(form.end)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(form.abort))
        raise
