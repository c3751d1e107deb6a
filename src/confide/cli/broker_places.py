"""The broker of this machine's own stack and its owner's key: where `confide secret` begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LocalBroker", "local_broker"]


@dataclass(frozen=True, slots=True)
class LocalBroker:
    """Where the local broker is, the key that it is known by, and the file of an owner's key."""

    url: str
    key: bytes
    owner_key: Path


def local_broker() -> LocalBroker | None:
    """Return the local broker, None where none is set up: then the options have to name one."""
    return None
