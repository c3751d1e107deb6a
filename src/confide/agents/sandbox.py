"""What goes into a sandbox and what comes out: frozen values. Pure.

docs/protocols/sandbox.md. The Expectation's `Limits` are enforced as they stand; the constants
here are the house rules that no Expectation can widen.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from confide.agents.egress import EgressPolicy
    from confide.expectation import Limits

__all__ = [
    "RUN_UID",
    "SECRET_BYTES",
    "STDIO_BYTES",
    "TMP_BYTES",
    "TURN_BYTES",
    "AgentImage",
    "ExitKind",
    "LeftOut",
    "OutputFile",
    "Places",
    "SandboxExit",
    "SandboxSpec",
]

# /tmp of the agent counts against its memory like everything it writes.
TMP_BYTES: Final = 64 * 1024 * 1024
# From: docs/protocols/state.md 1.2: the secrets of one run together.
SECRET_BYTES: Final = 8 * 1024 * 1024
# What is kept of each of stdout and stderr; more is read and dropped, so that nothing blocks.
STDIO_BYTES: Final = 1024 * 1024
# One line of a chat turn, either way.
TURN_BYTES: Final = 4 * 1024 * 1024
# From: Linux NGROUPS-independent convention "nonroot" of distroless images.
RUN_UID: Final = 65532


@dataclass(frozen=True, slots=True)
class AgentImage:
    """
    An image that was measured and is ready to be loaded.

    `digest` is the SHA-256 of the manifest (what Expectations and receipts name), `config` that
    of the config (what engines call the image id), `layout` the directory of the OCI layout.
    """

    digest: str
    config: str
    layout: str


@dataclass(frozen=True, slots=True)
class Places:
    """
    Where an image finds its files: folders inside the container. Agents have the defaults.

    `read_only` are directories of this machine and where they appear; whoever names one has
    measured it. `scratch_bytes` is the size of /tmp, `devices` are CDI names of what is handed in.
    """

    inputs: str = "/input"
    outputs: str = "/output"
    read_only: tuple[tuple[str, str], ...] = ()
    scratch_bytes: int = TMP_BYTES
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """
    One run.

    `run_id` is lower-case hex. `command` is empty where the image's own entry point is used.
    `environment` is what is added to the image's; `set_variable` may add more. `secret_files` and
    `state` say whether the agent finds /run/secrets and /state, `places` where everything else is.
    """

    run_id: str
    image: AgentImage
    mode: Literal["batch", "chat"]
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    limits: Limits
    egress: EgressPolicy
    secret_files: bool = False
    state: bool = False
    places: Places = Places()


class ExitKind(StrEnum):
    """How a run ended. Everything but EXITED was our or the kernel's doing."""

    EXITED = "exited"
    NOT_STARTED = "not-started"
    KILLED_WALL = "killed-wall"
    KILLED_MEMORY = "killed-memory"
    KILLED_OUTPUT = "killed-output"
    KILLED_PIDS = "killed-pids"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file below /output: relative `path`, size in bytes, SHA-256 (hex)."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """
    Something below /output or /state that is not returned: a link, socket or pipe, a bad name.

    `path` is escaped to printable ASCII; `why` is our own word.
    """

    path: str
    why: Literal["not a regular file", "name", "too deep", "secret in the name"]


@dataclass(frozen=True, slots=True)
class SandboxExit:
    """
    The end of a run.

    `status` is the exit status of the agent's first process, None where it never ended by
    itself. `stdout` and `stderr` hold the first `STDIO_BYTES`; the byte counts hold all.
    `outputs` are in order of their path. The files stay readable until the session is closed.
    """

    kind: ExitKind
    status: int | None
    wall_ms: int
    stdout: bytes
    stderr: bytes
    stdout_bytes: int
    stderr_bytes: int
    outputs: tuple[OutputFile, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def succeeded(self) -> bool:
        """Whether the agent ended by itself with status 0."""
        return self.kind is ExitKind.EXITED and self.status == 0
