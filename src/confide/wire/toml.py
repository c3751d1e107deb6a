"""The one place where TOML is read: what people write, bounded like everything else.

TOML 1.0 through the standard library, which bounds nothing: deep nesting ends in its recursion
limit, a key of many parts takes quadratic time and memory, a long number is a plain `ValueError`.
Size, nesting and key parts are counted before it runs. No schema and no policy.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

from confide.errors import FormatError

if TYPE_CHECKING:
    from confide.errors import Reason
    from confide.wire.json import JsonValue

__all__ = ["parse_toml"]

_CLAUSE = "TOML 1.0"
# Our documents nest three deep and write keys of one or two parts.
_MAX_DEPTH = 32
_MAX_DOTS = 32
# From: TOML 1.0 §String, §Comment. Possessive, so linear. What is left has dots in keys and
# numbers alone, and brackets that nest.
_TEXT = re.compile(
    r'"""(?:[^"\\]++|\\.|"{1,2}+(?!"))*+"{3,5}'
    r"|'''(?:[^']++|'{1,2}+(?!'))*+'{3,5}"
    r'|"(?:[^"\\\n]++|\\.)*+"'
    r"|'[^'\n]*+'"
    r"|#[^\n]*+",
    re.DOTALL,
)


def parse_toml(text: str, *, what: str, reason: Reason, max_chars: int) -> dict[str, JsonValue]:
    """
    Parse `text` of at most `max_chars` characters; `what` and `reason` go into the error.

    Values may be TOML dates and infinities, which no typed reader accepts. Raises `FormatError`.
    """
    if len(text) > max_chars:
        raise _refusal(f"{what}: {len(text)} characters, at most {max_chars}", reason)
    _require_plain(_TEXT.sub('""', text), what=what, reason=reason)
    try:
        value: dict[str, JsonValue] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _refusal(f"{what}: not TOML: {error}", reason) from error
    except ValueError as error:
        raise _refusal(f"{what}: a number that is too long", reason) from error
    return value


def _require_plain(structure: str, *, what: str, reason: Reason) -> None:
    depth = 0
    for line in structure.split("\n"):
        if line.count(".") > _MAX_DOTS:
            raise _refusal(f"{what}: a key of more than {_MAX_DOTS} parts", reason)
        for char in line:
            if char in "[{":
                depth += 1
            elif char in "]}":
                depth -= 1
            if depth > _MAX_DEPTH:
                raise _refusal(f"{what}: nested deeper than {_MAX_DEPTH}", reason)


def _refusal(why: str, reason: Reason) -> FormatError:
    return FormatError(why, reason=reason, clause=_CLAUSE)
