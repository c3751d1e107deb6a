"""PEM chains (RFC 7468) to DER, strictly: no bit can change without notice."""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, Final

from confide.errors import FormatError

if TYPE_CHECKING:
    from confide.errors import Reason

__all__ = ["split_pem_chain"]

_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
_END: Final = b"-----END CERTIFICATE-----"


def _canonical_base64(block: bytes, *, what: str, reason: Reason) -> bytes:
    text = block.translate(None, b"\r\n")
    try:
        der = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise FormatError(
            f"{what}: a PEM block is not base64", reason=reason, clause="RFC 7468 §3"
        ) from error
    # The strict decoder leaves one thing open: bits of the last character that mean nothing.
    if binascii.b2a_base64(der[-(len(der) % 3 or 3) :], newline=False) != text[-4:]:
        raise FormatError(
            f"{what}: a PEM block is not canonical", reason=reason, clause="RFC 4648 §3.5"
        )
    return der


def split_pem_chain(
    pem: bytes, *, max_certificates: int, what: str, reason: Reason
) -> tuple[bytes, ...]:
    """
    Return the DER of every certificate in `pem`, in order.

    Strict: nothing but certificate blocks and line breaks, NUL bytes at the very end only, one
    to `max_certificates` blocks, canonical base64: no bit can change without notice.

    Raises `FormatError`.
    """
    found: list[bytes] = []
    left = pem
    # What is left after the last block: line breaks, then NUL bytes.
    while left.rstrip(b"\0").strip(b"\r\n"):
        before, begin, rest = left.partition(_BEGIN)
        block, end, rest = rest.partition(_END)
        # Whether the block is base64 and nothing else is for the decoder to say.
        if before.strip(b"\r\n") or not (begin and end) or len(found) == max_certificates:
            raise FormatError(
                f"{what}: not a chain of at most {max_certificates} PEM certificates",
                reason=reason,
                clause="RFC 7468 §5.1",
                offset=len(pem) - len(left),
            )
        found.append(_canonical_base64(block, what=what, reason=reason))
        left = rest
    if not found:
        raise FormatError(f"{what}: no certificate", reason=reason, clause="RFC 7468 §5.1")
    return tuple(found)
