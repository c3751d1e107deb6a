"""Numbered steps: how every appraisal in this package runs.

A `Step` is one function with a stable id, the clause it implements and the steps without which
it makes no sense. `run_steps` runs all that still make sense and returns a finding for each, so
that a refusal names everything that is wrong and a pass shows what was looked at. A step refuses
by raising `Refused`; nothing else turns into a failed finding, so a bug is never read as a verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from confide.errors import FormatError, Reason
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Refused", "Step", "established", "lazy", "run_steps"]

S = TypeVar("S")
T = TypeVar("T")


class Refused(Exception):
    """One step refuses, for `reason`; `detail` is our own words. Never leaves `appraisal/`."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """
    One numbered check over a working state `S`.

    `run` raises `Refused` or `FormatError` to refuse and returns a short detail (or None) to
    pass. `needs` lists ids that must have passed for this step to make sense.
    """

    id: str
    clause: str
    run: Callable[[S], str | None]
    needs: tuple[str, ...] = ()


class lazy(Generic[S, T]):  # noqa: N801 - reads as the decorator that it is
    """
    An attribute computed on first use and kept: `functools.cached_property` without its lock.

    A working state belongs to one appraisal and one thread; Python before 3.12 locks anyway.
    """

    def __init__(self, compute: Callable[[S], T]) -> None:
        self._compute = compute
        self._name = ""
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn the attribute's name."""
        self._name = name

    def __get__(self, state: S, owner: type) -> T:
        """Compute; the value then hides this descriptor."""
        value = self._compute(state)
        state.__dict__[self._name] = value
        return value


def established(value: T | None) -> T:
    """
    Return what an earlier step left in the working state.

    `RuntimeError` where it left nothing: the step that reads it does not list that one in `needs`.
    """
    if value is None:
        raise RuntimeError("a step ran before the step that it needs")
    return value


def run_steps(steps: Sequence[Step[S]], state: S, *, subject: str) -> tuple[Finding, ...]:
    """
    Run `steps` in order over `state` and return one finding for each.

    A step whose `needs` did not pass is NOT_PROVEN, never skipped silently.
    """
    findings: list[Finding] = []
    passed: set[str] = set()
    good = Status.PASS
    for step in steps:
        if step.needs and not passed.issuperset(step.needs):
            missing = [need for need in step.needs if need not in passed]
            detail = f"not run: needs {', '.join(missing)}"
            findings.append(Finding(Status.NOT_PROVEN, step.id, step.clause, subject, detail))
            continue
        try:
            found = step.run(state)
        except Refused as refusal:
            findings.append(
                Finding(Status.FAIL, step.id, step.clause, subject, refusal.detail, refusal.reason)
            )
        except FormatError as error:
            findings.append(
                Finding(Status.FAIL, step.id, step.clause, subject, error.what, error.reason)
            )
        else:
            passed.add(step.id)
            findings.append(Finding(good, step.id, step.clause, subject, found or ""))
    return tuple(findings)
