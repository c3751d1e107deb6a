"""The embedded engine: `transformers serve` on 127.0.0.1, over one weights directory.

docs/protocols/weights.md §3 and §4. The engine is hostile-input machinery: it gets an empty home,
a bare environment, no network use of its own, and nothing it writes is kept or repeated.

How each thing is held to:

- *Only the measured weights.* The engine maps its weight files into memory: a byte changed on disk
  changes the model that is already serving. So it gets a copy of its own, and that copy must be
  what the manifest says, and lead nowhere else (weights.md §10), before the engine starts.
- *Under one name.* It is started in the directory above that copy, which is named like the model
  (a colon, which means a file to the engine, is a hyphen there), and is pinned to that name; it
  answers 400 to any other.
- *Really ours.* The engine takes a port of the kernel's choosing; the port is read from the
  kernel's own table as a listening socket of that very process. Nobody can sit on it before.
- *Ready.* It listens only after the weights are loaded, so listening is readiness.
- *Never an orphan.* The child asks the kernel to be killed when the thread that started it ends
  (`adapters/serve_child.py`). Start it from a thread that lives as long as the engine should.

What this does not do: it does not speak HTTP, and it does not keep other processes of this user
from the loopback port or from the copy; on a node there are none.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.weights_dir import copy_weights, verify_weights
from confide.adapters.weights_facts import require_contained
from confide.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from confide.inference.weights import WeightsManifest

__all__ = ["BUNDLED_NAME", "BUNDLED_WEIGHTS", "EmbeddedEngine", "EngineSettings"]

BUNDLED_NAME = "support-notes"
BUNDLED_WEIGHTS = Path(__file__).parents[1] / "bundled" / "support_notes"

# From: weights.md §3.2. '@' and ':' mean a revision and a file to the engine.
_ENGINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}(/[A-Za-z0-9][A-Za-z0-9._-]{0,199})?\Z")
_POLL_SECONDS = 0.05
_LISTEN = "0A"  # From: Linux include/net/tcp_states.h, TCP_LISTEN
_CHILD = Path(__file__).with_name("serve_child.py")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """
    What to serve and how.

    `manifest` is the measurement of the directory `weights`; `public_name` the `model` that
    callers ask for; `state_dir` a directory of ours for the engine's home and its copy of the
    weights. `threads` is the number of cores it may use at once, `device` what `transformers`
    calls one (`cpu`, `cuda:0`, `auto`).
    """

    weights: Path
    manifest: WeightsManifest
    public_name: str
    state_dir: Path
    threads: int = 2
    device: str = "cpu"
    ready_seconds: float = 120.0
    stop_seconds: float = 5.0

    @property
    def engine_name(self) -> str:
        """What the engine calls the model: names of tuned models, `ft:…`, have colons."""
        return self.public_name.replace(":", "-")


class EmbeddedEngine:
    """One running engine: `start`, then `stop`, or `async with await EmbeddedEngine.start(…)`."""

    def __init__(
        self, process: asyncio.subprocess.Process, port: int, home: Path, settings: EngineSettings
    ) -> None:
        self._process = process
        self._port = port
        self._home = home
        self._settings = settings

    @classmethod
    async def start(cls, settings: EngineSettings) -> EmbeddedEngine:
        """
        Start the engine and return when it serves.

        Raises `RunRefused` (MODEL_MISMATCH, the file named) when the weights are not what the
        manifest says, `ConfigurationError` for a name that cannot be pinned and for weights that
        lead elsewhere, `Unavailable` when the engine ends, or is not ready after `ready_seconds`.
        Cancelling kills it.
        """
        _validate(settings)
        home = await asyncio.to_thread(_make_home, settings.state_dir)
        process: asyncio.subprocess.Process | None = None
        try:
            await asyncio.to_thread(_copy_weights, settings, home)
            process = await _spawn(settings, home)
            port = await _ready(process, settings.ready_seconds)
        except BaseException:
            if process is not None:
                await _end(process, 0.0)
            shutil.rmtree(home, ignore_errors=True)
            raise
        return cls(process, port, home, settings)

    @property
    def base_url(self) -> str:
        """Where it serves, without a trailing slash and without `/v1`."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The process id of the engine."""
        return self._process.pid

    def require_alive(self) -> None:
        """Raise `Unavailable` with the exit status when the engine has ended."""
        if self._process.returncode is not None:
            raise _ended(self._process.returncode)

    async def wait(self) -> Unavailable:
        """Return, when the engine ends by itself, the error that says how."""
        return _ended(await self._process.wait())

    async def verify_weights(self) -> None:
        """Measure the engine's copy again; `RunRefused`, the file named, when it has changed."""
        copy = _copy_of(self._settings, self._home)
        await asyncio.to_thread(verify_weights, copy, self._settings.manifest)

    async def stop(self) -> None:
        """Ask the engine to end, kill it after `stop_seconds`, remove its home. Idempotent."""
        await _end(self._process, self._settings.stop_seconds)
        await asyncio.to_thread(shutil.rmtree, self._home, ignore_errors=True)

    async def __aenter__(self) -> Self:
        """Return the running engine."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the engine."""
        await self.stop()


def _validate(settings: EngineSettings) -> None:
    if not _ENGINE_NAME.match(settings.engine_name):
        raise ConfigurationError(
            "the model's public name must be letters, digits, '.', '_', '-', ':', with at most "
            "one '/', and not begin with one of these"
        )
    if not any(entry.name == "config.json" for entry in settings.manifest.entries):
        raise ConfigurationError("the weights directory has no config.json")
    if settings.threads < 1:
        raise ConfigurationError("the engine needs at least one thread")


def _make_home(state_dir: Path) -> Path:
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(state_dir)
        home = Path(tempfile.mkdtemp(prefix=f"engine-{os.getpid()}-", dir=state_dir))
        for name in ("home", "hf", "tmp", "models"):
            (home / name).mkdir(mode=0o700)
    except OSError as error:
        raise Unavailable(f"the engine's home cannot be made (errno {error.errno})") from error
    return home


def _copy_of(settings: EngineSettings, home: Path) -> Path:
    return home / "models" / settings.engine_name


def _copy_weights(settings: EngineSettings, home: Path) -> None:
    """Copy the files of the manifest, and nothing else, then measure and judge the copy."""
    copy = _copy_of(settings, home)
    copy_weights(settings.weights, settings.manifest, copy)
    verify_weights(copy, settings.manifest)
    require_contained(copy, settings.manifest)


def _sweep(state_dir: Path) -> None:
    """Remove the homes of engines whose node was killed; they hold a copy of weights."""
    for home in state_dir.glob("engine-*-*"):
        owner = home.name.split("-")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(home, ignore_errors=True)


def _environment(settings: EngineSettings, home: Path) -> dict[str, str]:
    """Return the whole environment of the engine: nothing is inherited but the search path."""
    threads = str(settings.threads)
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": str(home / "home"),
        "XDG_CACHE_HOME": str(home / "home"),
        "TMPDIR": str(home / "tmp"),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # The command asks the package index for a newer version, offline or not, unless told.
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }


async def _spawn(settings: EngineSettings, home: Path) -> asyncio.subprocess.Process:
    command = [
        # -I: neither the working directory nor the environment may add code.
        *(sys.executable, "-I", str(_CHILD), str(os.getpid())),
        *("serve", settings.engine_name, "--host", "127.0.0.1", "--port", "0"),
        *("--device", settings.device, "--log-level", "error"),
    ]
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=home / "models",
            env=_environment(settings, home),
            stdin=asyncio.subprocess.DEVNULL,
            # Its log may quote a caller; nothing of it is kept.
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"the engine cannot be started (errno {error.errno})") from error


async def _ready(process: asyncio.subprocess.Process, seconds: float) -> int:
    try:
        async with asyncio.timeout(seconds):
            while (port := _listening_port(process.pid)) is None:
                if process.returncode is not None:
                    raise _ended(process.returncode)
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError as error:
        raise Unavailable(f"the engine was not ready after {seconds:g} seconds") from error
    return port


def _listening_port(pid: int) -> int | None:
    """Return the port of 127.0.0.1 on which process `pid` listens, from the kernel's table."""
    sockets = set()
    # The process may be gone, or closing descriptors, at any moment.
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(str(entry.readlink()))
    if not any(name.startswith("socket:") for name in sockets):
        return None
    with contextlib.suppress(OSError):
        table = Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii")
        for line in table.splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            # The address is printed as a number in the byte order of the machine.
            loopback = bytes.fromhex(address) in (b"\x7f\0\0\x01", b"\x01\0\0\x7f")
            if fields[3] == _LISTEN and loopback and f"socket:[{fields[9]}]" in sockets:
                return int(port, 16)
    return None


async def _end(process: asyncio.subprocess.Process, patience: float) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        if patience > 0:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), patience)
        if process.returncode is None:
            process.kill()
    await process.wait()


def _ended(status: int) -> Unavailable:
    how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return Unavailable(f"the embedded engine {how}")
