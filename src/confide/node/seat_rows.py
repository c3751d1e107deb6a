"""The rows of a job on their way from seat 0 to another seat: written there, read here.

docs/protocols/training-ranks.md 4.7: one line of what they are for, then canonical records, a line
each. A salt, a key or a recipient is never among it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.errors import FormatError, Reason
from confide.node.seat_messages import SeatOrder, parse_seat_order
from confide.trainer.order_form import data_name
from confide.training.job import TrainingData, TrainingJob
from confide.training.lines import MAX_ROW_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from confide.trainer.order_form import DataName
    from confide.training.plan import TrainingPlan

__all__ = ["read_order", "sent_order", "training_job"]

_PIECE_BYTES: Final = 1 << 20
# From: training-files.md §5, the largest file of rows; there may be two.
_MAX_BYTES: Final = 16 << 30
# What a row can grow to in its canonical form, and the recipe.
_MAX_LINE_BYTES: Final = 6 * MAX_ROW_BYTES
_NO_SALT: Final = bytes(32)


async def sent_order(job: TrainingJob) -> AsyncIterator[bytes]:
    """Yield order and rows of `job` in pieces."""
    validation = () if job.validation is None else job.validation.rows
    order = SeatOrder(
        recipe=job.recipe,
        data=data_name(job.data),
        validation=None if job.validation is None else data_name(job.validation),
        rows=len(job.data.rows),
        validation_rows=len(validation),
    )
    piece = bytearray(order.encode() + b"\n")
    for rows in (job.data.rows, validation):
        for row in rows:
            piece += row + b"\n"
            if len(piece) >= _PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
    yield bytes(piece)


async def read_order(pieces: AsyncIterator[bytes]) -> tuple[SeatOrder, list[bytes]]:
    """Read what `sent_order` yields. Raises `FormatError`."""
    order: SeatOrder | None = None
    rows: list[bytes] = []
    left, size = b"", 0
    async for piece in pieces:
        size += len(piece)
        *lines, left = (left + piece).split(b"\n")
        for line in lines:
            if order is None:
                order = parse_seat_order(line)
            else:
                rows.append(line)
        if size > _MAX_BYTES or len(left) > _MAX_LINE_BYTES:
            raise _wrong("too much")
    if order is None or left or len(rows) != order.rows + order.validation_rows:
        raise _wrong("cut, or other rows than were announced")
    return order, rows


def training_job(order: SeatOrder, rows: Sequence[bytes], plan: TrainingPlan) -> TrainingJob:
    """
    Return the job for the ranks of a seat, with no salt.

    Raises `FormatError` where it is another than that of `plan`. That the rows are those of the
    data set is found between the ranks (2.3).
    """
    names = (order.data.digest, None if order.validation is None else order.validation.digest)
    if (order.recipe.digest, *names) != (plan.recipe, plan.dataset, plan.validation):
        raise _wrong("of another plan")
    return TrainingJob(
        recipe=order.recipe,
        data=_data(order.data, rows[: order.rows]),
        validation=None
        if order.validation is None
        else _data(order.validation, rows[order.rows :]),
        base=plan.base,
        world=plan.world,
    )


def _data(name: DataName, rows: Sequence[bytes]) -> TrainingData:
    return TrainingData(name.kind, name.digest, name.root, _NO_SALT, rows)


def _wrong(how: str) -> FormatError:
    clause = "docs/protocols/training-ranks.md#4.7"
    return FormatError(f"rows for a seat: {how}", reason=Reason.TRAINING_FORMAT, clause=clause)
