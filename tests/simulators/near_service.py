"""A SIMULATED NEAR AI service that several tests read from; small, so that it is made quickly."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

from confide.simulator.near import SimulatedNear, encode_report
from confide.wire.service import Capture

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

NOW = datetime(2026, 8, 20, 12, tzinfo=UTC)
NONCE = hashlib.sha256(b"the caller's nonce").digest()


@cache
def service() -> SimulatedNear:
    """Two machines with two GPUs each, behind a gateway."""
    return SimulatedNear(b"near-tests", NOW, nodes=2, gpus=2)


def capture(
    document: JsonValue | bytes, *, url: str = "", beside: dict[str, bytes] | None = None
) -> Capture:
    """Return `document` as it was fetched with `NONCE`, with other documents `beside` it."""
    raw = document if isinstance(document, bytes) else encode_report(document)
    return Capture(documents={"report": raw, **(beside or {})}, nonce=NONCE, url=url)
