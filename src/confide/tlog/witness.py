"""What a witness answers, as a decision over what it cosigned before. log.md §4. Pure.

Storing the head before answering, one request at a time, is the caller's part (4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.crypto.cosign import verify_note_signature
from confide.crypto.errors import BadProof, BadSignature
from confide.crypto.merkle import EMPTY_ROOT, verify_consistency
from confide.wire.witness import SIZE_TYPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.wire.checkpoint import Checkpoint
    from confide.wire.note import VerifierKey
    from confide.wire.witness import AddCheckpoint

__all__ = ["WitnessAnswer", "consider"]

_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class WitnessAnswer:
    """
    What to answer. With status 200: store the head, cosign it, answer the line.

    `contradicts` says that the log signed two heads that cannot both be (4.4): keep this one.
    """

    status: int
    body: bytes = b""
    content_type: str = _TEXT
    contradicts: bool = False


def consider(
    request: AddCheckpoint, *, logs: Sequence[VerifierKey], last: Checkpoint | None
) -> WitnessAnswer:
    """
    Decide about `request`, in the order of 4.2.

    `logs` are the keys trusted for the request's origin, none where it is unknown; `last` is the
    head that was cosigned last for it.
    """
    head = request.checkpoint.head
    if request.old > head.size:
        return WitnessAnswer(400, b"the old size is above that of the checkpoint\n")
    if not logs:
        return WitnessAnswer(404, b"unknown log\n")
    if not _signed(request, logs):
        return WitnessAnswer(403, b"no valid signature of the log\n")
    known = 0 if last is None else last.size
    contradicts = last is not None and head.size == known and head.root != last.root
    if request.old != known or contradicts:
        return WitnessAnswer(409, b"%d\n" % known, SIZE_TYPE, contradicts)
    if not _extends(request, last):
        return WitnessAnswer(422, b"the checkpoint does not extend the one cosigned last\n")
    return WitnessAnswer(200)


def _extends(request: AddCheckpoint, last: Checkpoint | None) -> bool:
    head = request.checkpoint.head
    size, root = (0, EMPTY_ROOT) if last is None else (last.size, last.root)
    try:
        verify_consistency(size, head.size, request.proof, old_root=root, new_root=head.root)
    except BadProof:
        return False
    return head.size > 0 or head.root == EMPTY_ROOT


def _signed(request: AddCheckpoint, logs: Sequence[VerifierKey]) -> bool:
    """Whether a trusted key signed; no line of one may fail, or be there twice (3.3)."""
    seen: set[tuple[str, bytes]] = set()
    for line in request.checkpoint.note.signatures:
        for key in logs:
            if (line.name, line.key_id) != (key.name, key.key_id):
                continue
            if (key.name, key.key_id) in seen:
                return False
            seen.add((key.name, key.key_id))
            try:
                verify_note_signature(key, line, request.checkpoint)
            except BadSignature:
                return False
    return bool(seen)
