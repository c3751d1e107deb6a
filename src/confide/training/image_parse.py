"""Reading an artefact-level training record: canonical bytes to value, closed and strict. Pure.

Clauses: docs/protocols/training-image.md 4.3, 4.5. `payload` is hostile; nothing is believed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.agents.sandbox import ExitKind
from confide.training.image_recipe import ImagePlan
from confide.training.image_record import GRANULARITY, IMAGE_BUILD_TYPE, ImageRecord
from confide.training.record import BUILD_TYPE
from confide.training.record_core import open_record

if TYPE_CHECKING:
    from confide.training.record_core import OpenedRecord

__all__ = ["parse_image_record"]

_NEEDED: Final = frozenset({"base", "dataset", "dataset-root", "image", "software"})
_OPTIONAL: Final = frozenset({"validation"})
# One exit, two statements, two results, and a few more of what is handed over.
_MAX_BYPRODUCTS: Final = 16
_MAX_STATUS: Final = 255
_OTHERS: Final = {BUILD_TYPE: "it is step-level (trained by the node's own loop), not of an image"}


def parse_image_record(payload: bytes) -> ImageRecord:
    """
    Parse the payload of an artefact-level record; the plan digest has to follow from its parts.

    Raises `FormatError`: TRAINING_FORMAT, TRAINING_PLAN for a plan digest of something else,
    TRAINING_GRANULARITY for a step-level record.
    """
    opened = open_record(
        payload,
        IMAGE_BUILD_TYPE,
        others=_OTHERS,
        needed=_NEEDED,
        optional=_OPTIONAL,
        max_byproducts=_MAX_BYPRODUCTS,
    )
    opened.internal.choice("granularity", (GRANULARITY,))
    named, made = opened.dependencies, _Byproducts(opened)
    record = ImageRecord(
        **opened.core,
        plan=ImagePlan(
            recipe=opened.external.hexes("recipe", 32),
            image=named["image"],
            dataset=named["dataset"],
            validation=named.get("validation"),
            base=named["base"],
        ),
        end=made.end,
        status=made.status,
        sealed=made.sealed,
        statements=made.statements,
    )
    opened.finish(record)
    return record


class _Byproducts:
    """The byproducts of a record, by what they are."""

    def __init__(self, opened: OpenedRecord) -> None:
        self.sealed: dict[str, bytes] = {}
        self.statements: dict[str, bytes] = {}
        ends: list[ExitKind] = []
        self.status: int | None = None
        for name, digest, notes in opened.byproducts:
            kind, _, rest = name.partition("/")
            match kind:
                case "sealed":
                    self.sealed[rest] = digest
                case "statement":
                    self.statements[rest] = digest
                case "exit":
                    ends.append(notes.choice("end", tuple(ExitKind)))
                    if not notes.null("status"):
                        self.status = notes.integer("status", high=_MAX_STATUS)
                case _:
                    opened.details.refuse("an artefact-level record holds a part of another kind")
            notes.end()
        if len(ends) != 1:
            opened.details.refuse("it is not said how the image ended")
        self.end = ends[0]
