"""Expectations as a command is given them: a file, and what a misspelt field may have meant."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from typing import TYPE_CHECKING

from confide.cli.places import read_bounded
from confide.cli.screen import printable
from confide.errors import ConfigurationError, FormatError
from confide.expectation import (
    AgentSpec,
    BrokerSpec,
    Expectation,
    GpuSpec,
    HardwareSpec,
    Limits,
    ModelSpec,
    NodeSpec,
    parse_expectation,
    parse_expectation_toml,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_expectation"]

_SECTIONS = {
    "hardware": HardwareSpec,
    "gpu": GpuSpec,
    "agent_node": NodeSpec,
    "model_node": NodeSpec,
    "agent": AgentSpec,
    "model": ModelSpec,
    "broker": BrokerSpec,
    "limits": Limits,
}


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
