"""Mutants of an appraisal: the same steps with one of them taken out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.appraisal.steps import Step


def without(
    steps: tuple[Step[Any], ...], removed: str, blind: Callable[[Any], Any] | None = None
) -> tuple[Step[Any], ...]:
    """
    Return `steps` without `removed`, which no other step needs any more.

    Where later steps stand on what the step establishes, `blind` takes its place: it establishes
    the same value and looks at nothing.
    """
    if blind is not None:
        return tuple(replace(s, run=blind, needs=()) if s.id == removed else s for s in steps)
    return tuple(
        replace(step, needs=tuple(need for need in step.needs if need != removed))
        for step in steps
        if step.id != removed
    )
