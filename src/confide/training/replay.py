"""The verdict of a replay: what to execute, and whether it is what was recorded. Pure.

Clauses: docs/protocols/training-record.md 7.4 to 7.7. `Replay` asks for stretches and is told step
records; whoever owns a trainer executes them. What it is told decides; what the log says is only
compared.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Final

from confide.errors import Reason, TrainingRejected
from confide.rats import Finding, Status
from confide.training.chain import f64

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from confide.training.audit import AuditedLog
    from confide.training.chain import StepRecord
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.draw import Sample

__all__ = [
    "HARMLESS",
    "Divergence",
    "Replay",
    "Stretch",
    "Tolerance",
    "VerifiedReplay",
    "environment_differences",
    "require_checkpoint",
]

_DOC: Final = "docs/protocols/training-record.md#7"
_SEAL = object()
# Of an environment: threads change no bit (training.md 9.4).
HARMLESS: Final = frozenset({"threads"})


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far loss and gradient norm may lie from what was recorded: `abs + rel * |recorded|`."""

    abs: float
    rel: float

    def __post_init__(self) -> None:
        if not (0 <= self.abs < 1 and 0 <= self.rel < 1):
            raise ValueError("a tolerance lies from 0 to below 1")

    def admits(self, recorded: float, found: float) -> bool:
        """Whether `found` is near enough to `recorded`."""
        return abs(found - recorded) <= self.abs + self.rel * abs(recorded)


@dataclass(frozen=True, slots=True)
class Stretch:
    """What to execute: take training up at `start` (None: the beginning), up to step `last`."""

    start: CheckpointEntry | None
    last: int

    @property
    def first(self) -> int:
        """The first step that is executed."""
        return 1 if self.start is None else self.start.step + 1


@dataclass(frozen=True, slots=True)
class Divergence:
    """A step that is not what was recorded, and which members differ."""

    step: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifiedReplay:
    """
    A replay in which every step was what was recorded. Only `Replay.conclude` makes one.

    `executed` steps were computed again for the drawn ones, `states` state digests compared;
    `tolerance` is None where everything was compared bit for bit.
    """

    sample: Sample
    executed: int
    states: int
    tolerance: Tolerance | None
    findings: tuple[Finding, ...]
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        """Refuse every maker but `Replay.conclude`."""
        if seal is not _SEAL:
            raise TypeError("only Replay.conclude makes a VerifiedReplay")


def environment_differences(
    recorded: Mapping[str, str], here: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the names of what differs: an exact replay is asked for only where nothing does."""
    names = recorded.keys() | here.keys()
    return tuple(sorted(name for name in names if recorded.get(name) != here.get(name)))


def require_checkpoint(entry: CheckpointEntry, *, sealed: bytes, state: bytes) -> None:
    """
    Require that what was opened and loaded is the checkpoint of `entry`.

    `sealed` is the SHA-256 of the sealed blob, `state` the digest after loading. Raises
    `TrainingRejected`.
    """
    if sealed != entry.sealed:
        raise _rejected("replay/1", Reason.CHECKPOINT_MISMATCH, "another sealed checkpoint")
    if state != entry.state:
        raise _rejected("replay/1", Reason.CHECKPOINT_MISMATCH, "a checkpoint of another state")


@dataclass(slots=True)
class _Search:
    """Bisection over the segments between checkpoints: all before `low` are good, `high` is bad."""

    low: int
    high: int
    found: Divergence


class Replay:
    """
    One replay: `ask` for a stretch, execute it, `tell` its records, until there is none left.

    After the first divergence it looks for where it began (7.6), in exact mode: among the
    checkpoints after the steps in `at_hand`, or all that the record lists.
    """

    def __init__(
        self,
        audited: AuditedLog,
        sample: Sample,
        *,
        tolerance: Tolerance | None,
        at_hand: Collection[int] | None = None,
    ) -> None:
        self._records = tuple(each.record for each in audited.log.steps)
        if sample.steps != len(self._records):
            raise ValueError("drawn from another number of steps")
        self._sample = sample
        self._tolerance = tolerance
        # Those that the record lists: nobody has the file of another (training-node.md 3.1).
        ends = audited.record.record.checkpoints
        starts: tuple[CheckpointEntry | None, ...] = (None, *ends[:-1])
        self._segments = tuple(
            Stretch(start, end.step) for start, end in zip(starts, ends, strict=True)
        )
        self._at_hand = {each.step for each in ends} if at_hand is None else at_hand
        shown = self._shown if tolerance is None else self._felt
        self.windows = tuple(_windows(self._segments, sample.drawn, shown))
        self._open = list(self.windows)
        self._search: _Search | None = None
        self._executed: set[int] = set()
        self._states: set[int] = set()

    def _shown(self, step: int) -> int:
        """Return the step whose state digest shows the update of `step`."""
        return next(each.step for each in self._records[step - 1 :] if each.state is not None)

    def _felt(self, step: int) -> int:
        """Return the step whose loss is of what `step` left: states are not compared."""
        return min(step + 1, len(self._records))

    def ask(self) -> Stretch | None:
        """Return what to execute next; None where the verdict stands."""
        if self._search is None:
            return self._open[0] if self._open else None
        middle = self._middle(self._search)
        return None if middle is None else self._segments[middle]

    def _middle(self, search: _Search) -> int | None:
        """Return the segment that halves what is left, of those that can be taken up."""
        if self._tolerance is not None:
            return None
        half = (search.low + search.high) // 2
        left = (i for i in range(search.low + 1, search.high) if self._can_begin(i))
        return min(left, key=lambda i: abs(i - half), default=None)

    def _can_begin(self, segment: int) -> bool:
        start = self._segments[segment].start
        return start is None or start.step in self._at_hand

    def tell(self, records: Sequence[StepRecord]) -> None:
        """Take the records of the stretch that was asked for, all of them, in order."""
        stretch = self.ask()
        if stretch is None:
            raise ValueError("nothing was asked for")
        wanted = range(stretch.first, stretch.last + 1)
        if [record.step for record in records] != list(wanted):
            raise ValueError("not the records of the stretch that was asked for")
        found = self._compare(records)
        if self._search is not None:
            self._narrow(self._search, stretch, found)
            return
        self._open.pop(0)
        if found is not None:
            at = next(i for i, segment in enumerate(self._segments) if found.step <= segment.last)
            self._search = _Search(-1, at, found)

    def _narrow(self, search: _Search, stretch: Stretch, found: Divergence | None) -> None:
        middle = self._segments.index(stretch)
        if found is None:
            search.low = middle
        else:
            search.high, search.found = middle, found

    def _compare(self, records: Sequence[StepRecord]) -> Divergence | None:
        for record in records:
            recorded = self._records[record.step - 1]
            members = _differences(recorded, record, self._tolerance)
            if members:
                return Divergence(record.step, members)
            self._executed.add(record.step)
            if self._tolerance is None and recorded.state is not None:
                self._states.add(record.step)
        return None

    @property
    def executed(self) -> int:
        """How many steps were executed and are what was recorded."""
        return len(self._executed)

    @property
    def states(self) -> int:
        """How many state digests were compared and are equal."""
        return len(self._states)

    @property
    def divergence(self) -> Divergence | None:
        """What differs, as far as it is known now; None while nothing does."""
        return None if self._search is None else self._search.found

    @property
    def located(self) -> bool:
        """Whether the divergent step is the first one, under the assumption of 7.6."""
        search = self._search
        return self._tolerance is None and search is not None and search.high - search.low <= 1

    def conclude(self) -> VerifiedReplay:
        """
        Return the verdict. Raises `TrainingRejected` with the first divergent step.

        `RuntimeError` where something that was asked for was not executed.
        """
        if self.ask() is not None:
            raise RuntimeError("the replay is not at its end")
        if self._search is not None:
            found = self._search.found
            detail = f"step {found.step} is another: {', '.join(found.members)}"
            raise _rejected("replay/2", Reason.TRAINING_REPLAY, detail)
        how = "bit for bit" if self._tolerance is None else "within the tolerance, states are not"
        detail = (
            f"{len(self._sample.drawn)} of {self._sample.steps} steps drawn, "
            f"{len(self._executed)} executed and equal {how}"
        )
        finding = Finding(Status.PASS, "replay/2", _DOC, "replay", detail)
        return VerifiedReplay(
            self._sample,
            len(self._executed),
            len(self._states),
            self._tolerance,
            (finding,),
            seal=_SEAL,
        )


def _windows(
    segments: Sequence[Stretch], drawn: Sequence[int], shown: Callable[[int], int]
) -> list[Stretch]:
    """Return the windows of the drawn steps (7.4), those that begin at one checkpoint as one."""
    found: dict[int, Stretch] = {}
    for step in drawn:
        segment = next(each for each in segments if step <= each.last)
        before = found.get(segment.first)
        last = max(shown(step), before.last if before is not None else 0)
        found[segment.first] = Stretch(segment.start, last)
    return list(found.values())


def _differences(
    recorded: StepRecord, found: StepRecord, tolerance: Tolerance | None
) -> tuple[str, ...]:
    same = {
        "batch": recorded.batch == found.batch,
        "learning rate": f64(recorded.learning_rate) == f64(found.learning_rate),
        "tokens": recorded.tokens == found.tokens,
    }
    if tolerance is None:
        same |= {
            "loss": f64(recorded.loss) == f64(found.loss),
            "gradient norm": f64(recorded.grad_norm) == f64(found.grad_norm),
            "state": recorded.state == found.state,
        }
    else:
        same |= {
            "loss": tolerance.admits(recorded.loss, found.loss),
            "gradient norm": tolerance.admits(recorded.grad_norm, found.grad_norm),
        }
    return tuple(name for name, equal in same.items() if not equal)


def _rejected(step: str, reason: Reason, detail: str) -> TrainingRejected:
    return TrainingRejected((Finding(Status.FAIL, step, _DOC, "replay", detail, reason),))
