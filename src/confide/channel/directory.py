"""Believing and signing the directory of a relay. Clauses: docs/protocols/relay.md §4.

What is established is who signed which list, and when. **Nothing** is established about the nodes
on it: each is appraised by whoever asks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from confide.crypto.ed25519 import verify_ed25519
from confide.crypto.errors import BadSignature
from confide.errors import DirectoryRejected, Reason
from confide.rats import Finding, Status
from confide.wire.directory import Directory, parse_directory
from confide.wire.note import Note, SignatureType

if TYPE_CHECKING:
    from datetime import datetime

    from confide.crypto.cosign import NoteSigner
    from confide.wire.note import VerifierKey

__all__ = ["VerifiedDirectory", "sign_directory", "verify_directory"]

_CLAUSE: Final = "docs/protocols/relay.md#4.3"


@dataclass(frozen=True, slots=True)
class VerifiedDirectory:
    """A directory that `verify_directory` believed, under the key named `signer`."""

    directory: Directory
    signer: str


def verify_directory(
    raw: bytes,
    *,
    key: VerifierKey,
    now: datetime,
    floor: int,
    held: VerifiedDirectory | None = None,
) -> VerifiedDirectory:
    """
    Return the directory in `raw`, signed by `key` and in force at `now`.

    Steps, in the order of relay.md 4.3: (1) it is a directory, (2) `key` signed it, (3) it is in
    force, (4) its sequence is not below `floor` or that of `held`, nor the same with other content.
    **Does not check** anything about the nodes. Raises `FormatError` and `DirectoryRejected`.
    """
    found = parse_directory(raw)  # (1)
    _require_signature(found.note, key)  # (2)
    directory = found.directory
    if not directory.not_before <= now <= directory.not_after:  # (3)
        _refuse(3, Reason.DIRECTORY_TIME, "not in force now")
    lowest = max(floor, 0 if held is None else held.directory.sequence)
    if directory.sequence < lowest:  # (4)
        _refuse(4, Reason.DIRECTORY_ROLLBACK, "older than one that was seen")
    if held is not None and directory != held.directory and directory.sequence == lowest:
        _refuse(4, Reason.DIRECTORY_ROLLBACK, "another one of the same number was seen")
    return VerifiedDirectory(directory, key.name)


def sign_directory(directory: Directory, signer: NoteSigner) -> bytes:
    """Return `directory` as a signed note; `ValueError` for a key that is not plain Ed25519."""
    text = directory.text()
    return Note(text, (signer.sign_text(text),)).encode()


def _require_signature(note: Note, key: VerifierKey) -> None:
    lines = [line for line in note.signatures if (line.name, line.key_id) == (key.name, key.key_id)]
    if key.kind is not SignatureType.ED25519 or len(lines) != 1:
        _refuse(2, Reason.DIRECTORY_SIGNATURE, "not signed by the key that is pinned")
    try:
        verify_ed25519(key.key, lines[0].blob, note.text.encode())
    except BadSignature as error:
        finding = _finding(2, Reason.DIRECTORY_SIGNATURE, "the signature does not verify")
        raise DirectoryRejected((finding,)) from error


def _finding(step: int, reason: Reason, detail: str) -> Finding:
    return Finding(Status.FAIL, f"directory/{step}", _CLAUSE, "directory", detail, reason)


def _refuse(step: int, reason: Reason, detail: str) -> NoReturn:
    raise DirectoryRejected((_finding(step, reason, detail),))
