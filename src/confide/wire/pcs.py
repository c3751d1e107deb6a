"""Answers of Intel's provisioning certification service, or of a PCCS: the exact signed bytes.

Source: Intel PCS API v4; clause docs/protocols/fetching.md#10. A signed document is cut out of its
wrapper and never written again: one byte of difference breaks the signature. Nothing is verified.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import unquote_to_bytes

from confide.errors import FormatError, Reason
from confide.wire.json import JsonLimits, b64decode, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["issuer_chain", "revocation_list", "signed_document"]

_REASON = Reason.COLLATERAL_FORMAT
_CLAUSE = "docs/protocols/fetching.md#10"
# From: wire/collateral.py, the bounds on a document and on a chain.
_LIMITS: Final = JsonLimits(max_bytes=512 * 1024, max_depth=9)
_MAX_CHAIN_BYTES: Final = 64 * 1024
_SIGNATURE: Final = rb'"signature"\s*:\s*"([0-9A-Fa-f]{128})"'
# A string, possessive so that no input makes it slow, or a bracket.
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}]', re.DOTALL)
_HEX: Final = re.compile(rb"(?:[0-9A-Fa-f]{2})+\Z")
_PEM_CRL: Final = re.compile(
    rb"-----BEGIN X509 CRL-----([A-Za-z0-9+/=\r\n]+)-----END X509 CRL-----\s*\Z"
)


def _refuse(what: str) -> NoReturn:
    raise FormatError(f"Intel's answer: {what}", reason=_REASON, clause=_CLAUSE)


def signed_document(raw: bytes, member: str) -> tuple[bytes, bytes]:
    """
    Return the exact bytes of `member` (`tcbInfo`, `enclaveIdentity`) and their signature, r ‖ s.

    **Does not check** the signature. Raises `FormatError`.
    """
    value = parse_json(raw, what="Intel's answer", reason=_REASON, limits=_LIMITS)
    if not isinstance(value, dict) or set(value) != {member, "signature"}:
        _refuse(f"not {member} and signature")
    if not isinstance(value[member], dict):
        _refuse(f"{member} is not an object")
    # From here on the text is well-formed JSON with these two members, each once.
    name = b'"' + member.encode("ascii") + rb'"\s*:\s*'
    head = re.match(rb"\s*\{\s*(?:" + _SIGNATURE + rb"\s*,\s*)?" + name, raw)
    if head is None:
        _refuse("the members are not spelled plainly, or the signature is not 64 bytes of hex")
    end = head.end() + _object_length(raw[head.end() :])
    before = head.group(1)
    tail = rb"\s*\}\s*\Z" if before else rb"\s*,\s*" + _SIGNATURE + rb"\s*\}\s*\Z"
    rest = re.match(tail, raw[end:])
    if rest is None:
        _refuse("the signature is not 64 bytes of hex")
    signature = before or rest.group(1)
    return raw[head.end() : end], bytes.fromhex(signature.decode("ascii"))


def _object_length(raw: bytes) -> int:
    depth = 0
    for token in _brackets(raw):
        depth += 1 if token.group() == b"{" else -1
        if depth == 0:
            return token.end()
    _refuse("an object without an end")


def _brackets(raw: bytes) -> Iterator[re.Match[bytes]]:
    return (token for token in _TOKEN.finditer(raw) if token.group() in {b"{", b"}"})


def issuer_chain(header: str) -> bytes:
    """
    Return the PEM chain that a header carries URL-encoded.

    **Does not check** what is in the chain. Raises `FormatError`.
    """
    if not header:
        _refuse("the header with the issuer chain is missing")
    if len(header) > 3 * _MAX_CHAIN_BYTES or not header.isascii():
        _refuse("the header with the issuer chain is too long or not ASCII")
    pem = unquote_to_bytes(header)
    if not pem.startswith(b"-----BEGIN CERTIFICATE-----") or not pem.isascii():
        _refuse("the header with the issuer chain does not hold certificates")
    return pem


def revocation_list(body: bytes) -> bytes:
    """
    Return the DER of a revocation list that came as DER, as PEM or as hex text.

    **Does not check** that it is one. Raises `FormatError`.
    """
    text = body.strip()
    if len(text) > 2 and text[:1] == text[-1:] == b'"':
        # A PCCS may write the hex as a JSON string.
        text = text[1:-1]
    if _HEX.match(text):
        return bytes.fromhex(text.decode("ascii"))
    pem = _PEM_CRL.match(text)
    if pem is not None:
        joined = pem.group(1).translate(None, b"\r\n").decode("ascii")
        return b64decode(joined, what="revocation list", reason=_REASON)
    return body
