"""What a record says of differential privacy: four texts, one spelling of each. Pure.

Clauses: docs/protocols/training-record.md 2.2, training.md 8.5. Three follow from the recipe, which
an audit compares; what the steps cost is the node's computation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.training.recipe import Recipe
    from confide.wire.json import Members

__all__ = ["follows_from", "privacy_texts", "read_privacy"]

_EPSILON: Final = "epsilon"
# No number: the accountant finds no finite bound.
_INFINITE: Final = "infinite"
_PARAMETERS: Final = ("noise_multiplier", "max_grad_norm", "delta")


def privacy_texts(recipe: Recipe, epsilon: float | None) -> dict[str, str] | None:
    """Return what a record says of a training by `recipe` that cost `epsilon` (None: infinite)."""
    if recipe.privacy is None:
        return None
    said = {name: repr(getattr(recipe.privacy, name)) for name in _PARAMETERS}
    return said | {_EPSILON: _INFINITE if epsilon is None else repr(epsilon)}


def read_privacy(members: Members, name: str) -> dict[str, str] | None:
    """Return the member `name`: null, or the four texts. Raises `FormatError`."""
    if members.null(name):
        return None
    inner = members.members(name)
    found = {each: inner.text(each, max_chars=32) for each in (*_PARAMETERS, _EPSILON)}
    inner.end()
    for each, text in found.items():
        if not _is_number(text) and (each, text) != (_EPSILON, _INFINITE):
            members.refuse(f"{name}: {each} is no number in its one spelling")
    return found


def follows_from(recipe: Recipe, said: Mapping[str, str] | None) -> bool:
    """Whether `said`, as it was read, is of a training by `recipe`; not whether it cost that."""
    wanted = privacy_texts(recipe, None)
    if wanted is None or said is None:
        return wanted is said
    return all(said[name] == wanted[name] for name in _PARAMETERS)


def _is_number(text: str) -> bool:
    try:
        number = float(text)
    except ValueError:
        return False
    return math.isfinite(number) and number >= 0 and repr(number) == text
