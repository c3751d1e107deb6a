"""Policies as a command names them: a profile or a file; what a misspelt one may have meant."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from confide.appraisal.policy_file import MAX_POLICY_CHARS, parse_policy
from confide.appraisal.service_policy import rules_of
from confide.appraisal.service_profiles import PROFILES, STRICT
from confide.cli.places import read_bounded
from confide.cli.screen import printable
from confide.errors import ConfigurationError, FormatError, Reason
from confide.wire.toml import parse_toml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from confide.appraisal.service_policy import Policy

__all__ = ["read_policy"]

_CLAUSE = "docs/protocols/policy.md#1"
_TOP = ("type", "name", "profile", "unsafe_simulated")
_MAX_HINTS = 4


def read_policy(name: str) -> Policy:
    """
    Return a profile by its name, or the policy in a file.

    Raises `ConfigurationError` where there is no such file, `FormatError` naming the place.
    """
    if name in PROFILES:
        return PROFILES[name]
    try:
        raw = read_bounded(Path(name), "policy")
    except ConfigurationError as error:
        error.add_note(f"a policy is a file, or one of the profiles {' and '.join(PROFILES)}")
        raise
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            "policy: not UTF-8", reason=Reason.POLICY_FORMAT, clause=_CLAUSE, offset=error.start
        ) from error
    if len(text) > MAX_POLICY_CHARS:
        raise ConfigurationError(f"policy {name} is larger than {MAX_POLICY_CHARS} characters")
    try:
        return parse_policy(text)
    except FormatError as error:
        meant = _misspelt(text)
        if not meant:
            raise
        # The caller's own file: here, and only here, its words may stand in a message.
        what = f"policy: {'; '.join(meant[:_MAX_HINTS])}"
        raise FormatError(what, reason=error.reason, clause=error.clause) from error


def _misspelt(text: str) -> list[str]:
    """Return one line for each word of the file that no policy has."""
    try:
        document = parse_toml(
            text, what="policy", reason=Reason.POLICY_FORMAT, max_chars=MAX_POLICY_CHARS
        )
    except FormatError:
        return []
    sections = STRICT.sections()
    found: list[str] = []
    for key, value in document.items():
        if key in sections and isinstance(value, dict):
            found += _misspelt_in(key, value, sections[key])
        elif key not in _TOP and key not in sections:
            found.append(_line("no section or field", key, (*sections, *_TOP)))
    return found


def _misspelt_in(name: str, members: Mapping[str, object], section: object) -> list[str]:
    rules = rules_of(section)
    found: list[str] = []
    for field, value in members.items():
        if field not in rules:
            found.append(_line(f"{name} has no field", field, rules))
            continue
        form = rules[field].values
        if form is not None and form.words and isinstance(value, list):
            found += [
                _line(f"{name}.{field} takes {form.what}, not", item, form.words)
                for item in value
                if isinstance(item, str) and item not in form.words
            ]
    return found


def _line(what: str, word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{what} '{printable(word, max_chars=60)}'{hint}"
