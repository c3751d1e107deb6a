"""What the wrappers of this package raise besides `FormatError`.

`BadSignature` is caught where a numbered step decides what it means (`appraisal/`, `receipts/`);
it is no member of the public error tree and never reaches a caller of those packages.
"""

from __future__ import annotations

__all__ = ["BadSignature"]


class BadSignature(Exception):
    """A signature, a key or an issuer name does not match. `what` is our own words."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(what)
