"""Records as they are stored: hidden names, sealed contents. Pure.

Clause: docs/protocols/broker.md §7.1. Opening establishes that whoever holds the master key wrote
these bytes under this kind, name and revision. It does not establish that they are the newest: that
no single record is older, foreign or missing is what the root says (`broker/root.py`, 7.5).
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from confide.crypto.aead import OpenError
from confide.crypto.kem import hkdf_expand, hkdf_extract
from confide.crypto.salted import SALT_BYTES, SECRET_BYTES, open_salted, seal_salted
from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from confide.broker.record import Mark, Record

__all__ = ["MASTER_BYTES", "Vault"]

MASTER_BYTES: Final = SECRET_BYTES
_RECORD: Final = b"confide/broker-record/v1\0"
_ROWS: Final = b"confide/broker-rows/v1"
_TERMS: Final = b"confide/broker-root/v1"
_CLAUSE: Final = "docs/protocols/broker.md#7.1"


class Vault:
    """The master key at work. Not printable."""

    __slots__ = ("_master", "_rows", "_terms")

    def __init__(self, master: bytes) -> None:
        if len(master) != MASTER_BYTES:
            raise ValueError(f"a master key has {MASTER_BYTES} bytes")
        self._master = master
        secret = hkdf_extract(b"", master)
        self._rows = hkdf_expand(secret, _ROWS, 32)
        self._terms = hkdf_expand(secret, _TERMS, 32)

    def row(self, kind: str, name: str) -> str:
        """Return the name of the row of `name`: without the master key it says nothing."""
        message = kind.encode() + b"\0" + name.encode()
        return hmac.new(self._rows, message, hashlib.sha256).hexdigest()

    def seal(self, kind: str, row: str, *, revision: int, salt: bytes, plaintext: bytes) -> bytes:
        """Return the sealed contents of one revision of one row; `salt` is 32 fresh bytes."""
        info = _info(kind, row, revision)
        return seal_salted(self._master, info=info, salt=salt, plaintext=plaintext)

    def term(self, mark: Mark) -> int:
        """Return what one writing of a record adds to the root (7.5). Raises `FormatError`."""
        if len(mark.salt) != SALT_BYTES or not 0 < mark.revision < 1 << 63:
            what = f"broker store: a record of kind {mark.kind} is none of ours"
            raise FormatError(what, reason=Reason.VAULT_FORMAT, clause=_CLAUSE)
        # Neither kind nor row of ours holds a zero: one message, one record.
        place = f"{mark.kind}\0{mark.row}".encode()
        message = mark.salt + mark.revision.to_bytes(8, "big") + place
        return int.from_bytes(hmac.digest(self._terms, message, "sha256"), "big")

    def open(self, record: Record) -> bytes:
        """Return the contents of `record`. Raises `FormatError` with VAULT_FORMAT."""
        info = _info(record.kind, record.row, record.revision)
        try:
            return open_salted(self._master, info=info, sealed=record.sealed)
        except OpenError as error:
            what = f"broker store: a record of kind {record.kind} does not open"
            raise FormatError(what, reason=Reason.VAULT_FORMAT, clause=_CLAUSE) from error


def _info(kind: str, row: str, revision: int) -> bytes:
    return _RECORD + f"{kind}\0{row}\0{revision}".encode()
