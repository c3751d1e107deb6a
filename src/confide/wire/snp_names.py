"""Names that reports, trust anchors and policies of SEV-SNP share.

Apart from the layouts: whoever holds AMD's roots needs these names and no reader of reports.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Product", "SigningKeyKind"]


class Product(StrEnum):
    """A family of processors under one AMD root key."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"


class SigningKeyKind(StrEnum):
    """Who signed: the key of one chip, or the key that a cloud operator loaded."""

    VCEK = "VCEK"
    VLEK = "VLEK"
