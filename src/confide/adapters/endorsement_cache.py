"""A disk cache of endorsements: it saves requests and creates no trust.

Clause: docs/protocols/fetching.md#9. Whoever can write here can at most make verification fail:
what is read back goes through the same reader and the same verifier as what comes from the
network. How long an answer holds is read out of the answer each time, never out of the cache.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.adapters.files import write_atomically
from confide.errors import FormatError, Reason, Unavailable
from confide.wire.json import JsonValue, Members, b64encode, jcs, parse_json
from confide.wire.keyset import format_time, parse_time

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

__all__ = ["DiskCache", "NoCache", "StoredAnswer"]

_TYPE: Final = "confide/endorsement/v1"
_REASON = Reason.BUNDLE_FORMAT
_MAX_FILE_BYTES: Final = 4 * 1024 * 1024
_MAX_FILES: Final = 2048
_MAX_HEADERS: Final = 8


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer as it came (decoded body, the headers its reader needs), and when."""

    body: bytes
    headers: Mapping[str, str]
    fetched: datetime


class NoCache:
    """Remembers nothing."""

    def get(self, key: str) -> StoredAnswer | None:
        """Return nothing."""
        del key
        return None

    def put(self, key: str, answer: StoredAnswer) -> None:
        """Forget `answer`."""
        del key, answer

    def drop(self, key: str) -> None:
        """Do nothing."""
        del key


class DiskCache:
    """Answers in `folder`, one file each; every failure of the disk is a miss."""

    __slots__ = ("_folder",)

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"

    def get(self, key: str) -> StoredAnswer | None:
        """Return what was stored for exactly `key`; None for anything else."""
        try:
            raw = _read(self._path(key))
            return _decode(raw, key)
        except (OSError, FormatError):
            return None

    def put(self, key: str, answer: StoredAnswer) -> None:
        """Store `answer`; a disk that does not take it is no error."""
        raw = _encode(key, answer)
        if len(raw) > _MAX_FILE_BYTES:
            return
        with suppress(Unavailable, OSError):
            self._make_room()
            write_atomically(self._path(key), raw, mode=0o600)

    def drop(self, key: str) -> None:
        """Forget `key`."""
        with suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def _make_room(self) -> None:
        if not self._folder.is_dir():
            return
        files = sorted(self._folder.glob("*.json"), key=_age)
        for path in files[: max(0, len(files) + 1 - _MAX_FILES)]:
            path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _read(path: Path) -> bytes:
    # No link is followed and no pipe is waited for: the folder may not be ours alone.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError("not a regular file")
        return file.read(_MAX_FILE_BYTES + 1)


def _encode(key: str, answer: StoredAnswer) -> bytes:
    return jcs(
        {
            "type": _TYPE,
            "key": key,
            "fetched": format_time(answer.fetched),
            "headers": dict(answer.headers),
            "sha256": hashlib.sha256(answer.body).hexdigest(),
            "body": b64encode(answer.body),
        }
    )


def _decode(raw: bytes, key: str) -> StoredAnswer:
    top = Members(
        parse_json(raw, what="cached endorsement", reason=_REASON),
        what="cached endorsement",
        reason=_REASON,
    )
    top.choice("type", (_TYPE,))
    if top.text("key", max_chars=8192) != key:
        top.refuse("another key")
    fetched = parse_time(top.text("fetched"), what="fetched", reason=_REASON)
    headers = _headers(top)
    digest, body = top.hexes("sha256", 32), top.base64("body")
    top.end()
    if hashlib.sha256(body).digest() != digest:
        top.refuse("the body does not hash to its digest")
    return StoredAnswer(body, headers, fetched)


def _headers(top: Members) -> dict[str, str]:
    value: JsonValue = top.value("headers")
    if not isinstance(value, dict) or len(value) > _MAX_HEADERS:
        top.refuse("headers are not a small table")
    found: dict[str, str] = {}
    for name, text in value.items():
        if not isinstance(text, str):
            top.refuse("a header is not text")
        found[name] = text
    return found
