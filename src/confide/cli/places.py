"""What every verb that touches this machine starts from: paths, clock, the files it was given."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.paths import Paths
from confide.cli.screen import printable
from confide.errors import ConfigurationError, FormatError
from confide.expectation import (
    AgentSpec,
    Expectation,
    GpuSpec,
    HardwareSpec,
    Limits,
    ModelSpec,
    NodeSpec,
    parse_expectation,
    parse_expectation_toml,
)
from confide.reasons import Reason
from confide.trust.roots import VENDOR_ROOTS, parse_roots_file
from confide.wire.keyset import parse_time

if TYPE_CHECKING:
    from datetime import datetime

    from confide.trust.roots import Roots

__all__ = [
    "Places",
    "read_bounded",
    "read_expectation",
    "read_moment",
    "read_roots",
    "read_start",
]

# From: wire/json.py, the bound on every document we parse.
_MAX_BYTES = 16 * 1024 * 1024
_SECTIONS = {
    "hardware": HardwareSpec,
    "gpu": GpuSpec,
    "agent_node": NodeSpec,
    "model_node": NodeSpec,
    "agent": AgentSpec,
    "model": ModelSpec,
    "limits": Limits,
}


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


def read_expectation(path: Path) -> Expectation:
    """Read an Expectation: TOML by its suffix, canonical JSON otherwise. Raises `FormatError`."""
    raw = read_bounded(path, "Expectation")
    if path.suffix == ".toml":
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"Expectation {path} is not UTF-8") from error
        return _from_toml(text)
    # One newline at the end is an editor's or a shell's; the digest is over what stands before it.
    return parse_expectation(raw.removesuffix(b"\n"))


def _from_toml(text: str) -> Expectation:
    try:
        return parse_expectation_toml(text)
    except FormatError as error:
        unknown = _unknown_keys(text)
        if not unknown:
            raise
        # The user's own file: here, and only here, its words may stand in a message.
        what = f"Expectation: no such field: {', '.join(unknown)}"
        raise FormatError(what, reason=error.reason, clause=error.clause) from error


def _unknown_keys(text: str) -> list[str]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return []
    top = {field.name for field in fields(Expectation)} | {"type"}
    unknown = [key for key in document if key not in top]
    for section, kind in _SECTIONS.items():
        members = document.get(section)
        known = {field.name for field in fields(kind)}
        if isinstance(members, dict):
            unknown += [f"{section}.{key}" for key in members if key not in known]
    return [printable(key, max_chars=80) for key in unknown[:8]]


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
