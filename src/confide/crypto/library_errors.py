"""What `cryptography` raises, for the one seam that calls a library built on it.

Only this package imports `cryptography`; an adapter around such a library translates these.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidKey, InvalidSignature, UnsupportedAlgorithm
from cryptography.x509 import (
    AttributeNotFound,
    DuplicateExtension,
    ExtensionNotFound,
    InvalidVersion,
    UnsupportedGeneralNameType,
)
from cryptography.x509.verification import VerificationError

__all__ = ["LIBRARY_ERRORS"]

LIBRARY_ERRORS: Final[tuple[type[Exception], ...]] = (
    AttributeNotFound,
    DuplicateExtension,
    ExtensionNotFound,
    InvalidKey,
    InvalidSignature,
    InvalidVersion,
    UnsupportedAlgorithm,
    UnsupportedGeneralNameType,
    VerificationError,
)
