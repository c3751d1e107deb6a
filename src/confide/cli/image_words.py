"""An artefact-level training record in words, for the screen, for programs and for the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.training.image_record import GRANULARITY, ImageRecord
from confide.training.limits import IMAGE_LIMITS, RECORD_LIMITS

if TYPE_CHECKING:
    from confide.training.any_record import AnyRecord
    from confide.training.record import TrainingRecord
    from confide.wire.json import JsonValue

__all__ = ["image_rows", "limits_of", "record_document"]


def image_rows(said: ImageRecord) -> list[tuple[str, str]]:
    """Return what such a record says was made, line by line."""
    seconds = (said.finished - said.started).total_seconds()
    status = "" if said.status is None else f" with status {said.status}"
    return [
        ("image", f"sha256:{said.plan.image.hex()}"),
        ("run", f"{said.end}{status}, in {seconds:.0f} s by the node's clock; no network"),
        ("steps", "not recorded: artefact-level"),
        ("outputs", ", ".join(sorted(said.outputs))),
        ("evaluation", "none: nothing is said of quality"),
    ]


def limits_of(said: AnyRecord) -> tuple[str, ...]:
    """Return what no record of this kind proves."""
    return IMAGE_LIMITS if isinstance(said, ImageRecord) else RECORD_LIMITS


def record_document(said: AnyRecord) -> dict[str, JsonValue]:
    """Return the members that only a record of this kind has, for programs."""
    if isinstance(said, ImageRecord):
        return {
            "granularity": GRANULARITY,
            "image": said.plan.image.hex(),
            "exit": {"end": said.end.value, "status": said.status},
        }
    return {"granularity": "step", **_steps(said)}


def _steps(said: TrainingRecord) -> dict[str, JsonValue]:
    return {
        "steps": {"done": said.steps, "planned": said.planned, "head": said.head.hex()},
        "turns": [turn.document() for turn in said.turns],
        "environment": dict(said.environment),
    }
