"""Looking for plaintext where a host could find it: files, processes, the loopback wire.

A canary is 32 random letters and digits. Found is found in any of the spellings that
software makes without meaning to: as it is, base64 at each of three alignments, hex, UTF-16.
"""

from __future__ import annotations

import base64
import ctypes
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_PIECE = 8 << 20
# Longer than any spelling of a canary: pieces overlap by it.
_OVERLAP = 256
# From: packet(7).
_ETH_P_ALL, _SOL_PACKET, _PACKET_STATISTICS, _PACKET_HOST = 3, 263, 6, 0
_BUFFER_BYTES = 256 << 20


class Canaries:
    """
    `count` canaries and one search for all of them in every spelling.

    All begin with one mark of 16 characters and go on with 16 of their own; `draw` gives random
    bytes. The mark is what makes searching gigabytes a matter of seconds.
    """

    def __init__(self, count: int, draw: Callable[[int], bytes]) -> None:
        mark = _letters(draw(16))
        self.words = tuple(mark + _letters(draw(16)) for _ in range(count))
        # Spelling of the mark to the spellings of the words that begin so, all of one length.
        self._begin: dict[bytes, dict[bytes, str]] = {}
        for word in self.words:
            for start, whole in zip(spellings(mark), spellings(word), strict=True):
                self._begin.setdefault(start, {})[whole] = word

    def inside(self, data: bytes) -> set[str]:
        """The canaries that stand in `data`."""
        found = set()
        for start, wholes in self._begin.items():
            size, at = len(next(iter(wholes))), data.find(start)
            while at >= 0:
                word = wholes.get(data[at : at + size])
                if word is not None:
                    found.add(word)
                at = data.find(start, at + 1)
        return found

    def inside_file(self, path: Path) -> set[str]:
        """The canaries that stand in a file; what disappears meanwhile holds none."""
        found: set[str] = set()
        try:
            with path.open("rb") as file:
                rest = b""
                while piece := file.read(_PIECE):
                    found |= self.inside(rest + piece)
                    rest = piece[-_OVERLAP:]
        except OSError:
            pass
        return found


def _letters(raw: bytes) -> str:
    return "".join(_ALPHABET[byte & 31] for byte in raw)


def spellings(word: str) -> Iterator[bytes]:
    """Every way in which software writes `word` without meaning to."""
    raw = word.encode()
    yield raw
    yield raw.hex().encode()
    yield word.encode("utf-16-le")
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + raw)
        # Without what depends on the neighbours at either end.
        yield encoded[(8 * shift + 5) // 6 : (8 * (shift + len(raw))) // 6]


@dataclass(frozen=True, slots=True)
class Place:
    """A name for what is scanned and the files in it that changed since `since`."""

    name: str
    root: Path
    # Whatever lies on these file systems is memory of the trust domain, not the host's disk.
    without: tuple[Path, ...] = ()

    def files(self, since: float) -> Iterator[Path]:
        """Regular files whose inode changed since `since`; links are not followed."""
        for folder, folders, names in os.walk(self.root):
            here = Path(folder)
            folders[:] = [name for name in folders if here / name not in self.without]
            for name in names:
                path = here / name
                try:
                    info = path.lstat()
                except OSError:
                    continue
                if (info.st_mode & 0o170000) == 0o100000 and info.st_ctime >= since:
                    yield path

    def leaks(self, canaries: Canaries, since: float) -> set[str]:
        """`place: path` of every file that holds a canary, in its content or in its name."""
        return {
            f"{self.name}: {path}"
            for path in self.files(since)
            if canaries.inside(os.fsencode(path)) or canaries.inside_file(path)
        }


def process_leaks(canaries: Canaries) -> set[str]:
    """`pid what` of every process with a canary in its arguments or environment."""
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            for what in ("cmdline", "environ", "comm"):
                if canaries.inside_file(process / what):
                    found.add(f"{process.name} {what}")
    return found


@dataclass(slots=True)
class Wire:
    """Everything that passes on `lo` of this network namespace while it is open, by TCP flow."""

    flows: dict[tuple[int, int], bytearray] = field(default_factory=dict)
    lost: int = 0
    packets: int = 0
    _socket: socket.socket = field(init=False)
    _thread: threading.Thread = field(init=False)
    _ends: dict[tuple[int, int], int] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        # SO_RCVBUFFORCE is 33 (socket.h): root may hold more than the system's maximum.
        self._socket.setsockopt(socket.SOL_SOCKET, 33, _BUFFER_BYTES)
        self._socket.bind(("lo", _ETH_P_ALL))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A datagram of ours is the sign to stop: everything before it was seen.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(_END, ("127.0.0.1", 9))
        self._thread.join()
        raw = self._socket.getsockopt(
            _SOL_PACKET, _PACKET_STATISTICS, ctypes.sizeof(ctypes.c_uint) * 2
        )
        self.packets, self.lost = struct.unpack("II", raw)
        self._socket.close()

    def _listen(self) -> None:
        while True:
            packet, address = self._socket.recvfrom(1 << 17)
            if address[2] != _PACKET_HOST:
                continue
            if packet.endswith(_END):
                return
            self._take(packet)

    def _take(self, packet: bytes) -> None:
        if not packet or packet[0] >> 4 != 4 or packet[9] != 6:
            return
        tcp = packet[4 * (packet[0] & 15) : int.from_bytes(packet[2:4], "big") or len(packet)]
        source, target, sequence = struct.unpack_from("!HHI", tcp)
        data = tcp[4 * (tcp[12] >> 4) :]
        if not data:
            return
        flow = (source, target)
        # What was sent again is not appended again: a canary must not be cut in two by it.
        if self._ends.get(flow) != sequence + len(data):
            self._ends[flow] = sequence + len(data)
            self.flows.setdefault(flow, bytearray()).extend(data)

    def leaks(self, canaries: Canaries, *, without_port: int | None = None) -> set[str]:
        """`source > target` of every flow with a canary, leaving out one port."""
        return {
            f"{source} > {target}"
            for (source, target), data in self.flows.items()
            if without_port not in (source, target) and canaries.inside(bytes(data))
        }


_END = b"the end of this recording 5f0c2d"
