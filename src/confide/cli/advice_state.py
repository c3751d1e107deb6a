"""What to do where a run does not get its secrets or its state. state.md."""

from __future__ import annotations

from typing import Final

from confide.errors import Reason

__all__ = ["STATE_ADVICE"]

_R = Reason
STATE_ADVICE: Final[tuple[tuple[tuple[Reason, ...], str], ...]] = (
    (
        (_R.SECRET_MISMATCH,),
        (
            "What came from the broker, or what the receipt says came, is not what the Expectation "
            "asks for. Do not use the outputs; ask whoever operates the node and the broker."
        ),
    ),
    (
        (_R.STATE_IN_USE,),
        (
            "Another run of this agent holds its state. Wait until it ended, at most its "
            "wall_seconds and two minutes, and run again."
        ),
    ),
    (
        (_R.STATE_FORK,),
        (
            "The run came too late to save, or another run saved before it. The stored state is "
            "untouched; run again on top of it."
        ),
    ),
    (
        (_R.STATE_ROLLBACK,),
        (
            "The stored state is not the one that was saved last. Nothing was executed. Compare "
            "the counters of earlier receipts, and ask the owners of the broker what was put back."
        ),
    ),
)
