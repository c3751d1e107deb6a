"""Saved bundles: what a service presented and what vendors say about it, in one document.

Format: docs/protocols/bundle.md. Bytes to values and back; the documents inside stay byte for byte
what they were. All of it is hostile: a bundle proves nothing until it is verified, and its
`nonce`, `at` and TLS key are only the word of whoever made it.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from confide.errors import FormatError, Reason
from confide.wire.endorsements import Endorsements, SigstoreBundle, SnpEndorsement
from confide.wire.evidence import NvidiaEndorsements, OcspAnswer, RimDocument
from confide.wire.json import JsonValue, Members, b64decode, b64encode, jcs, parse_json
from confide.wire.keyset import format_time, parse_time
from confide.wire.service import Capture

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from typing import TypeVar

    Value = TypeVar("Value")

__all__ = ["decode_bundle", "encode_bundle", "looks_like_bundle"]

_TYPE: Final = "confide/bundle/v1"
_DOC: Final = "docs/protocols/bundle.md"
_REASON = Reason.BUNDLE_FORMAT
# Precedent: wire/json.py, the bound on every document we parse; 8 GPUs with everything have 1 MiB.
_MAX_BYTES: Final = 16 * 1024 * 1024
_MAX_BLOBS: Final = 1024
_MAX_DOCUMENTS: Final = 64
_MAX_ENTRIES: Final = 256
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")


class _Shelf:
    """Blobs by digest, while a document is written."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(self, raw: bytes) -> str:
        name = hashlib.sha256(raw).hexdigest()
        self.blobs[name] = raw
        return name

    def optional(self, raw: bytes | None) -> str | None:
        return None if raw is None else self.put(raw)


class _Blobs:
    """Blobs by digest, while a document is read; remembers which were asked for."""

    def __init__(self, value: JsonValue) -> None:
        if not isinstance(value, dict) or len(value) > _MAX_BLOBS:
            raise _malformed(f"blobs are not a table of at most {_MAX_BLOBS}", 2)
        self._blobs = {name: _blob(name, text) for name, text in value.items()}
        self._left = set(self._blobs)

    def get(self, name: JsonValue) -> bytes:
        if not isinstance(name, str) or name not in self._blobs:
            raise _malformed("a named blob is absent", 2)
        self._left.discard(name)
        return self._blobs[name]

    def optional(self, name: JsonValue) -> bytes | None:
        return None if name is None else self.get(name)

    def end(self) -> None:
        if self._left:
            raise _malformed(f"{len(self._left)} blob(s) that nothing names", 2)


def _malformed(what: str, clause: int) -> FormatError:
    return FormatError(f"bundle: {what}", reason=_REASON, clause=f"{_DOC}#{clause}")


def _blob(name: str, text: JsonValue) -> bytes:
    if not isinstance(text, str):
        raise _malformed("a blob is not text", 2)
    raw = b64decode(text, what="bundle: blob", reason=_REASON)
    if hashlib.sha256(raw).hexdigest() != name:
        raise FormatError(
            "bundle: a blob does not hash to its name",
            reason=Reason.DIGEST_MISMATCH,
            clause=f"{_DOC}#2",
        )
    return raw


def looks_like_bundle(raw: bytes) -> bool:
    """Whether `raw` says that it is a bundle; `decode_bundle` finds out."""
    return b'"confide/bundle/v1"' in raw


def encode_bundle(capture: Capture, endorsements: Endorsements) -> bytes:
    """
    Return the document: equal values, equal bytes.

    Raises `ValueError` for what `decode_bundle` would not read back: a document name outside
    docs/protocols/bundle.md 3, or more than 16 MiB.
    """
    shelf = _Shelf()
    document: dict[str, JsonValue] = {
        "type": _TYPE,
        "capture": _encode_capture(capture, shelf),
        "endorsements": _encode_endorsements(endorsements, shelf),
    }
    document["blobs"] = {name: b64encode(raw) for name, raw in shelf.blobs.items()}
    raw = jcs(document)
    try:
        decode_bundle(raw)
    except FormatError as error:
        raise ValueError(f"not representable as a bundle: {error.what}") from error
    return raw


def _encode_capture(capture: Capture, shelf: _Shelf) -> JsonValue:
    return {
        "format": capture.format,
        "url": capture.url,
        "nonce": None if capture.nonce is None else capture.nonce.hex(),
        "tls_spki_sha256": (
            None if capture.tls_spki_sha256 is None else capture.tls_spki_sha256.hex()
        ),
        "at": None if capture.at is None else format_time(capture.at),
        # An array: the first document is the one that a format is recognised by.
        "documents": [
            {"name": name, "raw": shelf.put(raw)} for name, raw in capture.documents.items()
        ],
    }


def _encode_endorsements(endorsements: Endorsements, shelf: _Shelf) -> JsonValue:
    nvidia = endorsements.nvidia
    return {
        "tdx": [shelf.put(raw) for raw in endorsements.tdx],
        "snp": [
            {
                "leaf": shelf.put(each.leaf_der),
                "chain": shelf.put(each.chain_pem),
                "crl": shelf.optional(each.crl_der),
            }
            for each in endorsements.snp
        ],
        "nvidia": {
            "rims": [{"id": rim.id, "xml": shelf.put(rim.xml)} for rim in nvidia.rims],
            "ocsp": [
                {"certificate": each.certificate_sha256, "der": shelf.put(each.der)}
                for each in nvidia.ocsp
            ],
        },
        "nras_keys": [shelf.put(raw) for raw in endorsements.nras_keys],
        "sigstore": [
            {"artifact": each.sha256.hex(), "bundle": shelf.put(each.bundle)}
            for each in endorsements.sigstore
        ],
    }


def decode_bundle(raw: bytes) -> tuple[Capture, Endorsements]:
    """
    Parse a saved bundle: what was presented, and the endorsements saved with it.

    **Does not check** what the documents inside are, nor that anything in it is true.

    Raises `FormatError`: `bundle-format`, `digest-mismatch`.
    """
    if len(raw) > _MAX_BYTES:
        raise _malformed(f"{len(raw)} bytes, at most {_MAX_BYTES}", 1)
    top = Members(parse_json(raw, what="bundle", reason=_REASON), what="bundle", reason=_REASON)
    top.choice("type", (_TYPE,))
    blobs = _Blobs(top.value("blobs"))
    capture = _parse_capture(top.members("capture"), blobs)
    endorsements = _parse_endorsements(top.members("endorsements"), blobs)
    top.end()
    blobs.end()
    return capture, endorsements


def _parse_capture(members: Members, blobs: _Blobs) -> Capture:
    documents = _each(
        members,
        "documents",
        lambda entry: (entry.text("name"), blobs.get(entry.value("raw"))),
    )
    if not 1 <= len(documents) <= _MAX_DOCUMENTS:
        members.refuse(f"documents are not 1 to {_MAX_DOCUMENTS}")
    if not all(_NAME.match(name) for name, _ in documents):
        members.refuse("a document has a name that is not allowed")
    found = dict(documents)
    _require_distinct(found, len(documents), 3)
    capture = Capture(
        documents=found,
        format=members.text("format", max_chars=64),
        nonce=_optional(members, "nonce", lambda: members.hexes("nonce")),
        url=members.text("url", max_chars=2048),
        tls_spki_sha256=_optional(
            members, "tls_spki_sha256", lambda: members.hexes("tls_spki_sha256", 32)
        ),
        at=_optional(members, "at", lambda: _time(members)),
    )
    members.end()
    return capture


def _optional(members: Members, name: str, read: Callable[[], Value]) -> Value | None:
    return None if members.null(name) else read()


def _time(members: Members) -> datetime:
    return parse_time(members.text("at", max_chars=32), what="bundle: at", reason=_REASON)


def _parse_endorsements(members: Members, blobs: _Blobs) -> Endorsements:
    found = Endorsements(
        tdx=tuple(blobs.get(name) for name in _entries(members, "tdx")),
        snp=_each(members, "snp", lambda entry: _snp(entry, blobs)),
        nvidia=_nvidia(members.members("nvidia"), blobs),
        nras_keys=tuple(blobs.get(name) for name in _entries(members, "nras_keys")),
        sigstore=_each(
            members,
            "sigstore",
            lambda entry: SigstoreBundle(
                sha256=entry.hexes("artifact", 32), bundle=blobs.get(entry.value("bundle"))
            ),
        ),
    )
    members.end()
    return found


def _entries(members: Members, name: str) -> list[JsonValue]:
    return members.items(name, max_items=_MAX_ENTRIES)


def _each(members: Members, name: str, read: Callable[[Members], Value]) -> tuple[Value, ...]:
    found: list[Value] = []
    for item in _entries(members, name):
        entry = Members(item, what=f"bundle: {name}", reason=_REASON)
        found.append(read(entry))
        entry.end()
    return tuple(found)


def _snp(entry: Members, blobs: _Blobs) -> SnpEndorsement:
    return SnpEndorsement(
        leaf_der=blobs.get(entry.value("leaf")),
        chain_pem=blobs.get(entry.value("chain")),
        crl_der=blobs.optional(entry.value("crl")),
    )


def _nvidia(members: Members, blobs: _Blobs) -> NvidiaEndorsements:
    rims = _each(
        members,
        "rims",
        lambda entry: RimDocument(entry.text("id", max_chars=256), blobs.get(entry.value("xml"))),
    )
    ocsp = _each(
        members,
        "ocsp",
        lambda entry: OcspAnswer(
            entry.hexes("certificate", 32).hex(), blobs.get(entry.value("der"))
        ),
    )
    members.end()
    _require_distinct({rim.id: rim for rim in rims}, len(rims), 4)
    _require_distinct({answer.certificate_sha256: answer for answer in ocsp}, len(ocsp), 4)
    return NvidiaEndorsements(rims, ocsp)


def _require_distinct(found: Mapping[str, object], count: int, clause: int) -> None:
    if len(found) != count:
        raise _malformed("one name, id or certificate stands twice", clause)
