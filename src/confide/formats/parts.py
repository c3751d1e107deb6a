"""What several readers share: bounded inflating, one document of a capture, lists of devices.

Clauses: docs/protocols/services.md §3. Everything here is hostile bytes; nothing is believed.
"""

from __future__ import annotations

import re
import zlib
from base64 import b64encode
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from confide.errors import FormatError, Reason
from confide.wire.evidence import GpuEvidence
from confide.wire.json import JsonLimits, JsonValue, Members, b64decode, parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.wire.service import Capture

__all__ = [
    "DOCUMENT_LIMITS",
    "MAX_DEVICES",
    "gunzip",
    "only_document",
    "optional_document",
    "parse_device",
    "parse_object",
    "pem_certificate",
    "refuse",
]

_REASON: Final = Reason.SERVICE_FORMAT
_CLAUSE: Final = "docs/protocols/services.md#3"
# Precedent: a document with eight GPUs and all collateral has less than 1 MiB.
DOCUMENT_LIMITS: Final = JsonLimits(max_bytes=16 << 20, max_depth=32)
# From: nvidia.md §7 step 1: at most 16 devices.
MAX_DEVICES: Final = 16
_MAX_CHAIN_BYTES: Final = 64 * 1024
# From: nvidia.md §1.3: a device report has at most 0x2000 bytes.
_MAX_REPORT_BYTES: Final = 0x2000
_NONCE: Final = re.compile(r"(?:0x)?([0-9a-fA-F]{64})\Z")


def refuse(what: str, *, clause: str = _CLAUSE, offset: int = -1) -> NoReturn:
    """Raise the `FormatError` of a reader."""
    raise FormatError(what, reason=_REASON, clause=clause, offset=offset)


def parse_object(raw: bytes, *, what: str) -> dict[str, JsonValue]:
    """Parse one JSON object strictly. Raises `FormatError`."""
    value = parse_json(raw, what=what, reason=_REASON, limits=DOCUMENT_LIMITS)
    if not isinstance(value, dict):
        refuse(f"{what}: not a JSON object")
    return value


def gunzip(raw: bytes, *, what: str, max_bytes: int) -> bytes:
    """
    Inflate one gzip member of at most `max_bytes`, checksum included, and nothing after it.

    Raises `FormatError`, before more than `max_bytes` + 1 bytes were made.
    """
    # From: zlib: 16 + 15 window bits is gzip alone, neither raw deflate nor zlib.
    inflater = zlib.decompressobj(wbits=31)
    try:
        found = inflater.decompress(raw, max_bytes + 1)
    except zlib.error as error:
        raise FormatError(f"{what}: not gzip", reason=_REASON, clause="RFC 1952 §2.3") from error
    if len(found) > max_bytes:
        refuse(f"{what}: inflates to more than {max_bytes} bytes")
    if not inflater.eof or inflater.unused_data:
        refuse(f"{what}: gzip that is cut, or has bytes after its end", clause="RFC 1952 §2.3")
    return found


def only_document(capture: Capture, names: Sequence[str], *, what: str) -> bytes:
    """
    Return the main document: the first of `names` that is there, else the only document.

    A file given by hand has whatever name it has. Raises `FormatError` where none qualifies.
    """
    for name in names:
        if name in capture.documents:
            return capture.documents[name]
    if len(capture.documents) != 1:
        refuse(f"{what}: {len(capture.documents)} documents and none is named {names[0]}")
    return next(iter(capture.documents.values()))


def optional_document(capture: Capture, name: str) -> bytes | None:
    """Return the document `name`, None where it was not captured."""
    return capture.documents.get(name)


def pem_certificate(der: bytes) -> bytes:
    """Return `der` as one PEM block; bytes that are PEM already stay what they are."""
    if der.startswith(b"-----BEGIN CERTIFICATE-----"):
        return der if der.endswith(b"\n") else der + b"\n"
    text = b64encode(der)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join((b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""))


def parse_device(
    value: JsonValue, *, what: str, kind: Literal["gpu", "switch"] | None = None
) -> tuple[GpuEvidence, bytes | None]:
    """
    Parse one entry `{arch?, nonce?, evidence, certificate, …}` of NVIDIA's evidence list.

    Returns the device and the nonce that the entry names. `kind` is taken from `arch` where it is
    None: LS10 is a switch, anything else is presented as a GPU. Unknown members are tolerated, as
    the token service tolerates them. Raises `FormatError`.
    """
    members = Members(value, what=what, reason=_REASON)
    arch = members.text("arch", max_chars=32) if members.has("arch") else ""
    nonce = None
    if members.has("nonce") and not members.null("nonce"):
        match = _NONCE.match(members.text("nonce", max_chars=66))
        if match is None:
            members.refuse("nonce is not 32 bytes of hex")
        nonce = bytes.fromhex(match.group(1))
    report = _bounded(members, "evidence", what=what, max_bytes=_MAX_REPORT_BYTES)
    chain = _bounded(members, "certificate", what=what, max_bytes=_MAX_CHAIN_BYTES)
    if kind is None:
        kind = "switch" if arch.upper() == "LS10" else "gpu"
    return GpuEvidence(report, chain, kind), nonce


def _bounded(members: Members, name: str, *, what: str, max_bytes: int) -> bytes:
    text = members.text(name, max_chars=(max_bytes + 2) // 3 * 4)
    raw = b64decode(text, what=f"{what}: {name}", reason=_REASON)
    if not 0 < len(raw) <= max_bytes:
        members.refuse(f"{name} is empty or longer than {max_bytes} bytes")
    return raw
