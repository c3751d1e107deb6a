"""What no training record proves, in words.

docs/protocols/training-record.md §9, docs/protocols/training-image.md §6,
docs/protocols/training-ranks.md 6.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from confide.training.shares import Engine

__all__ = ["COARSER", "IMAGE_LIMITS", "LINKED", "RECORD_LIMITS"]

RECORD_LIMITS = (
    "quality or licence of the data, and that nothing of it was memorised",
    "the arithmetic of steps that nobody replayed",
    "that weights and metrics are those of the last state (a replay can make them again)",
    "that the rows which both models were judged by are not among those that were trained on",
    "that the owner deleted anything",
    "the time of the training beyond the node's own clock (a log only bounds when it had ended)",
)

# Of nodes that trained together, by engine: what linked them, and where that ends.
LINKED: Final[dict[Engine, str]] = {
    "ring": "linked by TLS between neighbours (engine ring)",
    "ray": (
        "linked by Ray (engine ray): each admitted node could have run code on the others, "
        "outside of their training processes"
    ),
}

# What every verdict about an artefact-level record says first.
COARSER = (
    "artefact-level, coarser than a record of steps: it says which image was given which committed "
    "rows and which base, and which weights it left; not in which order it read the rows, nor with "
    "which arithmetic"
)
IMAGE_LIMITS = (
    "that the image used the rows or the base at all, all of them, once, or in any order",
    "that the weights were computed, and not brought along inside the image (look into it)",
    "any single step: there is no chain of steps, nothing to audit and nothing to replay",
    "quality or licence of the data, and that nothing of it was memorised",
    "whether the weights are better than the base: nothing was evaluated",
    "that the owner deleted anything",
    "the time of the training beyond the node's own clock (a log only bounds when it had ended)",
)
