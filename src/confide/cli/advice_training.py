"""What to do where a training record, its owner's log or a replay is refused."""

from __future__ import annotations

from typing import Final

from confide.errors import Reason

__all__ = ["TRAINING_ADVICE"]

_R = Reason
TRAINING_ADVICE: Final[tuple[tuple[tuple[Reason, ...], str], ...]] = (
    (
        (_R.RECIPE_FORMAT,),
        "Mend the recipe; docs/protocols/training.md §1 has every key, with its default.",
    ),
    (
        (_R.TRAINING_FORMAT,),
        (
            "This is no training record, or it was changed. Get it again, byte for byte as the "
            "training node returned it."
        ),
    ),
    (
        (_R.TRAINING_PLAN, _R.TRAINING_EVALUATION),
        (
            "The record is about another training than the one that was asked for and measured. "
            "Do not use the weights; ask whoever operates the node."
        ),
    ),
    (
        (_R.TRAINING_MACHINE,),
        (
            "A machine took part that the record does not tell of, or tells of otherwise. Do not "
            "use the weights; ask the operator which machines trained."
        ),
    ),
    (
        (_R.TRAINING_CHAIN, _R.CHECKPOINT_MISMATCH, _R.CHECKPOINT_ROLLBACK),
        (
            "Steps or checkpoints are not those that the record commits to: something was left "
            "out, repeated, exchanged or taken from an older state. Do not use the weights."
        ),
    ),
    (
        (_R.TRAINING_LOG,),
        (
            "This is not the log that belongs to the record. Open the one that came with it, and "
            "give it unchanged."
        ),
    ),
    (
        (_R.TRAINING_REPLAY,),
        (
            "A step gives something else when it is executed again. In the recorded environment "
            "that is a false record; elsewhere try --tolerance. Keep record, log and checkpoints."
        ),
    ),
    (
        (_R.REPLAY_RESULT,),
        (
            "The result is about another record, draw or mode than was asked for: it says nothing "
            "of this training. Ask again, or another node; keep the file."
        ),
    ),
)
