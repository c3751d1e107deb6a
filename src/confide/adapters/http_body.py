"""A body that ends when its connection does, whatever its framing was.

`aiohttp` (3.14) does not tell the reader of a body where chunks stop being chunks in the middle: it
closes the connection and leaves the reader waiting, beyond `sock_read` too. Whoever reads a body of
a peer that may be broken or hostile reads it inside `bound_to_connection`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

__all__ = ["bound_to_connection"]


@contextmanager
def bound_to_connection(response: aiohttp.ClientResponse) -> Iterator[None]:
    """Make reading `response.content` raise `ClientPayloadError` once its connection is gone."""
    content = response.content
    connection = response.connection
    protocol = None if connection is None else connection.protocol
    # Without a connection the body is whole already, or was given up.
    if protocol is None:
        yield
        return

    def end(lost: asyncio.Future[None] | None) -> None:
        if lost is not None and not lost.cancelled():
            lost.exception()
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the connection is gone"))

    lost = protocol.closed
    if lost is None:
        end(None)
        yield
        return
    lost.add_done_callback(end)
    try:
        yield
    finally:
        lost.remove_done_callback(end)
