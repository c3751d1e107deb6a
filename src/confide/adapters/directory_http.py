"""Fetching the directory of a relay over plain HTTP. What comes back is hostile bytes.

Clause: docs/protocols/relay.md 4.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httpx2

from confide.errors import Unavailable
from confide.wire.directory import DIRECTORY_PATH, parse_directory_answer

if TYPE_CHECKING:
    from confide.wire.directory import DirectoryAnswer

__all__ = ["fetch_directory"]

_MAX_BYTES: Final = 2 * 1024 * 1024
_TIMEOUT: Final = httpx2.Timeout(connect=10.0, read=30.0, write=10.0, pool=30.0)


async def fetch_directory(client: httpx2.AsyncClient, relay: str) -> DirectoryAnswer:
    """Ask the relay at `relay`. Raises `Unavailable`, `FormatError`; believes nothing."""
    raw = bytearray()
    try:
        async with client.stream("GET", relay + DIRECTORY_PATH, timeout=_TIMEOUT) as answer:
            async for chunk in answer.aiter_bytes():
                raw += chunk
                if len(raw) > _MAX_BYTES:
                    raise Unavailable(f"a directory of more than {_MAX_BYTES} bytes")
            status = answer.status_code
    except httpx2.HTTPError as error:
        raise Unavailable(f"no directory from the relay: {type(error).__name__}") from error
    if status != 200:
        raise Unavailable(f"the relay answered {status} instead of a directory")
    return parse_directory_answer(bytes(raw))
