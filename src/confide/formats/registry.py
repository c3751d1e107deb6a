"""Every format that this verifier reads, and which one a document is of.

Clauses: docs/protocols/services.md §3. Recognition looks at exact bytes; it is a label and proves
nothing. A document is of one format or of none: where two would take it, none gets it.

Readers are loaded when they are asked for: a bundle names its format, and needs one of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from confide.errors import FormatError, Reason, Unsupported

if TYPE_CHECKING:
    from confide.formats.format import Format
    from confide.wire.service import Capture, Evidence

__all__ = ["NAMES", "every_format", "find_format", "read", "recognise"]

_CLAUSE: Final = "docs/protocols/services.md#3"
# Precedent: the largest genuine capture, with eight GPUs and a compose, has below 2 MiB.
_MAX_DOCUMENTS: Final = 32
_MAX_DOCUMENT_BYTES: Final = 16 << 20
_MAX_CAPTURE_BYTES: Final = 32 << 20
_MAX_NAME: Final = 128

# The module of each format, which has its `FORMAT`; in this order they are asked and named.
_HOMES: Final = {
    "near": "confide.formats.near",
    "aci": "confide.formats.aci",
    "dstack": "confide.formats.dstack",
    "tinfoil": "confide.formats.tinfoil",
    "trustee": "confide.formats.trustee",
    "confide": "confide.formats.node",
    "bare": "confide.formats.bare",
}
NAMES: Final = tuple(_HOMES)


def every_format() -> tuple[Format, ...]:
    """Return every format, in the order of `NAMES`."""
    return tuple(find_format(name) for name in NAMES)


def find_format(name: str) -> Format:
    """Return the format called `name`. Raises `Unsupported` for another name."""
    if name not in _HOMES:
        raise Unsupported(f"a format that this verifier does not read; it reads {', '.join(NAMES)}")
    found: Format = import_module(_HOMES[name]).FORMAT
    return found


def recognise(document: bytes) -> Format:
    """
    Return the one format that takes `document`.

    Raises `FormatError` where no format takes it or more than one does.
    """
    if len(document) > _MAX_DOCUMENT_BYTES:
        raise _refusal(f"evidence: {len(document)} bytes, at most {_MAX_DOCUMENT_BYTES}")
    found = [known for known in every_format() if known.recognise(document)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(known.name for known in found)
        raise _refusal(f"evidence: could be any of {names}; say which")
    tried = ", ".join(NAMES)
    raise _refusal(f"evidence: {len(document)} bytes of no known format (tried {tried})")


def read(capture: Capture) -> Evidence:
    """
    Read a capture: with the reader that it names, else with the one that its first document names.

    **Does not verify** anything. Raises `FormatError`, and `Unsupported` for formats, versions and
    machines that are not judged here.
    """
    _require_bounds(capture)
    if capture.format:
        return find_format(capture.format).read(capture)
    return recognise(next(iter(capture.documents.values()))).read(capture)


def _require_bounds(capture: Capture) -> None:
    documents = capture.documents
    if not 0 < len(documents) <= _MAX_DOCUMENTS:
        raise _refusal(
            f"capture: {len(documents)} documents, at least 1 and at most {_MAX_DOCUMENTS}"
        )
    if any(len(name) > _MAX_NAME for name in documents):
        raise _refusal(f"capture: a name of more than {_MAX_NAME} characters")
    sizes = [len(raw) for raw in documents.values()]
    if max(sizes) > _MAX_DOCUMENT_BYTES or sum(sizes) > _MAX_CAPTURE_BYTES:
        raise _refusal(
            f"capture: {sum(sizes)} bytes; at most {_MAX_DOCUMENT_BYTES} in one document and "
            f"{_MAX_CAPTURE_BYTES} in all"
        )


def _refusal(why: str) -> FormatError:
    return FormatError(why, reason=Reason.SERVICE_FORMAT, clause=_CLAUSE)
