"""How weights are quantised, as a model event and a receipt say it. Pure.

docs/protocols/weights.md §6. A reading aid beside the digest of the weights, which covers all of
it: what two nodes state differently are different weights. Not judged: whether it is good.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confide.wire.json import JsonValue, Members

__all__ = ["Quantisation", "read_quantisation"]

_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,32}\Z")
_MAX_DTYPES = 32
_MAX_BITS = 64


@dataclass(frozen=True, slots=True)
class Quantisation:
    """
    The `method` ("none" where there is none), its `bits` where it names them, the element types.

    `dtypes` are the distinct types of the stored tensors in order of their names; empty where
    the files do not say. Raises `ValueError` for a word that is none.
    """

    method: str
    bits: int | None
    dtypes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not all(_WORD.match(word) for word in (self.method, *self.dtypes)):
            raise ValueError("a method or a type is not a word")
        if self.bits is not None and not 1 <= self.bits <= _MAX_BITS:
            raise ValueError(f"bits are 1 to {_MAX_BITS}")
        if len(self.dtypes) > _MAX_DTYPES or list(self.dtypes) != sorted(set(self.dtypes)):
            raise ValueError("the types are few, distinct and sorted")

    def as_json(self) -> dict[str, JsonValue]:
        """Return the members that `read_quantisation` reads."""
        return {"method": self.method, "bits": self.bits, "dtypes": list(self.dtypes)}


def read_quantisation(members: Members) -> Quantisation | None:
    """Consume the member `quantisation` where it stands. Raises `FormatError`."""
    if not members.has("quantisation"):
        return None
    inner = members.members("quantisation")
    method = inner.text("method", max_chars=32)
    bits = None if inner.null("bits") else inner.integer("bits", low=1, high=_MAX_BITS)
    dtypes = inner.texts("dtypes", max_items=_MAX_DTYPES)
    inner.end()
    try:
        return Quantisation(method, bits, dtypes)
    except ValueError as error:
        inner.refuse(str(error))
