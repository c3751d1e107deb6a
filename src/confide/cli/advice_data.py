"""What to do about rows, commitments and proofs that are refused. dataset.md."""

from __future__ import annotations

from typing import Final

from confide.errors import Reason

__all__ = ["DATA_ADVICE"]

_R = Reason
DATA_ADVICE: Final[tuple[tuple[tuple[Reason, ...], str], ...]] = (
    (
        (_R.ROW_FORMAT,),
        "Mend the lines named; confide data check FILE reads all, and names those that are no row.",
    ),
    (
        (_R.DATASET_FORMAT,),
        (
            "This is no commitment, proof or salt as confide data writes it, or it was changed. "
            "Get it again, byte for byte as it was made."
        ),
    ),
    (
        (_R.DATASET_MISMATCH,),
        (
            "The rows, their order or the salt are not those that were committed to. Look for the "
            "file and the salt of that day; a commitment that no longer fits proves nothing."
        ),
    ),
    (
        (_R.DATASET_OPENING, _R.DATASET_INCLUSION),
        (
            "The proof does not show that this row is in the data set. Do not believe it; ask the "
            "owner for another (confide data prove)."
        ),
    ),
    (
        (_R.SEALED_FORMAT, _R.SEALED_OPEN, _R.SEALED_CUT),
        (
            "The sealed file was changed or cut since it was sealed, or is another one. Nothing of "
            "it is to be used; fetch it again."
        ),
    ),
    (
        (_R.SEALED_KEY,),
        "This is not the file, or not the key, that belongs to the other. Look for the right one.",
    ),
)
