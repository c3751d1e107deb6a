"""The plan of a training job: everything that decides its result, in one digest. Pure.

docs/protocols/training.md §2.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from confide.errors import Reason
from confide.wire.json import Members, jcs

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

__all__ = ["TrainingPlan", "parse_plan"]

_TYPE = "confide/training-plan/v1"


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """
    Digests of what goes in (2.1), 32 bytes each.

    `validation` is None where no rows of their own are evaluated on, `template` where no row is a
    conversation. `world` is the number of ranks.
    """

    recipe: bytes
    dataset: bytes
    validation: bytes | None
    base: bytes
    tokenizer: bytes
    template: bytes | None
    world: int = 1

    def value(self) -> dict[str, JsonValue]:
        """Return the JSON value."""
        return {
            "type": _TYPE,
            "recipe": self.recipe.hex(),
            "dataset": self.dataset.hex(),
            "validation": None if self.validation is None else self.validation.hex(),
            "base": self.base.hex(),
            "tokenizer": self.tokenizer.hex(),
            "template": None if self.template is None else self.template.hex(),
            "world": self.world,
        }

    @property
    def digest(self) -> bytes:
        """SHA-256 over the canonical value: what the chain begins with."""
        return hashlib.sha256(jcs(self.value())).digest()

    @property
    def seeding(self) -> bytes:
        """The digest with `world` 1, which seeds follow from: ranks change no bit (4.1)."""
        return replace(self, world=1).digest


def parse_plan(value: JsonValue) -> TrainingPlan:
    """Read a plan; `FormatError` with TRAINING_FORMAT. That it was followed is the chain's."""
    members = Members(value, what="training plan", reason=Reason.TRAINING_FORMAT)
    members.choice("type", (_TYPE,))
    plan = TrainingPlan(
        recipe=members.hexes("recipe", 32),
        dataset=members.hexes("dataset", 32),
        validation=None if members.null("validation") else members.hexes("validation", 32),
        base=members.hexes("base", 32),
        tokenizer=members.hexes("tokenizer", 32),
        template=None if members.null("template") else members.hexes("template", 32),
        world=members.integer("world", low=1, high=65536),
    )
    members.end()
    return plan
