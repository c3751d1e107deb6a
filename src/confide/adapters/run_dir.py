"""The files of one run: in memory, bounded, gone afterwards.

docs/protocols/sandbox.md §4. Below /dev/shm there is one private directory for each node, named
after the process that owns it so that a later node can tell what was left behind. Input, output
and scratch of a run are each a tmpfs with a size of its own. Whatever the agent leaves in /output
is hostile: it is walked without following links, and only plain files come out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from confide.adapters.hostile_tree import open_plain, walk_tree
from confide.adapters.linux import mount_tmpfs, unmount
from confide.agents.names import parse_member_name
from confide.agents.sandbox import RUN_UID, TMP_BYTES, LeftOut, OutputFile
from confide.errors import FormatError, Reason, RunRefused, Unavailable
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.expectation import Limits

__all__ = [
    "Collected",
    "NodeDirectory",
    "RunDirectory",
    "is_alive",
    "owner_mark",
    "remove_tree",
    "sweep_directories",
]

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - memory, and the directory below it is private
_PREFIX: Final = "confide-"
_PIECE: Final = 1024 * 1024
# Above the limit, so that "over" can be told from "exactly full".
_SLACK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Collected:
    """What a run left in /output. With `over`, the limits were passed and nothing is returned."""

    outputs: tuple[OutputFile, ...]
    left_out: tuple[LeftOut, ...]
    over: bool


def owner_mark(pid: int) -> str:
    """
    Return what tells process `pid` from a later one with the same number; empty when it is gone.

    From: proc(5), /proc/pid/stat field 22, the start time in clock ticks.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return f"{pid}-{text.rpartition(')')[2].split()[19]}"


def is_alive(mark: str) -> bool:
    """Whether the process that `owner_mark` named still runs."""
    pid = mark.partition("-")[0]
    return pid.isdecimal() and owner_mark(int(pid)) == mark


class NodeDirectory:
    """The directory of one node; made on creation, removed by `close`."""

    def __init__(self, root: Path = _MEMORY) -> None:
        self.mark = owner_mark(os.getpid())
        self.path = root / f"{_PREFIX}{self.mark}"
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"run directory: no memory file system ({error.strerror})") from error

    def open(self, run_id: str, limits: Limits, *, scratch_bytes: int = TMP_BYTES) -> RunDirectory:
        """Make the directory of one run."""
        return RunDirectory(self.path / run_id, limits, scratch_bytes)

    def close(self) -> None:
        """Remove everything of this node."""
        remove_tree(self.path)


class RunDirectory:
    """`input`, `output` and the two small files an agent needs to find its own machine."""

    def __init__(self, path: Path, limits: Limits, scratch_bytes: int) -> None:
        self.path = path
        self.input = path / "input"
        self.output = path / "output"
        self.scratch = path / "scratch"
        self.hosts = path / "hosts"
        self.resolver = path / "resolv.conf"
        self._limits = limits
        self._scratch_bytes = scratch_bytes
        self._input_bytes = 0
        try:
            self._make()
        except OSError as error:
            self.wipe()
            raise Unavailable(f"run directory: cannot make it ({error.strerror})") from error

    def _make(self) -> None:
        self.path.mkdir(mode=0o700)
        for folder in (self.input, self.output, self.scratch):
            folder.mkdir(mode=0o700)
        agents = f"mode=0700,uid={RUN_UID},gid={RUN_UID}"
        size = self._limits.output_bytes + _SLACK_BYTES
        inodes = 2 * self._limits.output_files + 64
        mount_tmpfs(str(self.input), f"mode=0755,size={self._limits.input_bytes + _SLACK_BYTES}")
        mount_tmpfs(str(self.output), f"{agents},size={size},nr_inodes={inodes}")
        mount_tmpfs(str(self.scratch), f"{agents},size={self._scratch_bytes}")
        for path, text in (
            (self.hosts, "127.0.0.1 localhost\n::1 localhost\n"),
            (self.resolver, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"),
        ):
            path.write_text(text, encoding="ascii")
            path.chmod(0o644)

    def write_input(self, name: str, data: bytes) -> None:
        """
        Append `data` to input `name`.

        `FormatError` for the name, `RunRefused` above the limit, `Unavailable` when memory is full.
        """
        parse_member_name(name)
        self._input_bytes += len(data)
        if self._input_bytes > self._limits.input_bytes:
            raise _over_limit(f"more than {self._limits.input_bytes} bytes of input")
        path = self.input / name
        try:
            for folder in reversed(path.relative_to(self.input).parents[:-1]):
                (self.input / folder).mkdir(mode=0o755, exist_ok=True)
            with path.open("ab") as file:
                file.write(data)
            path.chmod(0o444)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise FormatError(
                "file name: one input is a directory of another",
                reason=Reason.FILE_NAME,
                clause="sandbox.md §4",
            ) from error
        except OSError as error:
            raise Unavailable(f"run directory: cannot write ({error.strerror})") from error

    def output_full(self) -> bool:
        """Whether /output is above its limits; cheap enough to ask ten times a second."""
        found = os.statvfs(self.output)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        return used > self._limits.output_bytes or found.f_ffree == 0

    def collect(self) -> Collected:
        """Hash what the agent left. Only after it is gone: nothing may change below us."""
        outputs: list[OutputFile] = []
        left_out: list[LeftOut] = []
        total = 0
        if self.output_full():
            return Collected((), (), over=True)
        for path, kind in walk_tree(self.output):
            if isinstance(kind, LeftOut):
                left_out.append(kind)
            if kind != "file":
                continue
            size = (self.output / path).lstat().st_size
            total += size
            if total > self._limits.output_bytes or len(outputs) >= self._limits.output_files:
                return Collected((), (), over=True)
            outputs.append(OutputFile(path, size, _hash(self.output / path)))
        outputs.sort(key=lambda item: item.path)
        left_out.sort(key=lambda item: item.path)
        return Collected(tuple(outputs), tuple(left_out), over=False)

    def read_output(self, path: str) -> Iterator[bytes]:
        """Iterate over a collected file."""
        with open_plain(self.output / parse_member_name(path)) as file:
            while piece := file.read(_PIECE):
                yield piece

    def wipe(self) -> None:
        """Unmount and remove; memory goes back to the kernel."""
        remove_tree(self.path)


def sweep_directories(root: Path = _MEMORY) -> int:
    """Remove the directories of nodes that are gone; return how many runs they held."""
    count = 0
    for path in root.glob(f"{_PREFIX}*-*"):
        mark = path.name.removeprefix(_PREFIX)
        if mark.partition("-")[0].isdecimal() and not is_alive(mark):
            with contextlib.suppress(OSError):
                count += sum(1 for run in path.iterdir() if run.is_dir())
            remove_tree(path)
    return count


def remove_tree(path: Path) -> None:
    """Remove `path` with whatever is mounted one or two levels below it."""
    for depth in ("*/*", "*"):
        for inner in path.glob(depth):
            if inner.is_mount() and not inner.is_symlink():
                with contextlib.suppress(OSError):
                    unmount(str(inner))
    shutil.rmtree(path, ignore_errors=True)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open_plain(path) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _over_limit(detail: str) -> RunRefused:
    finding = Finding(
        Status.FAIL, "run/limits", "sandbox.md §3", "input", detail, Reason.LIMIT_EXCEEDED
    )
    return RunRefused((finding,))
