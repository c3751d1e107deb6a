"""Choosing a lock for a store's master key: a key file, a passphrase, or shares to hand out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from confide.adapters.entropy import SystemEntropy
from confide.adapters.master_key import (
    make_secret_file,
    passphrase_key,
    read_key_file,
    read_secret_text,
    split_key,
)
from confide.broker.master import KEY_BYTES, FileLock, PassphraseLock, ShareLock
from confide.cli.broker_unlock import ask
from confide.cli.screen import fields, heading
from confide.crypto.argon2 import SALT_BYTES, PassphraseCost
from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from confide.broker.master import Lock
    from confide.cli.screen import Screen

__all__ = ["LockChoice", "NewLock", "make_lock"]

_SPLIT = re.compile(r"([0-9]{1,2})/([0-9]{1,2})\Z")
_HAND_OUT = (
    "Hand each share to another person, and keep none here. They are shown this once; without "
    "enough of them nobody opens the store."
)


@dataclass(frozen=True, slots=True)
class LockChoice:
    """
    What the command line says about a new lock; `prefix` is what its options begin with.

    `ConfigurationError` unless it says one thing.
    """

    prefix: str
    master: Path | None
    passphrase: bool
    passphrase_file: Path | None
    split: str
    shares_out: Path | None

    def __post_init__(self) -> None:
        """Refuse none, two at once, and what goes with none of them."""
        given = (self.master, self.passphrase, self.passphrase_file, self.split)
        if sum(bool(each) for each in given) != 1:
            names = ("master FILE", "passphrase", "passphrase-file FILE", "split K/N")
            options = ", ".join(self.prefix + name for name in names)
            raise ConfigurationError(f"say how the master key is locked, in one way: {options}")
        if self.shares_out is not None and not self.split:
            raise ConfigurationError(f"--shares-out goes with {self.prefix}split")


@dataclass(frozen=True, slots=True)
class NewLock:
    """A lock and its key."""

    lock: Lock
    key: bytes = field(repr=False)


def make_lock(choice: LockChoice, screen: Screen) -> NewLock:
    """
    Make the lock that `choice` says, and give its key or shares to who is to keep them.

    They are written or shown before anything is locked with them. Raises `ConfigurationError`.
    """
    if choice.master is not None:
        return NewLock(FileLock(), _file_key(choice.master))
    if choice.split:
        return _shares(choice, screen)
    lock = PassphraseLock(SystemEntropy().token(SALT_BYTES), PassphraseCost())
    return NewLock(lock, passphrase_key(_passphrase(choice), lock))


def _file_key(path: Path) -> bytes:
    if not path.exists():
        make_secret_file(path, SystemEntropy().token(KEY_BYTES))
    return read_key_file(path)


def _passphrase(choice: LockChoice) -> str:
    if choice.passphrase_file is not None:
        return read_secret_text(choice.passphrase_file, "passphrase file")
    instead = f"{choice.prefix}passphrase-file FILE"
    first = ask("New passphrase", instead)
    if ask("The same again", instead) != first:
        raise ConfigurationError("the two passphrases differ; nothing was locked")
    return first


def _shares(choice: LockChoice, screen: Screen) -> NewLock:
    found = _SPLIT.match(choice.split)
    try:
        lock = ShareLock(*(int(part) for part in found.groups())) if found else None
    except ValueError:
        lock = None
    if lock is None:
        raise ConfigurationError(
            f"{choice.prefix}split is K/N, like 2/3: K of N shares open the store, 2 to 16"
        )
    if choice.shares_out is None and not screen.live:
        raise ConfigurationError("shares are shown on a terminal only; give --shares-out DIR")
    key = SystemEntropy().token(KEY_BYTES)
    shares = split_key(key, lock)
    if choice.shares_out is None:
        rows = [(f"share {number}", share) for number, share in enumerate(shares, 1)]
        screen.show(heading("shares"), fields(rows), Text(f"\n{_HAND_OUT}\n", style="bold"))
    else:
        for number, share in enumerate(shares, 1):
            path = choice.shares_out / f"share-{number}-of-{lock.count}"
            make_secret_file(path, share.encode() + b"\n")
    return NewLock(lock, key)
