"""The key that locks a broker's master key: out of a file, a passphrase, or shares (SLIP-0039).

Clause: docs/protocols/broker.md §7.3. Files that hold secrets belong to this user and nobody else
reads them; otherwise they are refused. No message repeats a word of a passphrase or of a share.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from typing import TYPE_CHECKING, Final

from shamir_mnemonic import (  # type: ignore[import-untyped]
    MnemonicError,
    Share,
    combine_mnemonics,
    generate_mnemonics,
)

from confide.broker.master import KEY_BYTES
from confide.crypto.argon2 import stretch
from confide.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from confide.broker.master import PassphraseLock, ShareLock

__all__ = [
    "join_shares",
    "make_secret_file",
    "passphrase_key",
    "read_key_file",
    "read_secret_text",
    "split_key",
]

_MAX_TEXT_BYTES: Final = 4096
_MIN_PASSPHRASE_CHARS: Final = 12
# The key is random, so stretching it (SLIP-0039 `e`) buys nothing; a share that asks for more is
# none of ours, and would cost its reader up to 2^15 times as much.
_STRETCH: Final = 0


def read_key_file(path: Path) -> bytes:
    """Return the key in the file `path`. Raises `ConfigurationError`."""
    raw = _read_private(path, "key file", KEY_BYTES)
    if len(raw) != KEY_BYTES:
        raise ConfigurationError(
            f"key file {path} does not hold exactly {KEY_BYTES} bytes; give the file that "
            "confide broker made"
        )
    return raw


def read_secret_text(path: Path, what: str) -> str:
    """Return the text in `path`, which is `what`, without its last line end."""
    raw = _read_private(path, what, _MAX_TEXT_BYTES)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{what} {path} is not UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r")


def make_secret_file(path: Path, secret: bytes) -> None:
    """Write `secret` to a new file with mode 0600, on disk when this returns; never over one."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(path, "xb", opener=lambda name, _: os.open(name, flags, 0o600)) as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if path.is_file():
            raise ConfigurationError(f"{path} exists; a secret is never overwritten") from error
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from error


def passphrase_key(passphrase: str, lock: PassphraseLock) -> bytes:
    """
    Return the key of `passphrase`, normalised (NFC) so that every keyboard gives the same bytes.

    Raises `ConfigurationError` for one of less than 12 characters.
    """
    normal = unicodedata.normalize("NFC", passphrase)
    if len(normal) < _MIN_PASSPHRASE_CHARS:
        raise ConfigurationError(f"a passphrase has at least {_MIN_PASSPHRASE_CHARS} characters")
    try:
        raw = normal.encode()
    except UnicodeEncodeError:
        raise ConfigurationError("the passphrase is not Unicode text") from None
    return stretch(raw, salt=lock.salt, cost=lock.cost)


def split_key(key: bytes, lock: ShareLock) -> tuple[str, ...]:
    """Return the shares of `key`, lines of 33 words; fewer than the threshold say nothing of it."""
    [shares] = generate_mnemonics(
        1, [(lock.threshold, lock.count)], key, iteration_exponent=_STRETCH
    )
    return tuple(shares)


def join_shares(texts: Sequence[str], lock: ShareLock) -> bytes:
    """
    Return the key whose shares `texts` are, exactly as many as the threshold says.

    Raises `ConfigurationError` that says which share is wrong and why. Shares of another store
    may join to a key; it does not open this one.
    """
    shares = [_parse_share(text, number, lock) for number, text in enumerate(texts, 1)]
    for number, share in enumerate(shares, 1):
        if share.identifier != shares[0].identifier:
            raise ConfigurationError(f"share {number} is of another set than share 1")
        if share.index in {earlier.index for earlier in shares[: number - 1]}:
            raise ConfigurationError(f"share {number} was given before; give a different one")
    if len(shares) != lock.threshold:
        raise ConfigurationError(
            f"{len(shares)} shares were given; this store opens with exactly {lock.threshold} of "
            f"its {lock.count}"
        )
    try:
        # From the words, each of which was looked at above.
        key: bytes = combine_mnemonics([share.mnemonic() for share in shares])
    except MnemonicError:
        # Its text holds words of the shares; it is not passed on.
        raise ConfigurationError(
            "the shares do not fit each other: at least one was altered or is of another set"
        ) from None
    return key


def _parse_share(text: str, number: int, lock: ShareLock) -> Share:
    try:
        share = Share.from_mnemonic(text)
    except MnemonicError:
        raise ConfigurationError(
            f"share {number} is no share: a word is missing or misspelt; copy it again"
        ) from None
    expected = (_STRETCH, 1, 1, lock.threshold, KEY_BYTES)
    found = (
        share.iteration_exponent,
        share.group_threshold,
        share.group_count,
        share.member_threshold,
        len(share.value),
    )
    if found != expected or share.index >= lock.count or not share.extendable:
        raise ConfigurationError(f"share {number} is not of this store")
    return share


def _read_private(path: Path, what: str, max_bytes: int) -> bytes:
    """Read at most `max_bytes` + 1 bytes of a file or pipe that is this user's alone."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            _require_private(os.fstat(file.fileno()), path, what)
            os.set_blocking(file.fileno(), True)
            return file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        # ValueError: a name with a zero byte in it.
        why = getattr(error, "strerror", None) or "no such name is possible"
        raise ConfigurationError(f"{what} {path} cannot be read: {why}") from error


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _require_private(found: os.stat_result, path: Path, what: str) -> None:
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)):
        raise ConfigurationError(f"{what} {path} is neither a file nor a pipe")
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigurationError(f"{what} {path} belongs to another user")
    if found.st_mode & 0o077:
        raise ConfigurationError(
            f"{what} {path} is open to others (mode {found.st_mode & 0o777:04o}); "
            f"chmod 600 {path}, and change the secret where somebody may have read it"
        )
