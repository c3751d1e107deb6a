"""What no training record proves, in words. docs/protocols/training-record.md §9."""

from __future__ import annotations

__all__ = ["RECORD_LIMITS"]

RECORD_LIMITS = (
    "quality or licence of the data, and that nothing of it was memorised",
    "the arithmetic of steps that nobody replayed",
    "that the owner deleted anything",
    "the time of the training beyond the node's own clock (a log only bounds when it had ended)",
)
