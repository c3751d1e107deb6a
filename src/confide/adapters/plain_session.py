"""HTTP sessions that add nothing of their own, and bound what the other side says.

One place for what every connection to an engine or a node has in common: no cookies, by which
requests could be linked; no proxy or credentials of the environment; bytes as they came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["plain_session"]

# What a head may hold: the usual bounds, said here because they are relied on.
_MAX_FIELD_BYTES = 8190
_MAX_FIELDS = 128


def plain_session(
    connector: aiohttp.TCPConnector,
    timeout: aiohttp.ClientTimeout,
    *,
    unsaid: Iterable[str] = (),
) -> aiohttp.ClientSession:
    """Return a session over `connector`; `unsaid` are fields that are not sent by themselves."""
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=timeout,
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=tuple(unsaid),
        max_line_size=_MAX_FIELD_BYTES,
        max_field_size=_MAX_FIELD_BYTES,
        max_headers=_MAX_FIELDS,
    )
