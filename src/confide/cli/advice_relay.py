"""What to do about a relay's directory that does not hold; `cli/advice.py` adds it to its own."""

from __future__ import annotations

from typing import Final

from confide.errors import Reason

__all__ = ["RELAY_ADVICE"]

_R = Reason
RELAY_ADVICE: Final[tuple[tuple[tuple[Reason, ...], str], ...]] = (
    (
        (_R.DIRECTORY_FORMAT, _R.DIRECTORY_SIGNATURE),
        (
            "This is no directory of the operator whose key you pinned, or it was changed on its "
            "way. Compare the key with the one that the operator published elsewhere."
        ),
    ),
    (
        (_R.DIRECTORY_TIME,),
        (
            "The directory is not in force at the time of this machine's clock. Check the clock; "
            "where it is right, the operator has to sign a new directory."
        ),
    ),
    (
        (_R.DIRECTORY_ROLLBACK,),
        (
            "The relay showed an older directory than before, or two with one number. Use another "
            "relay until its operator explains that."
        ),
    ),
)
