"""The broker of this machine's own stack and its owner's key: where `confide secret` begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.cli.localnodes import IDLE_SECONDS, local_engine
from confide.cli.places import Places

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LocalPlace", "local_place"]


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """Where the local broker is, the key that it is known by, and the file of its owner's key."""

    url: str
    key: bytes
    owner_key: Path


def local_place() -> LocalPlace:
    """Return the local broker; it, its log and its witness are started where they do not run."""
    engine = local_engine(Places.here())
    node = engine.up_broker(idle_seconds=IDLE_SECONDS)
    broker = engine.broker()
    return LocalPlace(node.url, broker.key, broker.owner_key)
