"""Which micro batches of a step a rank computes, and which jobs can have several ranks. Pure.

docs/protocols/training-ranks.md §1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from confide.training.recipe import Recipe

__all__ = [
    "ENGINES",
    "MAX_SEATS",
    "MAX_WORLD",
    "Engine",
    "place_in_sum",
    "ranks_for",
    "require_world",
    "share",
]

# What carries the links between seats: relays of the nodes (3.3), or Ray (§6).
Engine: TypeAlias = Literal["ring", "ray"]
ENGINES: Final[tuple[Engine, ...]] = ("ring", "ray")

MAX_WORLD = 1024
# Nodes that train one job together.
MAX_SEATS = 64


def place_in_sum(rank: int, world: int) -> int:
    """Return which share `rank` takes: rank 0, where the sum arrives, takes the last (1.2)."""
    return (rank - 1) % world


def share(micro_batches: int, rank: int, world: int) -> range:
    """Return the numbers of the micro batches of a step that `rank` computes (1.2)."""
    place = place_in_sum(rank, world)
    return range(micro_batches * place // world, micro_batches * (place + 1) // world)


def require_world(recipe: Recipe, world: int) -> None:
    """Require that `recipe` can be carried out by `world` ranks; `ValueError` with why not."""
    if not 1 <= world <= MAX_WORLD:
        raise ValueError(f"a job has 1 to {MAX_WORLD} ranks")
    if world == 1:
        return
    micro_batches = _micro_batches(recipe)
    if micro_batches < world:
        raise ValueError(
            f"a step has {micro_batches} micro batches for {world} ranks: "
            "raise gradient_accumulation_steps, or take fewer ranks"
        )


def ranks_for(recipe: Recipe, most: int) -> int:
    """Return how many of `most` ranks a job by `recipe` can use (1.2)."""
    return min(most, _micro_batches(recipe))


def _micro_batches(recipe: Recipe) -> int:
    """Return how many micro batches a step has: with privacy, rows that are expected."""
    if recipe.privacy is not None:
        return recipe.sequences_per_step
    return recipe.gradient_accumulation_steps
