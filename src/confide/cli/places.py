"""What every verb that touches this machine starts from: paths, clock, the files it was given."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.paths import Paths
from confide.errors import ConfigurationError, FormatError
from confide.reasons import Reason
from confide.trust.roots import VENDOR_ROOTS, parse_roots_file
from confide.wire.keyset import parse_time

if TYPE_CHECKING:
    from datetime import datetime

    from confide.crypto.cosign import NoteSigner
    from confide.trust.roots import Roots

__all__ = [
    "Places",
    "read_bounded",
    "read_moment",
    "read_roots",
    "read_signer",
    "read_start",
    "require_no_password",
]

# From: wire/json.py, the bound on every document we parse.
_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Places:
    """Paths of this user, the environment that nodes inherit, the clock, randomness."""

    paths: Paths
    environment: dict[str, str]
    clock: SystemClock
    entropy: SystemEntropy

    @classmethod
    def here(cls) -> Places:
        """Read the environment, once."""
        environment = dict(os.environ)  # noqa: TID251 - the command line reads it once
        return cls(Paths.from_environment(environment), environment, SystemClock(), SystemEntropy())


def require_no_password(place: str, option: str) -> None:
    """Raise `ConfigurationError` for the URL of a database that holds a password."""
    # Whatever stands before the last @ of a URL is a user and, after a colon, a password.
    if ":" in place.partition("://")[2].rpartition("@")[0]:
        raise ConfigurationError(
            "a password on the command line is seen by every user of this machine; take it out "
            f"of {option} and set PGPASSWORD"
        )


def read_bounded(path: Path, what: str) -> bytes:
    """Read `path`, which is `what`; `ConfigurationError` where there is nothing fit to read."""
    raw = read_start(path, what, _MAX_BYTES)
    if len(raw) > _MAX_BYTES:
        raise ConfigurationError(f"{what} {path} is larger than {_MAX_BYTES} bytes")
    return raw


def read_start(path: Path, what: str, max_bytes: int) -> bytes:
    """
    Read at most `max_bytes` + 1 bytes of `path`, which is `what`.

    A pipe that nobody writes to is empty, instead of waiting for ever. Raises `ConfigurationError`.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            os.set_blocking(file.fileno(), True)
            return file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        # ValueError: a name with a zero byte in it.
        why = getattr(error, "strerror", None) or "no such name is possible"
        raise ConfigurationError(f"{what} {path} cannot be read: {why}".lstrip()) from error


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)


def read_signer(path: Path) -> NoteSigner:
    """Read the key file of a log, a witness or a directory. Raises `FormatError`."""
    from confide.crypto.cosign import load_signer  # noqa: PLC0415 - for those who sign

    raw = read_bounded(path, "key file")
    return load_signer(raw.decode("utf-8", "replace").removesuffix("\n"))


def read_roots(text: str) -> Roots:
    """Return `vendor` roots or those of the simulated-roots file at `text`."""
    if text == "vendor":
        return VENDOR_ROOTS
    return parse_roots_file(read_bounded(Path(text), "roots file"))


def read_moment(text: str) -> datetime:
    """Return the UTC time that an option gives; `ConfigurationError` for anything else."""
    try:
        return parse_time(text, what="--at", reason=Reason.POLICY_FORMAT)
    except FormatError as error:
        raise ConfigurationError("--at is `now` or a UTC time like 2026-11-22T12:00:00Z") from error
