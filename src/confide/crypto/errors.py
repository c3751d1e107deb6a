"""What the wrappers of this package raise besides `FormatError`.

`BadSignature` and `BadProof` are caught where a numbered step decides what they mean (`appraisal/`,
`receipts/`, `tlog/`); they are no members of the public error tree and never reach a caller of
those packages.
"""

from __future__ import annotations

__all__ = ["BadProof", "BadSignature"]


class BadSignature(Exception):
    """A signature, a key or an issuer name does not match. `what` is our own words."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(what)


class BadProof(Exception):
    """A Merkle proof does not hold. `what` is our own words."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(what)
