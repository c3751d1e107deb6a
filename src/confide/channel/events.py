"""The values of a sealed exchange: sides, states, limits, events, digests. Frozen, no behaviour."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from confide.wire.ohttp import RequestHeader

__all__ = [
    "REQUEST_LABEL",
    "RESPONSE_LABEL",
    "ChunkOpened",
    "Direction",
    "ExchangeEvent",
    "ExchangeLimits",
    "FinalOpened",
    "RequestOpened",
    "Side",
    "State",
    "Transcript",
    "request_info",
]

# From: draft-ietf-ohai-chunked-ohttp-08 §6: labels of the chunked form.
REQUEST_LABEL = b"message/bhttp chunked request"
RESPONSE_LABEL = b"message/bhttp chunked response"


class Side(Enum):
    """Which end of the exchange this object is."""

    CLIENT = "client"
    NODE = "node"


class State(Enum):
    """Of one direction, or of the exchange when FAILED."""

    IDLE = "idle"
    OPEN = "open"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ExchangeLimits:
    """Per direction. From: draft-08 §7.3 (AES-GCM usage limits), channel.md 2.6."""

    max_message_bytes: int = 1 << 30
    max_chunks: int = 1 << 20


@dataclass(frozen=True, slots=True)
class RequestOpened:
    """A node knows which key is used; nothing is authenticated until a chunk opens."""

    header: RequestHeader
    channel_id: bytes


@dataclass(frozen=True, slots=True)
class ChunkOpened:
    """A non-final chunk opened; more follows."""

    data: bytes


@dataclass(frozen=True, slots=True)
class FinalOpened:
    """The final chunk opened: the message is complete."""

    data: bytes


ExchangeEvent: TypeAlias = "RequestOpened | ChunkOpened | FinalOpened"


@dataclass(frozen=True, slots=True)
class Transcript:
    """SHA-256 over every byte of the two sealed messages (channel.md 6.1)."""

    request_sha256: bytes
    response_sha256: bytes


def request_info(header: RequestHeader, label: bytes = REQUEST_LABEL) -> bytes:
    """Return the HPKE `info` that binds label and header (RFC 9458 §4.3)."""
    return label + b"\0" + header.encode()


class Direction:
    """Counts, bounds and hashes one sealed message."""

    __slots__ = ("_bytes", "_hash", "_limits", "chunks", "state")

    def __init__(self, limits: ExchangeLimits) -> None:
        self.state = State.IDLE
        self._limits = limits
        self._hash = hashlib.sha256()
        self._bytes = 0
        self.chunks = 0

    def add(self, data: bytes) -> bool:
        """Count and hash `data`; False when the message is beyond its limit."""
        self._hash.update(data)
        self._bytes += len(data)
        return self._bytes <= self._limits.max_message_bytes

    def chunk(self) -> bool:
        """Count a chunk; False beyond the limit."""
        self.chunks += 1
        return self.chunks <= self._limits.max_chunks

    def digest(self) -> bytes:
        """Return SHA-256 over all bytes so far."""
        return self._hash.digest()
