"""The locked requirements of an agent: names, versions, hashes. Pure.

Format: the subset of pip's requirements file that `pip-compile --generate-hashes` writes,
docs/protocols/agent-image.md §2. Options, addresses, editable and unpinned lines are refused:
the lock decides what is installed, wherever the bytes are fetched from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from confide.errors import FormatError, Reason

__all__ = ["LockedRequirement", "canonical_lock", "parse_lock"]

_CLAUSE = "agent-image.md §2"
_REASON = Reason.LOCK_FORMAT
_MAX_BYTES = 4 * 1024 * 1024
_PINNED = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[A-Za-z0-9,._-]+\])?"
    r"==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)\Z"
)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})\Z")


@dataclass(frozen=True, slots=True)
class LockedRequirement:
    """One package: normalised `name` (PEP 503), exact `version`, accepted SHA-256 in hex."""

    name: str
    version: str
    sha256: tuple[str, ...]


def parse_lock(raw: bytes) -> tuple[LockedRequirement, ...]:
    """
    Parse a lock file; every line must be `name==version --hash=sha256:…`.

    Raises `FormatError` with the number of the logical line.
    """
    if len(raw) > _MAX_BYTES:
        raise FormatError(
            f"requirements lock: {len(raw)} bytes, at most {_MAX_BYTES}",
            reason=_REASON,
            clause=_CLAUSE,
        )
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise FormatError(
            "requirements lock: not ASCII", reason=_REASON, clause=_CLAUSE, offset=error.start
        ) from error
    found: dict[str, LockedRequirement] = {}
    for number, line in enumerate(_logical_lines(text), 1):
        requirement = _read_line(line, number)
        if requirement.name in found:
            raise _refusal(number, "the package stands here twice")
        found[requirement.name] = requirement
    return tuple(found[name] for name in sorted(found))


def canonical_lock(requirements: tuple[LockedRequirement, ...]) -> bytes:
    """Return the one spelling of a lock: sorted, no comments. Its SHA-256 names the package set."""
    lines = [
        f"{item.name}=={item.version} "
        + " ".join(f"--hash=sha256:{digest}" for digest in sorted(item.sha256))
        for item in requirements
    ]
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def _logical_lines(text: str) -> list[str]:
    joined = re.sub(r"\\\r?\n", " ", text)
    lines = (re.sub(r"(?:^|\s)#.*$", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]


def _read_line(line: str, number: int) -> LockedRequirement:
    head, *hashes = line.split()
    pinned = _PINNED.match(head)
    if pinned is None:
        raise _refusal(number, "not name==version (no options, addresses or ranges)")
    digests = []
    for word in hashes:
        match = _HASH.match(word)
        if match is None:
            raise _refusal(number, "something that is not --hash=sha256:<hex>")
        digests.append(match.group(1))
    if not digests:
        raise _refusal(number, "no hash")
    # From: PEP 503, normalised names.
    name = re.sub(r"[-_.]+", "-", pinned.group("name")).lower()
    return LockedRequirement(name, pinned.group("version"), tuple(digests))


def _refusal(number: int, why: str) -> FormatError:
    return FormatError(f"requirements lock: line {number}: {why}", reason=_REASON, clause=_CLAUSE)
