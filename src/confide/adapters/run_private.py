"""Secrets and state of one run: two more file systems in memory, gone with the run.

docs/protocols/state.md 1.2, 1.3, 2.2. They lie in the directory of the run (`run_dir`), which
unmounts and removes them. The agent cannot write into /run/secrets; what it leaves in /state is
hostile.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from confide.adapters.hostile_tree import left_out, open_plain, walk_tree
from confide.adapters.linux import mount_tmpfs
from confide.agents.names import parse_member_name
from confide.agents.sandbox import RUN_UID, SECRET_BYTES, LeftOut
from confide.agents.state_files import MAX_STATE_ENTRIES, StateEntry, StateTree, fits_state
from confide.errors import FormatError, LocalProtocolError, Reason, RunRefused, Unavailable
from confide.rats import Finding, Status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from confide.agents.sandbox import SandboxSpec

__all__ = ["PrivateFiles"]

_SECRET_INODES: Final = 80
_AGENTS: Final = f"mode=0700,uid={RUN_UID},gid={RUN_UID}"
_SLACK_BYTES: Final = 1024 * 1024


class PrivateFiles:
    """`secrets` and `state` below `root`, each only where the spec asks for it."""

    def __init__(self, root: Path, spec: SandboxSpec) -> None:
        self._spec = spec
        self.secrets = root / "secrets"
        self.state = root / "state"
        size, inodes = spec.limits.state_bytes + _SLACK_BYTES, MAX_STATE_ENTRIES + 16
        try:
            if spec.secret_files:
                self.secrets.mkdir(mode=0o700)
                room = f"size={SECRET_BYTES + _SLACK_BYTES},nr_inodes={_SECRET_INODES}"
                mount_tmpfs(str(self.secrets), f"{_AGENTS},{room}")
            if spec.state:
                self.state.mkdir(mode=0o700)
                mount_tmpfs(str(self.state), f"{_AGENTS},size={size},nr_inodes={inodes}")
        except OSError as error:
            raise Unavailable(f"run directory: cannot make it ({error.strerror})") from error

    @property
    def mounts(self) -> tuple[str, ...]:
        """What the container mounts."""
        found = []
        if self._spec.secret_files:
            found.append(f"type=bind,source={self.secrets},destination=/run/secrets,ro=true")
        if self._spec.state:
            found.append(f"type=bind,source={self.state},destination=/state")
        return tuple(found)

    def write_secret(self, name: str, data: bytes) -> None:
        """Write one secret, readable by the agent alone. `FormatError` for its name."""
        if not self._spec.secret_files or "/" in parse_member_name(name):
            raise LocalProtocolError("no place for a secret of that name")
        _write(self.secrets / name, data, mode=0o400)

    def restore(self, entries: Sequence[StateEntry]) -> None:
        """Fill /state. `RunRefused` (LIMIT_EXCEEDED) where it does not fit."""
        if not self._spec.state:
            raise LocalProtocolError("no place for a state")
        try:
            for entry in entries:
                path = self.state / parse_member_name(entry.path)
                if entry.data is None:
                    path.mkdir(mode=0o700)
                    os.chown(path, RUN_UID, RUN_UID)
                else:
                    _write(path, entry.data, mode=0o600)
        except OSError as error:
            raise Unavailable(f"run directory: cannot write ({error.strerror})") from error

    def read(self) -> StateTree:
        """Return what is in /state; only after the agent is gone."""
        if not self._spec.state:
            raise LocalProtocolError("this run has no state")
        entries: list[StateEntry] = []
        left: list[LeftOut] = []
        folders = {""}
        room = self._spec.limits.state_bytes
        for path, kind in walk_tree(self.state):
            if isinstance(kind, LeftOut):
                left.append(kind)
                continue
            if path.rpartition("/")[0] not in folders or not _sayable(path, kind == "directory"):
                left.append(left_out(path, "name"))
                continue
            if kind == "directory":
                folders.add(path)
                entries.append(StateEntry(path, None))
            else:
                # Asked before it is read: a file with holes may be larger than memory.
                room -= (self.state / path).lstat().st_size
                entries.append(StateEntry(path, self._content(path) if room >= 0 else b""))
            if room < 0 or len(entries) > MAX_STATE_ENTRIES:
                return StateTree((), (), over=True)
        return StateTree(tuple(entries), tuple(left), over=False)

    def _content(self, path: str) -> bytes:
        with open_plain(self.state / path) as file:
            return file.read()


def _sayable(path: str, folder: bool) -> bool:  # noqa: FBT001 - the one question there is
    try:
        return fits_state(parse_member_name(path), folder=folder)
    except FormatError:
        return False


def _write(path: Path, data: bytes, *, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(path, flags, mode), "wb") as file:
            os.fchown(file.fileno(), RUN_UID, RUN_UID)
            file.write(data)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _over_limit() from error
        raise Unavailable(f"run directory: cannot write ({error.strerror})") from error


def _over_limit() -> RunRefused:
    detail = "secrets or state do not fit into the memory that they have"
    finding = Finding(
        Status.FAIL, "run/limits", "sandbox.md §3", "private files", detail, Reason.LIMIT_EXCEEDED
    )
    return RunRefused((finding,))
