"""A state, sealed: which bytes of which counter of which resource. Pure.

Clause: docs/protocols/state.md §3. The broker holds the key and the counter, and never sees inside;
opening establishes that these bytes were sealed under that key as exactly that counter.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from confide.crypto.aead import OpenError
from confide.crypto.salted import open_salted, seal_salted
from confide.errors import Reason, RunRefused
from confide.rats import Finding, Status
from confide.wire.release_receipt import NO_STATE

__all__ = ["open_state", "seal_state"]

_INFO: Final = b"confide/state/v1\0"
_CLAUSE: Final = "docs/protocols/state.md#3.2"


def _info(resource: str, counter: int) -> bytes:
    return _INFO + resource.encode() + b"\0" + counter.to_bytes(8, "big")


def seal_state(key: bytes, archive: bytes, *, resource: str, counter: int, salt: bytes) -> bytes:
    """Seal `archive` as `counter`, from 1. `salt` is 32 fresh random bytes."""
    if counter < 1:
        raise ValueError("counters begin with 1")
    return seal_salted(key, info=_info(resource, counter), salt=salt, plaintext=archive)


def open_state(
    key: bytes, sealed: bytes, *, resource: str, counter: int, digest: bytes
) -> bytes | None:
    """
    Return the archive that was saved as `counter` and has `digest`; None for counter 0.

    Raises `RunRefused` (STATE_ROLLBACK) for anything else.
    """
    if counter == 0:
        if sealed or not hmac.compare_digest(digest, NO_STATE):
            raise _rollback("a state where the broker says that there is none")
        return None
    if not hmac.compare_digest(hashlib.sha256(sealed).digest(), digest):
        raise _rollback("other bytes than the broker names")
    try:
        return open_salted(key, info=_info(resource, counter), sealed=sealed)
    except OpenError as error:
        raise _rollback(f"not the state that was saved as number {counter}") from error


def _rollback(detail: str) -> RunRefused:
    finding = Finding(
        Status.FAIL, "state/3.2", _CLAUSE, "sealed state", detail, Reason.STATE_ROLLBACK
    )
    return RunRefused((finding,))
