"""API keys: their text, what is stored of them, and what a stored key permits. Pure.

docs/protocols/tenancy.md §1 and §2. A key is 256 random bits, so its plain hash gives nothing away:
there is nothing to guess. The text of a key exists where it was made and where it is used.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from confide.inference.passing import COMPUTING
from confide.inference.plan import Endpoint

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "ENDPOINTS",
    "KEY_BYTES",
    "ApiKey",
    "Budget",
    "KeyRecord",
    "Limits",
    "Period",
    "Standing",
    "make_key",
    "parse_key",
]

KEY_BYTES = 32
_PREFIX = "cfd_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# From: tenancy.md §1.1. 62^43 > 2^256 and 62^6 > 2^32.
_SECRET_CHARS, _CHECK_CHARS = 43, 6
_FORM = re.compile(rf"{_PREFIX}([0-9A-Za-z]{{{_SECRET_CHARS}}})([0-9A-Za-z]{{{_CHECK_CHARS}}})\Z")
_DOMAIN = b"confide api key v1\x00"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
_ID_HEX = 16
# What a scope may name: no path of a caller gets into a database.
ENDPOINTS = frozenset(endpoint.value for endpoint in Endpoint) | {r.path for r in COMPUTING}


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The key itself; `text` is shown once and then forgotten."""

    text: str = field(repr=False)
    digest: bytes

    @property
    def id(self) -> str:
        """The public name, from the digest: it says nothing about the key."""
        return f"key_{self.digest.hex()[:_ID_HEX]}"


class Standing(StrEnum):
    """What a stored key is worth at one moment (§2.3)."""

    GOOD = "good"
    EXPIRED = "expired"
    REVOKED = "revoked"


class Period(StrEnum):
    """How long a budget lasts; both begin and end at midnight UTC (§3.3)."""

    DAY = "day"
    MONTH = "month"


def _require_limit(limit: int) -> None:
    if type(limit) is not int or not 0 < limit < 2**53:
        raise ValueError("a limit is a whole number above 0")


@dataclass(frozen=True, slots=True)
class Budget:
    """So many tokens in each `period`."""

    tokens: int
    period: Period

    def __post_init__(self) -> None:
        """Refuse a budget that is none."""
        _require_limit(self.tokens)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one key may use; None is without limit. `rate` is calls a minute (§3.1)."""

    rate: int | None = None
    concurrency: int | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        """Refuse limits that are none."""
        for limit in (self.rate, self.concurrency):
            if limit is not None:
                _require_limit(limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """
    What is stored of one key. `tenant` may have several; caches are apart by tenant (§5).

    Empty `models` or `endpoints` permit all. Raises `ValueError` for names outside the closed
    alphabets.
    """

    id: str
    digest: bytes
    tenant: str
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        """Refuse what could not be shown, stored or matched."""
        if len(self.digest) != KEY_BYTES or not _NAME.match(self.id):
            raise ValueError("a key is stored by its SHA-256 and its id")
        if not _NAME.match(self.tenant):
            raise ValueError("a tenant is 1 to 64 letters, digits, '.', '_', '@' and '-'")
        if not ENDPOINTS.issuperset(self.endpoints):
            raise ValueError("a scope names endpoints of the node")
        if any(not 0 < len(name) <= 256 or not name.isprintable() for name in self.models):
            raise ValueError("a scope names models")

    def standing(self, now: datetime) -> Standing:
        """Return what the key is worth at `now`."""
        if self.revoked is not None:
            return Standing.REVOKED
        if self.expires is not None and now >= self.expires:
            return Standing.EXPIRED
        return Standing.GOOD

    def permits(self, *, model: str, endpoint: str) -> bool:
        """Whether the scope covers this call (§2.4)."""
        return (not self.models or model in self.models) and (
            not self.endpoints or endpoint in self.endpoints
        )


def make_key(raw: bytes) -> ApiKey:
    """Return the key that is made of 32 random bytes."""
    if len(raw) != KEY_BYTES:
        raise ValueError("a key is made of 32 bytes")
    secret = _spell(int.from_bytes(raw), _SECRET_CHARS)
    return ApiKey(_PREFIX + secret + _check(secret), _digest(raw))


def parse_key(text: str) -> ApiKey | None:
    """Return the key that `text` spells; None for text that no key has. Says nothing of whose."""
    found = _FORM.match(text)
    if found is None:
        return None
    secret, check = found[1], found[2]
    value = 0
    for char in secret:
        value = value * len(_ALPHABET) + _ALPHABET.index(char)
    # The sum of a typing mistake, no protection: whoever knows the form can make a right one.
    if check != _check(secret) or value >= 1 << (8 * KEY_BYTES):
        return None
    return ApiKey(text, _digest(value.to_bytes(KEY_BYTES)))


def _digest(raw: bytes) -> bytes:
    return hashlib.sha256(_DOMAIN + raw).digest()


def _check(secret: str) -> str:
    return _spell(zlib.crc32(_PREFIX.encode() + secret.encode()), _CHECK_CHARS)


def _spell(value: int, width: int) -> str:
    chars = ""
    for _ in range(width):
        value, digit = divmod(value, len(_ALPHABET))
        chars = _ALPHABET[digit] + chars
    return chars
