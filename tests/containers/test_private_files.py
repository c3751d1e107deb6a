"""Secrets, variables and state inside a real container: who can read what, and what stays.

state.md 1.2, 1.3, 2.2; sandbox.md §4.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from confide.adapters.containers import ContainerSession, open_sandbox
from confide.agents.egress import EgressPolicy
from confide.agents.environment import agent_environment
from confide.agents.sandbox import RUN_UID, ExitKind, SandboxExit, SandboxSpec
from confide.agents.state_files import MAX_STATE_ENTRIES, StateEntry, StateTree
from confide.errors import (
    ConfigurationError,
    FormatError,
    LocalProtocolError,
    Reason,
    RunRefused,
)
from confide.expectation import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from probing import Probe

pytestmark = pytest.mark.container

_LIMITS = Limits(
    memory_bytes=128 << 20, pids=32, wall_seconds=30, output_bytes=1 << 20, state_bytes=2 << 20
)
VALUE = b"correct horse battery " + secrets.token_hex(16).encode()
ENTRIES = (
    StateEntry("notes", None),
    StateEntry("notes/may.txt", b"three refunds"),
    StateEntry("seen.json", b"[1, 2]"),
)


def spec(
    probe: Probe, program: str, *, files: bool = True, state: bool = True, limits: Limits = _LIMITS
) -> SandboxSpec:
    return SandboxSpec(
        run_id=secrets.token_hex(8),
        image=probe.image,
        mode="batch",
        command=("python3", "-c", textwrap.dedent(program)),
        environment=agent_environment(token="run-token", model="support-notes"),
        limits=limits,
        egress=EgressPolicy(()),
        secret_files=files,
        state=state,
    )


def _nothing_left(run_id: str) -> None:
    assert run_id not in Path("/proc/mounts").read_text()
    assert not list(Path("/dev/shm").glob(f"confide-*/{run_id}"))  # noqa: S108 - looked at


@contextlib.asynccontextmanager
async def prepared(probe: Probe, wanted: SandboxSpec) -> AsyncIterator[ContainerSession]:
    sandbox = await open_sandbox(probe.engine)
    try:
        session = await sandbox.prepare(wanted)
        yield session
        await session.close()
    finally:
        await sandbox.close()
    _nothing_left(wanted.run_id)


def said(end: SandboxExit) -> Any:
    assert (end.kind, end.status) == (ExitKind.EXITED, 0), end.stderr.decode()
    return json.loads(end.stdout)


def run(probe: Probe, program: str, **how: Any) -> tuple[SandboxExit, StateTree]:
    """Run `program` with one secret, one variable and the state of these tests."""

    async def go() -> tuple[SandboxExit, StateTree]:
        async with prepared(probe, spec(probe, program, **how)) as session:
            await session.write_secret("db-password", VALUE)
            await session.set_variable("TOKEN", "in the environment")
            await session.restore_state(ENTRIES)
            end = await session.run()
            return end, await session.read_state()

    return asyncio.run(go())


def test_the_agent_alone_reads_its_secret_and_cannot_change_it(probe: Probe) -> None:
    end, _ = run(
        probe,
        """
        import json, os
        path = "/run/secrets/db-password"
        info, folder = os.stat(path), os.stat("/run/secrets")
        def tried(what):
            try:
                what()
            except OSError as error:
                return error.strerror
        print(json.dumps({
            "value": open(path).read(),
            "file": [oct(info.st_mode & 0o7777), info.st_uid, info.st_gid],
            "folder": [oct(folder.st_mode & 0o7777), folder.st_uid],
            "kind": [
                line.split()[2:4]
                for line in open("/proc/mounts") if line.split()[1] == "/run/secrets"
            ],
            "tried": [
                tried(lambda: open(path, "w")),
                tried(lambda: os.chmod(path, 0o777)),
                tried(lambda: os.unlink(path)),
                tried(lambda: open("/run/secrets/more", "w")),
            ],
            "listed": os.listdir("/run/secrets"),
            "token": os.environ["TOKEN"],
        }))
        """,
    )
    found = said(end)
    [[kind, options]] = found.pop("kind")
    assert kind == "tmpfs"
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(options.split(","))
    assert found.pop("tried") == ["Read-only file system"] * 4
    assert found == {
        "value": VALUE.decode(),
        "file": ["0o400", RUN_UID, RUN_UID],
        "folder": ["0o700", RUN_UID],
        "listed": ["db-password"],
        "token": "in the environment",
    }


STRANGE = (
    "", " leading and trailing ", "a=b=c", '"quoted"', "'single'", "# no comment", "$HOME ${PATH}",
    "back\\slash \\n", "é ☃ 𝄞", "tab\tinside", "`id`", "x" * (32 * 1024), "export A=b",
)  # fmt: skip


def test_variables_arrive_as_they_are(probe: Probe) -> None:
    async def go() -> SandboxExit:
        program = """
            import json, os
            found = {name: value for name, value in os.environ.items() if name.startswith("V_")}
            print(json.dumps([found[name] for name in sorted(found)]))
        """
        async with prepared(probe, spec(probe, program)) as session:
            for number, value in enumerate(STRANGE):
                await session.set_variable(f"V_{number:02}", value)
            for value in ("two\nlines", "cr\r", "nul\0", "x" * (32 * 1024 + 1)):
                with pytest.raises(ConfigurationError):
                    await session.set_variable("TOKEN", value)
            return await session.run()

    assert said(asyncio.run(go())) == list(STRANGE)


def test_a_state_is_there_can_be_changed_and_is_read_back(probe: Probe) -> None:
    end, left = run(
        probe,
        """
        import json, os
        print(json.dumps(open("/state/notes/may.txt").read() + open("/state/seen.json").read()))
        os.unlink("/state/seen.json")
        open("/state/notes/june.txt", "w").write("none yet")
        os.makedirs("/state/empty/inner")
        os.chmod("/state/notes/june.txt", 0)
        os.chmod("/state/empty", 0)
        """,
    )
    assert said(end) == "three refunds[1, 2]"
    assert sorted(left.entries, key=lambda entry: entry.path) == [
        StateEntry("empty", None),
        StateEntry("empty/inner", None),
        StateEntry("notes", None),
        StateEntry("notes/june.txt", b"none yet"),
        StateEntry("notes/may.txt", b"three refunds"),
    ]
    assert (left.left_out, left.over) == ((), False)


def test_only_plain_files_and_directories_come_out_of_a_state(probe: Probe) -> None:
    long = "n" * 200
    end, left = run(
        probe,
        f"""
        import os, socket
        os.symlink("/etc/passwd", "/state/link")
        os.symlink("/", "/state/root")
        os.mkfifo("/state/pipe")
        socket.socket(socket.AF_UNIX).bind("/state/socket")
        open("/state/new\\nline", "w").close()
        open("/state/{long}", "w").close()
        os.mkdir("/state/d{long[:120]}")
        open("/state/d{long[:120]}/x", "w").close()
        os.mkdir("/state/bad\\nfolder")
        open("/state/bad\\nfolder/x", "w").close()
        print(1)
        """,
    )
    assert said(end) == 1
    assert {entry.path for entry in left.entries} == {entry.path for entry in ENTRIES}
    folder = "d" + long[:120]
    assert {(item.path, item.why) for item in left.left_out} == {
        ("link", "not a regular file"),
        ("root", "not a regular file"),
        ("pipe", "not a regular file"),
        ("socket", "not a regular file"),
        ("new\\nline", "name"),
        (long, "name"),
        (folder, "name"),
        (f"{folder}/x", "name"),
        ("bad\\nfolder", "name"),
        ("bad\\nfolder/x", "name"),
    }


@pytest.mark.parametrize(
    ("program", "over"),
    [
        ("open('/state/x', 'wb').truncate(1 << 40)", True),
        ("open('/state/x', 'wb').write(bytes((2 << 20) + 1))", True),
        ("open('/state/x', 'wb').write(bytes(1 << 20))", False),
    ],
)
def test_a_state_above_its_limit_is_not_read(probe: Probe, program: str, over: bool) -> None:
    end, left = run(probe, f"{program}\nprint(1)")
    assert said(end) == 1
    assert left.over is over
    if over:
        assert left == StateTree((), (), over=True)


def test_the_memory_of_a_state_is_bounded(probe: Probe) -> None:
    end, left = run(
        probe,
        f"""
        import json
        found = []
        try:
            open("/state/big", "wb", buffering=0).write(bytes(64 << 20))
        except OSError as error:
            found.append(error.strerror)
        import os
        os.truncate("/state/big", 0)
        count = 0
        try:
            while True:
                open(f"/state/{{count}}", "w").close()
                count += 1
        except OSError as error:
            found.append(error.strerror)
        print(json.dumps([found, count <= {MAX_STATE_ENTRIES} + 16]))
        """,
    )
    found, bounded = said(end)
    assert set(found) <= {"No space left on device"}
    assert found
    assert bounded
    assert left.over


def test_nothing_in_a_state_can_be_executed(probe: Probe) -> None:
    end, _ = run(
        probe,
        """
        import json, os, shutil, subprocess, sys
        shutil.copyfile(os.path.realpath(sys.executable), "/state/python")
        os.chmod("/state/python", 0o700)
        try:
            subprocess.run(["/state/python", "-c", "1"])
            print(json.dumps("it ran"))
        except PermissionError:
            print(json.dumps("refused"))
        """,
        limits=Limits(memory_bytes=128 << 20, pids=32, state_bytes=32 << 20),
    )
    assert said(end) == "refused"


def test_an_agent_that_asked_for_nothing_finds_nothing(probe: Probe) -> None:
    program = """
        import json, os
        print(json.dumps([os.path.exists("/run/secrets"), os.path.exists("/state")]))
    """

    async def go() -> SandboxExit:
        async with prepared(probe, spec(probe, program, files=False, state=False)) as session:
            with pytest.raises(LocalProtocolError):
                await session.write_secret("db-password", VALUE)
            with pytest.raises(LocalProtocolError):
                await session.restore_state(ENTRIES)
            return await session.run()

    assert said(asyncio.run(go())) == [False, False]


def test_secrets_and_state_come_before_the_start_and_leave_after_the_end(probe: Probe) -> None:
    async def go() -> None:
        async with prepared(probe, spec(probe, "print(1)")) as session:
            with pytest.raises(LocalProtocolError):
                await session.read_state()
            await session.run()
            for late in (
                session.write_secret("late", b""),
                session.set_variable("LATE", ""),
                session.restore_state(()),
            ):
                with pytest.raises(LocalProtocolError):
                    await late

    asyncio.run(go())


def test_a_secret_has_a_plain_name(probe: Probe) -> None:
    async def go() -> None:
        async with prepared(probe, spec(probe, "")) as session:
            for name in ("../outside", "a/b", "", "new\nline"):
                with pytest.raises((FormatError, LocalProtocolError)):
                    await session.write_secret(name, VALUE)

    asyncio.run(go())


def test_a_state_that_does_not_fit_any_more_is_refused(probe: Probe) -> None:
    async def go() -> None:
        async with prepared(probe, spec(probe, "")) as session:
            with pytest.raises(RunRefused) as error:
                await session.restore_state((StateEntry("big", bytes(8 << 20)),))
            assert error.value.reason is Reason.LIMIT_EXCEEDED

    asyncio.run(go())


def _with(place: Path, value: bytes) -> list[str]:
    """Files below `place` that hold `value`."""
    found = []
    for path in place.rglob("*"):
        # A record that disappears meanwhile holds nothing any more.
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink() and value in path.read_bytes():
                found.append(str(path))
    return found


def test_a_file_is_on_no_disk_and_a_variable_in_the_engines_record_until_the_end(
    probe: Probe,
) -> None:
    """What state.md 2.2 says of both, while the agent runs and afterwards."""
    if probe.engine != "podman":
        pytest.skip("where the daemon keeps its records is not ours to know")
    storage = Path("/var/lib/containers/storage/overlay-containers")
    in_file, in_variable = VALUE, b"variable-" + secrets.token_hex(16).encode()
    program = "import time; print(1, flush=True); time.sleep(1000)"

    async def go() -> list[str]:
        async with prepared(probe, spec(probe, program)) as session:
            await session.write_secret("db-password", in_file)
            await session.set_variable("TOKEN", in_variable.decode())
            await session.restore_state(ENTRIES)
            task = asyncio.ensure_future(session.run())
            while session._process is None or not session._process.stdout.kept:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
            during = await asyncio.to_thread(_with, storage, in_variable)
            assert await asyncio.to_thread(_with, storage, in_file) == []
            assert await asyncio.to_thread(_with, storage, b"three refunds") == []
            await session.cancel()
            await task
            return during

    during = asyncio.run(go())
    assert {Path(path).name for path in during} == {"config.json"}
    assert _with(storage, in_variable) == []
