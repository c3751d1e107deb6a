"""How a store's master key is locked: the header of the store. Pure.

Clause: docs/protocols/broker.md §7.3. The master key never changes; the header holds it wrapped
under a key-encryption key that comes from a file, a passphrase or shares. The parameters of the
lock are authenticated by the wrapping, and bounded where they are read: a header is hostile.

Opening does not establish that this is the newest header: an older one, under a lock that was
replaced since, still opens with the key of that lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from confide.crypto.aead import OpenError
from confide.crypto.argon2 import SALT_BYTES, PassphraseCost
from confide.crypto.salted import SALT_BYTES as WRAP_SALT_BYTES
from confide.crypto.salted import SECRET_BYTES, open_salted, seal_salted
from confide.errors import ConfigurationError, FormatError, Reason
from confide.wire.json import JsonLimits, Members, b64encode, jcs, parse_json
from confide.wire.ohttp import TAG_BYTES

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

__all__ = [
    "KEY_BYTES",
    "MAX_HEADER_BYTES",
    "FileLock",
    "Header",
    "Lock",
    "PassphraseLock",
    "ShareLock",
    "lock_master",
    "open_master",
    "parse_header",
]

# A key-encryption key, and the master key that it wraps.
KEY_BYTES: Final = SECRET_BYTES
MAX_HEADER_BYTES: Final = 4096
# From: SLIP-0039, a share's index has four bits.
_MAX_SHARES = 16
_TYPE: Final = "confide/broker-store/v1"
_INFO: Final = b"confide/broker-master/v1\0"
_WHAT: Final = "store header"
_CLAUSE: Final = "docs/protocols/broker.md#7.3"


@dataclass(frozen=True, slots=True)
class FileLock:
    """The key-encryption key is the content of a file."""

    def members(self) -> dict[str, JsonValue]:
        """Return what the header says of it."""
        return {"lock": "file"}


@dataclass(frozen=True, slots=True)
class PassphraseLock:
    """It is stretched from a passphrase."""

    salt: bytes
    cost: PassphraseCost

    def members(self) -> dict[str, JsonValue]:
        """Return what the header says of it."""
        return {
            "lock": "passphrase",
            "salt": self.salt.hex(),
            "memory_kib": self.cost.memory_kib,
            "passes": self.cost.passes,
            "lanes": self.cost.lanes,
        }


@dataclass(frozen=True, slots=True)
class ShareLock:
    """It is put together from `threshold` of `count` shares; 2 to 16, `ValueError` otherwise."""

    threshold: int
    count: int

    def __post_init__(self) -> None:
        """Refuse what SLIP-0039 cannot split."""
        if not 2 <= self.threshold <= self.count <= _MAX_SHARES:
            raise ValueError(f"shares are 2 to {_MAX_SHARES}, and at least 2 of them are needed")

    def members(self) -> dict[str, JsonValue]:
        """Return what the header says of it."""
        return {"lock": "shares", "threshold": self.threshold, "count": self.count}


Lock: TypeAlias = FileLock | PassphraseLock | ShareLock
_WRONG: Final[dict[type[Lock], str]] = {
    FileLock: "the key file is not the one that locks this store; give the right one (--master)",
    PassphraseLock: "the passphrase is not the one that locks this store; try it again",
    ShareLock: "the shares are not those of this store; gather shares that were made for it",
}


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a store; `wrapped` is the master key as only the key of `lock` opens it."""

    lock: Lock
    wrapped: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Return the header as it is stored. Not secret."""
        return jcs({"type": _TYPE, **self.lock.members(), "wrapped": b64encode(self.wrapped)})


def parse_header(raw: bytes) -> Header:
    """Parse a hostile header. Raises `FormatError` with VAULT_FORMAT."""
    limits = JsonLimits(max_bytes=MAX_HEADER_BYTES, max_depth=2)
    value = parse_json(raw, what=_WHAT, reason=Reason.VAULT_FORMAT, limits=limits)
    members = Members(value, what=_WHAT, reason=Reason.VAULT_FORMAT)
    members.choice("type", (_TYPE,))
    try:
        lock = _parse_lock(members)
    except ValueError as error:
        raise FormatError(
            f"{_WHAT}: {error}", reason=Reason.VAULT_FORMAT, clause=_CLAUSE
        ) from error
    wrapped = members.base64("wrapped")
    if len(wrapped) != WRAP_SALT_BYTES + KEY_BYTES + TAG_BYTES:
        members.refuse("wrapped does not have the size of a wrapped key")
    members.end()
    return Header(lock, wrapped)


def _parse_lock(members: Members) -> Lock:
    kind = members.choice("lock", ("file", "passphrase", "shares"))
    if kind == "file":
        return FileLock()
    if kind == "shares":
        return ShareLock(members.integer("threshold"), members.integer("count"))
    return PassphraseLock(
        members.hexes("salt", SALT_BYTES),
        PassphraseCost(
            memory_kib=members.integer("memory_kib"),
            passes=members.integer("passes"),
            lanes=members.integer("lanes"),
        ),
    )


def lock_master(master: bytes, lock: Lock, *, key: bytes, salt: bytes) -> Header:
    """
    Return the header of a store whose `master` key (32 bytes) `lock` guards.

    `key` is the key-encryption key that `lock` stands for, `salt` 32 fresh random bytes. Locking
    the master key of an opened header again under another `lock` is the way to change locks.
    """
    if len(master) != KEY_BYTES:
        raise ValueError(f"a master key has {KEY_BYTES} bytes")
    return Header(lock, seal_salted(key, info=_info(lock), salt=salt, plaintext=master))


def open_master(header: Header, *, key: bytes) -> bytes:
    """
    Return the master key.

    Raises `ConfigurationError` where `key` does not open it: another key, or a header that was
    changed since it was written; which of the two cannot be told.
    """
    try:
        return open_salted(key, info=_info(header.lock), sealed=header.wrapped)
    except OpenError as error:
        raise ConfigurationError(
            f"{_WRONG[type(header.lock)]}. Or the header of the store was damaged: then restore a "
            "backup (confide broker restore)"
        ) from error


def _info(lock: Lock) -> bytes:
    return _INFO + jcs(lock.members())
