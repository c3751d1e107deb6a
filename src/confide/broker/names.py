"""Names of what a broker holds: `<repository>/<type>/<tag>`. Pure.

Clause: docs/protocols/broker.md §1.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.errors import FormatError
from confide.expectation.broker import is_resource_part

if TYPE_CHECKING:
    from confide.errors import Reason

__all__ = ["STATE", "Resource", "parse_repository", "parse_resource"]

# The type whose resources hold no value that an owner puts: state.md 1.3.
STATE: Final = "state"
_CLAUSE: Final = "docs/protocols/broker.md#1.1"


@dataclass(frozen=True, slots=True)
class Resource:
    """The three parts of a name. Only `parse_resource` has looked at them."""

    repository: str
    type: str
    tag: str

    def __str__(self) -> str:
        return f"{self.repository}/{self.type}/{self.tag}"


def parse_repository(text: str, *, reason: Reason) -> str:
    """Return `text` where it can name a repository. Raises `FormatError` with `reason`."""
    if not is_resource_part(text):
        raise FormatError("not a name of a repository", reason=reason, clause=_CLAUSE)
    return text


def parse_resource(text: str, *, reason: Reason) -> Resource:
    """Return the parts of a resource's name. Raises `FormatError` with `reason`."""
    parts = text.split("/")
    if len(parts) != 3 or not all(is_resource_part(part) for part in parts):
        raise FormatError("not a name of a resource", reason=reason, clause=_CLAUSE)
    return Resource(*parts)
