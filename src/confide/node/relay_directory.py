"""Where a relay's directory comes from: signed here as keysets change, or read from a file.

Clause: docs/protocols/relay.md 4.7. Both give what is listed now, or None where nothing is.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from confide.channel.directory import sign_directory
from confide.errors import FormatError
from confide.wire.directory import Directory, parse_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from confide.crypto.cosign import NoteSigner
    from confide.node.relay_table import RelayTable
    from confide.ports import Clock
    from confide.wire.directory import Listed, NoteWithDirectory

__all__ = ["DirectorySource", "OwnDirectory", "SignedFile", "next_directory"]

_LIFETIME: Final = timedelta(hours=1)
# A client's clock may be a little behind.
_EARLIER: Final = timedelta(minutes=5)
_MAX_BYTES: Final = 1024 * 1024
_POLL_SECONDS: Final = 10.0


class DirectorySource(Protocol):
    """What is listed now."""

    def current(self) -> NoteWithDirectory | None:
        """Return the directory to serve; None where there is none."""
        ...

    async def watch(self) -> None:
        """Keep it current, until cancelled."""
        ...


def next_directory(
    nodes: tuple[Listed, ...], *, now: datetime, lifetime: timedelta, after: int = 0
) -> Directory:
    """Return a directory from `now` on, with a sequence above `after`: the Unix time."""
    now = now.replace(microsecond=0)
    sequence = max(int(now.timestamp()), after + 1)
    return Directory(sequence, now - _EARLIER, now + lifetime, nodes)


class OwnDirectory:
    """Signs what the table lists, anew when that changed or half of the time is over."""

    def __init__(self, table: RelayTable, signer: NoteSigner, *, clock: Clock) -> None:
        self._table = table
        self._signer = signer
        self._clock = clock
        self._held: NoteWithDirectory | None = None

    def current(self) -> NoteWithDirectory | None:
        """Return the directory of this moment."""
        nodes, now, held = self._table.listed(), self._clock.now(), self._held
        if held is not None and nodes == held.directory.nodes:
            begin = held.directory.not_before + _EARLIER
            if begin <= now < begin + _LIFETIME / 2:
                return held
        if not nodes:
            return None
        after = 0 if held is None else held.directory.sequence
        made = next_directory(nodes, now=now, lifetime=_LIFETIME, after=after)
        self._held = parse_directory(sign_directory(made, self._signer))
        return self._held

    async def watch(self) -> None:
        """It is made when it is asked for: nothing is to be done."""
        await asyncio.Event().wait()


class SignedFile:
    """Serves a directory that was signed elsewhere; raises `FormatError` where it is none."""

    def __init__(self, file: Path, *, report: Callable[[str], None]) -> None:
        self._file = file
        self._report = report
        self._raw = b""
        self._held: NoteWithDirectory | None = None
        self._read()

    def current(self) -> NoteWithDirectory | None:
        """Return what the file held when it was read last; its signature is for clients."""
        return self._held

    async def watch(self) -> None:
        """Read it again where it changed. What cannot be used changes nothing, and is reported."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                await asyncio.to_thread(self._read)
            except FormatError as error:
                self._report(f"the directory was not read again: {error.what}")
            except OSError:
                self._report("the directory was not read again: no such file can be read")

    def _read(self) -> None:
        with self._file.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if raw != self._raw:
            self._held = parse_directory(raw)
            self._raw = raw
