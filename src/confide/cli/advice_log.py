"""What to do about a transparency log that does not hold; `cli/advice.py` adds it to its own."""

from __future__ import annotations

from typing import Final

from confide.errors import Reason

__all__ = ["LOG_ADVICE"]

_R = Reason
LOG_ADVICE: Final[tuple[tuple[tuple[Reason, ...], str], ...]] = (
    (
        (_R.TLOG_FORMAT,),
        (
            "This is no checkpoint, proof or key of a transparency log, or it was changed on its "
            "way. Get it again from the log, byte for byte."
        ),
    ),
    (
        (_R.TLOG_LOG_UNKNOWN, _R.TLOG_SIGNATURE),
        (
            "No log that your policy names signed this head as it is. Compare the log's public key "
            "with the one that its operator published; do not take one from the file itself."
        ),
    ),
    (
        (_R.TLOG_WITNESSES,),
        (
            "Too few witnesses saw this head: it is not final. Ask the log for a newer checkpoint "
            "in a moment; where it stays so, its operator has to say which witness is down."
        ),
    ),
    (
        (_R.TLOG_TIME,),
        "A witness signed for a time that is still to come. Check the clock of this machine.",
    ),
    (
        (_R.TLOG_POSTDATED,),
        (
            "It says that it was made after the witnesses had seen it: the clock of whoever made "
            "it is ahead, or the time in it is made up. Believe no time that it names."
        ),
    ),
    (
        (_R.TLOG_INCLUSION, _R.TLOG_LEAF),
        (
            "The proof is not of this receipt, or not whole. Take the proof that came with it; if "
            "that one fails, the receipt is not logged."
        ),
    ),
    (
        (_R.TLOG_FORK, _R.TLOG_ROLLBACK, _R.TLOG_WITNESS_FORK),
        (
            "The log shows different pasts to different people. Keep both heads (the state file "
            "and its .contradiction): each is signed, and together they prove it. Accept no proof "
            "of this log, and none on the word of a witness that is named."
        ),
    ),
    (
        (_R.TLOG_STALE,),
        (
            "Nobody confirmed this head lately. Look at the log from another network: a view may "
            "be held back from you alone."
        ),
    ),
    (
        (_R.TLOG_TILE,),
        (
            "A tile does not fit the signed head: it was changed, on the disk or on its way. The "
            "operator restores the named file from a copy; the log holds no other one."
        ),
    ),
)
