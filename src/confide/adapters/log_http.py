"""A log and its witnesses over HTTP, from the side that asks. log.md §4.2, §9.

Whoever answers is hostile: answers are bounded and parsed here, and believed by `tlog` alone.
Static tiles may come from any web server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httpx2

from confide.adapters.http_client import system_trust
from confide.errors import FormatError, RemoteProtocolError, Unavailable
from confide.tlog.leaf import ENTRY_BYTES
from confide.tlog.prove import (
    prove_consistency,
    prove_inclusion,
    tiles_for_consistency,
    tiles_for_inclusion,
    verify_tiles,
)
from confide.wire.checkpoint import HASH_BYTES, SignedCheckpoint, parse_checkpoint, parse_decimal
from confide.wire.note import MAX_NOTE_BYTES, VerifierKey, parse_signature_lines
from confide.wire.tiles import TILE_WIDTH, TilePath
from confide.wire.tlog_proof import MAX_PROOF_BYTES, TlogProof, parse_tlog_proof
from confide.wire.witness import ADD_CHECKPOINT, SIZE_TYPE, WitnessReply, parse_size_body

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.wire.witness import AddCheckpoint

__all__ = ["HttpLog", "HttpWitness", "Pending", "ask_log", "ask_witness", "log_client"]

_TILE_BYTES: Final = TILE_WIDTH * HASH_BYTES
_HINT_SECONDS: Final = 5.0
_TIMEOUT: Final = httpx2.Timeout(connect=5.0, read=30.0, write=30.0, pool=30.0)


def log_client() -> httpx2.AsyncClient:
    """Return a client for logs and witnesses: no environment, no redirects."""
    return httpx2.AsyncClient(
        timeout=_TIMEOUT, trust_env=False, verify=system_trust(), follow_redirects=False
    )


def ask_log(url: str) -> str | None:
    """
    Return the size that the log at `url` says it has, None when it shows no checkpoint.

    A hint for people and for waiting, like `http_client.ask_health`; it proves nothing.
    """
    try:
        answer = httpx2.get(
            f"{url}/checkpoint", timeout=_HINT_SECONDS, trust_env=False, verify=system_trust()
        )
        size = parse_checkpoint(answer.content).head.size if answer.status_code == 200 else None
    except (httpx2.HTTPError, FormatError):
        return None
    return None if size is None else f"size {size}"


def ask_witness(url: str) -> str | None:
    """Return a word where a witness at `url` reads requests: it has to refuse an empty one."""
    try:
        asked = f"{url}/{ADD_CHECKPOINT}"
        answer = httpx2.post(
            asked, content=b"", timeout=_HINT_SECONDS, trust_env=False, verify=system_trust()
        )
    except httpx2.HTTPError:
        return None
    return "reads requests" if answer.status_code == 400 else None


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str


async def _ask(
    client: httpx2.AsyncClient, method: str, url: str, *, max_bytes: int, body: bytes | None = None
) -> _Answer:
    try:
        async with client.stream(method, url, content=body) as answer:
            raw = bytearray()
            async for chunk in answer.aiter_bytes():
                raw += chunk
                if len(raw) > max_bytes:
                    raise Unavailable(f"an answer of more than {max_bytes} bytes")
            kind = answer.headers.get("content-type", "")
            return _Answer(answer.status_code, bytes(raw), kind)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise Unavailable(f"no answer: {type(error).__name__}") from error


@dataclass(frozen=True, slots=True)
class Pending:
    """An entry that is durable in the log at `index`, and not yet final."""

    index: int


class HttpLog:
    """One log at one URL prefix."""

    def __init__(self, client: httpx2.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url.rstrip("/")

    async def checkpoint(self) -> SignedCheckpoint:
        """Return the checkpoint as served; not verified. `Unavailable`, `FormatError`."""
        answer = await self._get("checkpoint", MAX_NOTE_BYTES)
        if answer.status != 200:
            raise Unavailable(f"the log answered {answer.status} instead of a checkpoint")
        return parse_checkpoint(answer.body)

    async def add(self, entry: bytes) -> TlogProof | Pending:
        """
        Log `entry` (32 bytes).

        Return its proof without a blinding, not verified, or `Pending` where the witnesses take
        longer. `Unavailable`: send the same entry again (1.5).
        """
        if len(entry) != ENTRY_BYTES:
            raise ValueError(f"an entry has {ENTRY_BYTES} bytes")
        answer = await self._post("add", entry)
        if answer.status == 200:
            return parse_tlog_proof(answer.body)
        if answer.status == 202:
            return Pending(_number(answer.body, "index"))
        raise Unavailable(f"the log answered {answer.status} instead of taking the entry")

    async def add_entries(self, entries: Sequence[bytes]) -> Pending:
        """Log `entries` in a row; return where the first stands. Raises as `add` does."""
        answer = await self._post("add-entries", b"".join(entries))
        if answer.status not in (200, 202):
            raise Unavailable(f"the log answered {answer.status} instead of taking the entries")
        return Pending(_number(answer.body, "index"))

    async def prove(self, index: int, at: SignedCheckpoint) -> TlogProof:
        """
        Return the proof of the entry at `index`, made from tiles; every tile is verified.

        `at` is a verified head of this log, larger than `index`. `LogRejected` names a tile.
        """
        paths = tiles_for_inclusion(index, at.head.size)
        trees = verify_tiles(at.head, await self._tiles(paths), known={})
        return TlogProof(index, prove_inclusion(index, at.head.size, trees), at)

    async def consistency(self, old: int, at: SignedCheckpoint) -> tuple[bytes, ...]:
        """Return the consistency proof from size `old` to the head `at`, made from tiles."""
        paths = tiles_for_consistency(old, at.head.size)
        trees = verify_tiles(at.head, await self._tiles(paths), known={})
        return prove_consistency(old, at.head.size, trees)

    async def _tiles(self, paths: Sequence[TilePath]) -> dict[TilePath, bytes]:
        return {path: await self._tile(path) for path in paths}

    async def _tile(self, path: TilePath) -> bytes:
        answer = await self._get(str(path), _TILE_BYTES)
        if answer.status == 200:
            return answer.body
        if path.width < TILE_WIDTH:
            # 2.5: the full one is there instead.
            answer = await self._get(str(path.full), _TILE_BYTES)
            if answer.status == 200 and len(answer.body) == _TILE_BYTES:
                return answer.body[: path.width * HASH_BYTES]
        raise Unavailable(f"the log answered {answer.status} instead of {path}")

    async def _get(self, name: str, max_bytes: int) -> _Answer:
        return await _ask(self._client, "GET", f"{self._url}/{name}", max_bytes=max_bytes)

    async def _post(self, name: str, body: bytes) -> _Answer:
        url = f"{self._url}/{name}"
        return await _ask(self._client, "POST", url, max_bytes=MAX_PROOF_BYTES, body=body)


def _number(raw: bytes, name: str) -> int:
    line = raw[:64].split(b"\n")[0].decode("ascii", "replace")
    if not line.startswith(f"{name} "):
        raise RemoteProtocolError("the log answered without an index")
    return parse_decimal(line.removeprefix(f"{name} "), what="log answer")


class HttpWitness:
    """The `Witness` port over HTTP."""

    def __init__(self, client: httpx2.AsyncClient, url: str, key: VerifierKey) -> None:
        self._client = client
        self._url = f"{url.rstrip('/')}/{ADD_CHECKPOINT}"
        self._key = key

    @property
    def key(self) -> VerifierKey:
        """The key that its cosignatures verify under."""
        return self._key

    async def add_checkpoint(self, request: AddCheckpoint) -> WitnessReply:
        """Ask for a cosignature; the lines that come back are not verified."""
        answer = await _ask(
            self._client, "POST", self._url, max_bytes=MAX_NOTE_BYTES, body=request.encode()
        )
        try:
            if answer.status == 200:
                return WitnessReply(parse_signature_lines(answer.body))
            if answer.status == 409 and answer.content_type.split(";")[0] == SIZE_TYPE:
                return WitnessReply((), parse_size_body(answer.body))
        except FormatError as error:
            raise RemoteProtocolError(error.what, reason=error.reason) from error
        if answer.status in (400, 403, 404, 422):
            raise RemoteProtocolError(f"the witness refused with {answer.status}")
        raise Unavailable(f"the witness answered {answer.status}")
