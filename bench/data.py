"""Data sets and sealed files: rows read and committed to, files sealed and opened, in memory.

Rows are synthetic chats. The peers are the bare cipher, the bare hash and the bare JSON parser of
the same run. Sealing includes the SHA-256 of the sealed bytes, which records name.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from bench.rows import MB, Row, rates, row
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from confide.crypto.sealed_file import CHUNK_BYTES, open_file_under, seal_file_under
from confide.training.dataset import commit_rows
from confide.training.rows import RowReader, require_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEY = bytes(range(32))
_PIECE = 1024 * 1024
_NAME = "bench"


def data_rows() -> Iterator[Row]:
    """Yield the rows of this group."""
    yield from _sealing()
    for size, kind, texts in (
        (1_000, "ASCII", ("x" * 500, "y" * 500)),
        (1_000, "line ends, quotes and umlauts", (_spelt(450), _spelt(450))),
        (100_000, "ASCII", ("x" * 50_000, "y" * 50_000)),
    ):
        yield from _committing(f"rows of {size:,} bytes, {kind}", *texts)


def _sealing() -> Iterator[Row]:
    plain = hashlib.shake_256(_KEY).digest(32 * _PIECE)
    pieces = [plain[at : at + _PIECE] for at in range(0, len(plain), _PIECE)]
    chunks = [plain[at : at + CHUNK_BYTES] for at in range(0, len(plain), CHUNK_BYTES)]
    cipher = AESGCM(_KEY)

    def bare_cipher() -> None:
        for at, chunk in enumerate(chunks):
            cipher.encrypt(at.to_bytes(12, "big"), chunk, None)

    def bare_hash() -> None:
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)

    def seal() -> None:
        sealer = seal_file_under(_KEY, name=_NAME, salt=_KEY)
        for piece in pieces:
            sealer.write(piece)
        sealer.finish()

    sealer = seal_file_under(_KEY, name=_NAME, salt=_KEY)
    sealed = [b"".join(sealer.write(piece)) for piece in pieces] + sealer.finish()

    def open_all() -> None:
        opener = open_file_under(_KEY, name=_NAME)
        for piece in sealed:
            opener.write(piece)
        opener.end()

    megabytes = len(plain) / MB
    aes, sha, sealing, opening = (
        megabytes * each for each in rates(bare_cipher, bare_hash, seal, open_all)
    )
    budget = "≥ 700 MB/s"
    yield row("bare AES-256-GCM, 64 KiB", aes, "MB/s")
    yield row("bare SHA-256", sha, "MB/s")
    # What both cost one after the other: the most that one core can do.
    most = 1 / (1 / aes + 1 / sha)
    yield row(
        "seal a file and hash it", sealing, "MB/s", peer=most, budget=budget, met=sealing >= 700
    )
    yield row("open a sealed file", opening, "MB/s", peer=aes, budget=budget, met=opening >= 700)


def _spelt(size: int) -> str:
    """Return text that JSON has to escape here and there, and that is not all ASCII."""
    return ('Er fragte: "Wann öffnet der Laden?"\nUm neun, und um sechs schließt er wieder. ' * 9)[
        :size
    ]


def _committing(name: str, question: str, answer: str) -> Iterator[Row]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    line = json.dumps({"messages": messages}).encode() + b"\n"
    count = max(8, 2_000_000 // len(line))
    raw = line * count

    def commit() -> None:
        commit_rows(require_rows(RowReader().read([raw])), _KEY)

    def bare_parser() -> None:
        for each in raw.splitlines():
            json.loads(each)

    megabytes = len(raw) / MB
    rows = list(require_rows(RowReader().read([raw])))

    def hash_alone() -> None:
        commit_rows(rows, _KEY)

    def bare_hash() -> None:
        hashlib.sha256(raw).digest()

    whole, parser, leaves, sha = (
        megabytes * each for each in rates(commit, bare_parser, hash_alone, bare_hash)
    )
    yield row(f"read and commit to {name}", whole, "MB/s", peer=parser)
    yield row(f"salts, leaves and tree alone, {name}", leaves, "MB/s", peer=sha)
