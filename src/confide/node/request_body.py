"""Reading the body of a request, bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["read_body"]


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """Read a bounded body. Raises `FormatError` with `limit-exceeded`."""
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > max_bytes:
            raise FormatError(
                "request body too large", reason=Reason.LIMIT_EXCEEDED, clause="RFC 9110 §15.5.14"
            )
    return bytes(raw)
