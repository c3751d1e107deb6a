"""Reading the JSON of others: what several services write in their own loose way, read strictly.

Clauses: docs/protocols/near.md §1, docs/protocols/aci.md §1. Everything is hostile and every
refusal is a `FormatError` with SERVICE_FORMAT that names the place. Letter case of hex carries no
meaning here, because only the bytes are compared; prefixes, blanks and odd lengths are refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from confide.errors import Reason
from confide.formats.parts import only_document
from confide.wire.json import JsonLimits, JsonValue, Members, parse_json

if TYPE_CHECKING:
    from confide.wire.service import Capture

__all__ = [
    "MAX_LAUNCH_BYTES",
    "MAX_REPORT_BYTES",
    "hex_bytes",
    "json_value",
    "launch_bytes",
    "object_of",
    "present",
    "report_object",
]

_REASON: Final = Reason.SERVICE_FORMAT
# Precedent: a report of NEAR AI with eight GPUs is 230 to 351 kB.
MAX_REPORT_BYTES: Final = 4 << 20
# From: dstack.md §6: an app-compose is at most 256 kB.
MAX_LAUNCH_BYTES: Final = 256 * 1024
_MAX_DEPTH: Final = 32
# One class repeated, and the length looked at apart: linear whatever the text.
_HEX: Final = re.compile(r"[0-9a-fA-F]*\Z")


def object_of(value: JsonValue, what: str) -> Members:
    """Return `value` as the members of the object called `what`."""
    return Members(value, what=what, reason=_REASON)


def report_object(capture: Capture, *, what: str) -> dict[str, JsonValue]:
    """Return the JSON object in the document `report` (or in the only one) of `capture`."""
    raw = only_document(capture, ("report",), what=what)
    limits = JsonLimits(max_bytes=MAX_REPORT_BYTES, max_depth=_MAX_DEPTH)
    value = parse_json(raw, what=what, reason=_REASON, limits=limits)
    if not isinstance(value, dict):
        object_of(value, what).refuse("an object was expected")
    return value


def present(members: Members, name: str) -> bool:
    """Whether `name` is there and not null; a null is consumed."""
    return members.has(name) and not members.null(name)


def hex_bytes(members: Members, name: str, *sizes: int, prefix: str = "") -> bytes:
    """
    Return member `name`: `prefix`, then hex of one of `sizes` bytes (any size where none is given).

    Letter case carries no meaning.
    """
    value = members.value(name)
    if not isinstance(value, str) or not value.startswith(prefix):
        members.refuse(f"{name} is not hex in a string" + (f" after {prefix}" if prefix else ""))
    digits = value[len(prefix) :]
    if len(digits) % 2 or not _HEX.match(digits):
        members.refuse(f"{name} is not hex in whole bytes" + (f" after {prefix}" if prefix else ""))
    if sizes and len(digits) // 2 not in sizes:
        members.refuse(f"{name} is not {' or '.join(map(str, sizes))} bytes of hex")
    return bytes.fromhex(digits)


def json_value(members: Members, name: str, *, what: str) -> JsonValue:
    """Return member `name`: an object or array, or the JSON of one in a string."""
    value = members.value(name)
    if isinstance(value, str):
        limits = JsonLimits(max_bytes=MAX_REPORT_BYTES, max_depth=_MAX_DEPTH)
        try:
            raw = value.encode("utf-8")
        except UnicodeEncodeError:  # pragma: no cover - the reader of the report refuses it
            members.refuse(f"{name} is not Unicode text")
        value = parse_json(raw, what=f"{what}: {name}", reason=_REASON, limits=limits)
    if not isinstance(value, dict | list):
        members.refuse(f"{name} is neither an object nor an array, nor one of them in a string")
    return value


def launch_bytes(members: Members, name: str) -> bytes:
    """Return the exact UTF-8 bytes of the launch document in the string `name`."""
    value = members.value(name)
    if not isinstance(value, str):
        members.refuse(f"{name} is not a string")
    raw = value.encode("utf-8")
    if not 0 < len(raw) <= MAX_LAUNCH_BYTES:
        members.refuse(f"{name} is not a document of at most {MAX_LAUNCH_BYTES} bytes")
    return raw
