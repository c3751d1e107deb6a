"""The sandbox against agents that misbehave, on a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from confide.adapters.containers import ContainerSandbox, ContainerSession, open_sandbox
from confide.adapters.egress_proxy import serve_egress
from confide.adapters.netns import join_namespace
from confide.adapters.reaper import LABEL
from confide.agents.egress import EgressKind, EgressOutcome, EgressPolicy, parse_destination
from confide.agents.environment import agent_environment
from confide.agents.sandbox import AgentImage, ExitKind, SandboxExit, SandboxSpec
from confide.errors import (
    FormatError,
    LocalProtocolError,
    Reason,
    RemoteProtocolError,
    RunRefused,
    Unavailable,
)
from confide.expectation import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Literal

    from probing import Probe

    from confide.adapters.engine import Engine
    from confide.adapters.engine_base import ContainerPlan
    from confide.agents.egress import EgressAttempt

pytestmark = pytest.mark.container

_LIMITS = Limits(
    memory_bytes=128 << 20, cpus_milli=1000, pids=32, wall_seconds=30,
    input_bytes=1 << 20, output_bytes=4 << 20, output_files=20,
)  # fmt: skip


def _spec(
    image: AgentImage,
    program: str,
    *,
    mode: Literal["batch", "chat"] = "batch",
    limits: Limits = _LIMITS,
    egress: tuple[str, ...] = (),
) -> SandboxSpec:
    return SandboxSpec(
        run_id=secrets.token_hex(8),
        image=image,
        mode=mode,
        command=("python3", "-c", textwrap.dedent(program)),
        environment=agent_environment(token="run-token", model="support-notes"),
        limits=limits,
        egress=EgressPolicy(tuple(parse_destination(text) for text in egress)),
    )


async def _until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not reached():  # noqa: ASYNC110 - the state of another process tells no event
            await asyncio.sleep(0.02)


def _mounts() -> str:
    return Path("/proc/mounts").read_text()


@contextlib.asynccontextmanager
async def _session(probe: Probe, spec: SandboxSpec) -> AsyncIterator[ContainerSession]:
    sandbox: ContainerSandbox = await open_sandbox(probe.engine)
    try:
        session = await sandbox.prepare(spec)
        yield session
        await session.close()
    finally:
        await sandbox.close()
    left = await sandbox.engine.call("ps", "--all", "--quiet", "--filter", f"name={spec.run_id}")
    assert left == ""
    assert spec.run_id not in _mounts()
    assert not await asyncio.to_thread(sandbox._directory.path.exists)


def _run(probe: Probe, spec: SandboxSpec) -> SandboxExit:
    async def go() -> SandboxExit:
        async with _session(probe, spec) as session:
            return await session.run()

    return asyncio.run(go())


_MISBEHAVIOUR = {
    "writes without end": (
        "f = open('/output/x', 'wb')\nwhile True: f.write(bytes(1 << 20))",
        ExitKind.KILLED_OUTPUT,
    ),
    "one sparse terabyte": ("open('/output/x', 'wb').truncate(1 << 40)", ExitKind.KILLED_OUTPUT),
    "too many files": (
        "for i in range(21): open(f'/output/{i}', 'w').close()",
        ExitKind.KILLED_OUTPUT,
    ),
    "forks without end": (
        "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
        ExitKind.KILLED_PIDS,
    ),
    "eats memory": ("x = []\nwhile True: x.append(bytearray(1 << 20))", ExitKind.KILLED_MEMORY),
    "a child eats memory": (
        "import os\nx = [] if os.fork() == 0 else os.wait()\nwhile True: x.append(bytes(1 << 20))",
        ExitKind.KILLED_MEMORY,
    ),
    "exits with an engine's status": ("raise SystemExit(125)", ExitKind.EXITED),
    "pretends to be killed": ("raise SystemExit(137)", ExitKind.EXITED),
    "leaves a daemon": (
        "import os, time\nif os.fork() == 0:\n os.setsid()\n time.sleep(1000)",
        ExitKind.EXITED,
    ),
}


@pytest.mark.parametrize("name", _MISBEHAVIOUR)
def test_each_misbehaviour_has_its_end(probe: Probe, name: str) -> None:
    program, kind = _MISBEHAVIOUR[name]
    end = _run(probe, _spec(probe.image, program))
    assert end.kind is kind
    assert not end.outputs
    assert (end.status is not None) == (kind is ExitKind.EXITED)


def test_never_ending_deaf_agents_end_at_the_wall(probe: Probe) -> None:
    deaf = """
        import signal, time
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        time.sleep(1000)
    """
    end = _run(probe, _spec(probe.image, deaf, limits=Limits(wall_seconds=1)))
    assert end.kind is ExitKind.KILLED_WALL


def test_an_entry_that_does_not_exist_never_starts(probe: Probe) -> None:
    spec = _spec(probe.image, "")
    for entry in ("/nowhere", "/etc/passwd"):
        broken = SandboxSpec(
            secrets.token_hex(8), spec.image, "batch", (entry,), spec.environment, spec.limits,
            spec.egress,
        )  # fmt: skip
        end = _run(probe, broken)
        assert (end.kind, end.stderr) == (ExitKind.NOT_STARTED, b"")


def test_binary_output_is_kept_up_to_its_cap_and_counted(probe: Probe) -> None:
    end = _run(
        probe, _spec(probe.image, "import os\nfor _ in range(64): os.write(1, bytes(65536))")
    )
    assert (end.kind, len(end.stdout), end.stdout_bytes) == (ExitKind.EXITED, 1 << 20, 4 << 20)


def test_what_the_agent_is_and_may_do(probe: Probe) -> None:
    program = """
        import json, os
        status = dict(l.split(":\\t", 1) for l in open("/proc/self/status").read().splitlines())
        places = "/ /etc /agent /usr /input /output /tmp /dev /sys /run".split()
        def writable(place):
            try:
                open(f"{place}/probe", "w").close()
                return True
            except OSError:
                return False
        print(json.dumps({
            "writable": [p for p in places if writable(p)],
            "caps": [status[n] for n in ("CapPrm", "CapEff", "CapBnd", "CapAmb")],
            "ids": [*os.getresuid(), *os.getresgid()],
            "privileges": status["NoNewPrivs"], "seccomp": status["Seccomp"],
            "links": os.listdir("/sys/class/net"), "home": os.environ["HOME"],
        }))
    """
    found = json.loads(_run(probe, _spec(probe.image, program)).stdout)
    assert found == {
        "writable": ["/output", "/tmp"],  # noqa: S108
        "caps": ["0000000000000000"] * 4,
        "ids": [65532] * 6,
        "privileges": "1",
        "seccomp": "2",
        "links": ["lo"],
        "home": "/tmp",  # noqa: S108
    }


def test_only_plain_files_with_plain_names_come_out(probe: Probe) -> None:
    program = """
        import os
        os.makedirs("/output/a/b")
        open("/output/a/b/c.txt", "w").write("hello")
        os.symlink("/etc/passwd", "/output/link")
        os.symlink("/", "/output/root")
        os.mkfifo("/output/pipe")
        open("/output/new\\nline", "w").close()
        open(b"/output/\\xff", "w").close()
    """

    async def go() -> tuple[SandboxExit, bytes]:
        async with _session(probe, _spec(probe.image, program)) as session:
            end = await session.run()
            text = b"".join([piece async for piece in session.read_output("a/b/c.txt")])
            with pytest.raises((FormatError, Unavailable)):
                await anext(session.read_output("link"))
            return end, text

    end, text = asyncio.run(go())
    assert text == b"hello"
    assert [item.path for item in end.outputs] == ["a/b/c.txt"]
    assert {(item.path, item.why) for item in end.left_out} == {
        ("link", "not a regular file"), ("root", "not a regular file"),
        ("pipe", "not a regular file"), ("new\\nline", "name"), ("\\udcff", "name"),
    }  # fmt: skip


def test_inputs_arrive_and_their_limits_hold(probe: Probe) -> None:
    async def go() -> SandboxExit:
        program = """
            import os
            paths = (os.path.join(d, n) for d, _, names in os.walk("/input") for n in names)
            print(sorted((p, len(open(p, "rb").read())) for p in paths))
        """
        async with _session(probe, _spec(probe.image, program)) as session:
            await session.write_input("empty.csv", b"")
            await session.write_input("deep/er/notes.csv", b"a" * 10)
            await session.write_input("deep/er/notes.csv", b"b" * 10)
            for name in ("new\nline", "../x", "deep/er/notes.csv/x"):
                with pytest.raises(FormatError):
                    await session.write_input(name, b"x")
            with pytest.raises(RunRefused) as refused:
                await session.write_input("big", bytes((1 << 20) + 1))
            assert refused.value.reason is Reason.LIMIT_EXCEEDED
            end = await session.run()
            with pytest.raises(LocalProtocolError):
                await session.write_input("late", b"")
            return end

    assert (
        asyncio.run(go()).stdout == b"[('/input/deep/er/notes.csv', 20), ('/input/empty.csv', 0)]\n"
    )


def test_another_image_than_the_measured_one_is_refused(probe: Probe) -> None:
    async def prepare(image: AgentImage) -> None:
        async with _session(probe, _spec(image, "")):
            pytest.fail("prepared an image that was not measured")

    with pytest.raises((RunRefused, FormatError)):
        asyncio.run(prepare(AgentImage(probe.image.digest, "0" * 64, probe.image.layout)))
    with pytest.raises((RunRefused, FormatError, Unavailable)):
        asyncio.run(prepare(AgentImage("0" * 64, probe.image.config, probe.image.layout)))
    with pytest.raises(RunRefused) as refused:
        asyncio.run(prepare(AgentImage("0" * 64, probe.image.config, "")))
    assert refused.value.reason is Reason.AGENT_IMAGE_MISMATCH


def test_cancelling_kills_in_every_state(probe: Probe) -> None:
    async def go(when: Callable[[ContainerSession], Awaitable[None]]) -> SandboxExit:
        spec = _spec(probe.image, "import time\nprint('up', flush=True)\ntime.sleep(1000)")
        async with _session(probe, spec) as session:
            running = asyncio.ensure_future(session.run())
            await when(session)
            await session.cancel()
            return await running

    async def at_once(_session: ContainerSession) -> None:
        await asyncio.sleep(0)

    async def when_up(session: ContainerSession) -> None:
        await _until(lambda: bool(session._process and session._process.stdout.kept))

    assert asyncio.run(go(at_once)).kind is ExitKind.CANCELLED
    assert asyncio.run(go(when_up)).kind is ExitKind.CANCELLED


_CHAT = """
    import json, sys
    for number, line in enumerate(sys.stdin, 1):
        word = json.loads(line)
        if word == "leave": break
        if word == "twice": print(0)
        if word == "flood":
            while True: print(0)
        print(json.dumps([number, word]), flush=True)
"""


def test_a_chat_answers_line_by_line_and_keeps_its_state(probe: Probe) -> None:
    async def go() -> SandboxExit:
        async with _session(probe, _spec(probe.image, _CHAT, mode="chat")) as session:
            await session.start()
            assert await session.turn(b'"one"') == b'[1, "one"]'
            assert await session.turn(b'"two"') == b'[2, "two"]'
            with pytest.raises(LocalProtocolError):
                await session.turn(b'"a"\n"b"')
            with pytest.raises(LocalProtocolError):
                await session.run()
            return await session.finish()

    end = asyncio.run(go())
    assert (end.kind, end.status) == (ExitKind.EXITED, 0)


def test_a_chat_agent_that_leaves_in_a_turn(probe: Probe) -> None:
    async def go() -> SandboxExit:
        async with _session(probe, _spec(probe.image, _CHAT, mode="chat")) as session:
            await session.start()
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await session.turn(b'"leave"')
            return await session.finish()

    assert asyncio.run(go()).kind is ExitKind.EXITED


@pytest.mark.parametrize(
    ("word", "kind"), [(b'"twice"', ExitKind.EXITED), (b'"flood"', ExitKind.KILLED_OUTPUT)]
)
def test_a_chat_agent_that_speaks_unasked(probe: Probe, word: bytes, kind: ExitKind) -> None:
    async def go() -> SandboxExit:
        async with _session(probe, _spec(probe.image, _CHAT, mode="chat")) as session:
            await session.start()
            await session.turn(word)
            await _until(lambda: session._running()._unread > 0)
            with pytest.raises(RemoteProtocolError):
                await session.turn(word)
            if kind is ExitKind.KILLED_OUTPUT:
                await session._running().wait()
            return await session.finish()

    assert asyncio.run(go()).kind is kind


def test_every_way_out_is_shut_and_recorded(probe: Probe) -> None:
    program = """
        import json, socket, urllib.request
        def attempt(act):
            try:
                act()
                return "open"
            except Exception as error:
                return type(error).__name__
        def udp():
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.connect(("8.8.8.8", 53)); s.send(b"x"); s.settimeout(2); s.recv(1)
        print(json.dumps([
            attempt(lambda: socket.create_connection(("93.184.216.34", 443), 2)),
            attempt(lambda: socket.create_connection(("169.254.169.254", 80), 2)),
            attempt(lambda: socket.create_connection(("2606:4700::1111", 443), 2)),
            attempt(udp),
            attempt(lambda: socket.getaddrinfo("exfiltrate.example.org", 443)),
            attempt(lambda: urllib.request.urlopen("http://refused.example.org/", timeout=2)),
            attempt(lambda: urllib.request.urlopen("https://refused.example.org/", timeout=2)),
        ]))
    """

    async def go() -> tuple[SandboxExit, list[EgressAttempt]]:
        seen: list[EgressAttempt] = []
        spec = _spec(probe.image, program)
        async with _session(probe, spec) as session:
            egress = await serve_egress(session.endpoints, spec.egress, report=seen.append)
            end = await session.run()
            await egress.close()
        return end, seen

    end, seen = asyncio.run(go())
    assert "open" not in json.loads(end.stdout)
    assert len(json.loads(end.stdout)) == 7
    assert not any(attempt.allowed for attempt in seen)
    found = {(attempt.kind, attempt.destination) for attempt in seen}
    assert found >= {
        (EgressKind.DIRECT, "93.184.216.34:443"), (EgressKind.DIRECT, "169.254.169.254:80"),
        (EgressKind.DIRECT, "[2606:4700::1111]:443"), (EgressKind.DIRECT, "8.8.8.8:53"),
        (EgressKind.DNS, "exfiltrate.example.org"), (EgressKind.HTTP, "refused.example.org:80"),
        (EgressKind.CONNECT, "refused.example.org:443"),
    }  # fmt: skip


def test_an_allowed_destination_is_reached_and_counted(probe: Probe) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    async def go() -> tuple[SandboxExit, list[EgressAttempt], int]:
        seen: list[EgressAttempt] = []
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = int(server.sockets[0].getsockname()[1])
        program = f"""
            import os, urllib.request
            del os.environ["NO_PROXY"], os.environ["no_proxy"]
            print(urllib.request.urlopen("http://127.0.0.1:{port}/x", timeout=5).read())
        """
        spec = _spec(probe.image, program, egress=(f"127.0.0.1:{port}",))
        async with _session(probe, spec) as session:
            egress = await serve_egress(session.endpoints, spec.egress, report=seen.append)
            end = await session.run()
            await egress.close()
        server.close()
        return end, seen, port

    end, seen, port = asyncio.run(go())
    assert end.stdout == b"b'hello'\n"
    assert [(item.number, item.outcome) for item in seen] == [
        (1, EgressOutcome.OPENED),
        (1, EgressOutcome.CLOSED),
    ]
    assert seen[0].destination == f"127.0.0.1:{port}"
    assert seen[1].bytes_up > 0
    assert seen[1].bytes_down > len(b"hello")


_NODE = """
import asyncio, os, sys
sys.path.insert(0, {here!r})
from test_sandbox import _spec, open_sandbox, AgentImage
async def main():
    sandbox = await open_sandbox({engine!r})
    program = "import time; print(1, flush=True); time.sleep(1000)"
    session = await sandbox.prepare(_spec(AgentImage{image!r}, program))
    await session.write_input("secret", b"canary")
    running = asyncio.ensure_future(session.run())
    while not (session._process and session._process.stdout.kept):
        await asyncio.sleep(0.01)
    print(session._name, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""


def test_a_node_killed_hard_leaves_nothing(probe: Probe) -> None:
    image = (probe.image.digest, probe.image.config, probe.image.layout)
    program = _NODE.format(here=str(Path(__file__).parent), image=image, engine=probe.engine)
    node = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert node.returncode == -signal.SIGKILL
    name = node.stdout.decode().strip()

    async def gone() -> None:
        sandbox = await open_sandbox(probe.engine)
        try:
            listing = ("ps", "-aq", "--filter", f"name={name}")
            async with asyncio.timeout(60):
                while await sandbox.engine.call(*listing):
                    pass
            await _until(lambda: name.removeprefix("confide-") not in _mounts())
        finally:
            await sandbox.close()

    assert name.startswith("confide-")
    asyncio.run(gone())


def test_each_run_has_a_namespace_of_its_own_and_nothing_stays(probe: Probe) -> None:
    own = Path("/proc/self/ns/net").stat().st_ino

    async def go() -> None:
        sandbox = await open_sandbox(probe.engine)
        try:
            one, two = await asyncio.gather(sandbox.networks.open(), sandbox.networks.open())
            found = {os.fstat(network.namespace.fd).st_ino for network in (one, two)}
            assert len(found | {own}) == 3
            await one.close()
            await two.close()
        finally:
            await sandbox.close()
        mark = sandbox._directory.mark
        assert mark not in {owner for _id, _name, owner in await sandbox.engine.owned(LABEL)}

    asyncio.run(go())


def test_runs_at_once_do_not_meet(probe: Probe) -> None:
    program = """
        import socket, sys, time
        place = socket.socket()
        place.bind(("127.0.0.1", 4444))
        place.listen()
        print(sys.stdin.readline().strip(), flush=True)
        print(sys.stdin.readline().strip(), flush=True)
    """

    async def go() -> list[SandboxExit]:
        sandbox = await open_sandbox(probe.engine)
        try:
            specs = [_spec(probe.image, program, mode="chat") for _ in range(3)]
            sessions = await asyncio.gather(*(sandbox.prepare(spec) for spec in specs))
            await asyncio.gather(*(session.start() for session in sessions))
            for word in (b"a", b"b"):
                answers = await asyncio.gather(*(session.turn(word) for session in sessions))
                assert answers == [word] * 3
            ends = await asyncio.gather(*(session.finish() for session in sessions))
            await asyncio.gather(*(session.close() for session in sessions))
            return ends
        finally:
            await sandbox.close()

    assert [(end.kind, end.status) for end in asyncio.run(go())] == [(ExitKind.EXITED, 0)] * 3


def test_a_namespace_that_leads_somewhere_is_not_joined(probe: Probe) -> None:
    assert probe.image.digest
    if [name for _index, name in socket.if_nameindex()] == ["lo"]:
        pytest.skip("NOT RUN: this machine has no interface that leads somewhere")
    with Path("/proc/self/ns/net").open("rb") as own, pytest.raises(Unavailable, match="interface"):
        join_namespace(own.fileno())


def test_a_dead_node_that_ran_nothing_counts_as_no_run(probe: Probe) -> None:
    async def go() -> int:
        sandbox = await open_sandbox(probe.engine)
        try:
            return await sandbox.sweep()
        finally:
            await sandbox.close()

    program = (
        "import asyncio, os\nfrom confide.adapters.containers import open_sandbox\n"
        f"async def main():\n sandbox = await open_sandbox({probe.engine!r})\n"
        " sandbox._reaper.kill()\n os.kill(os.getpid(), 9)\nasyncio.run(main())"
    )
    node = subprocess.run([sys.executable, "-c", program], check=False)
    assert node.returncode == -signal.SIGKILL
    assert asyncio.run(go()) == 0


def test_only_the_process_in_the_namespace_of_the_run_is_ever_hit(probe: Probe) -> None:
    # An engine that names a stranger (a number that was reused) must not make us kill it.
    async def go() -> tuple[SandboxExit, int | None]:
        stranger = await asyncio.create_subprocess_exec("sleep", "1000")
        try:
            spec = _spec(probe.image, "import time\ntime.sleep(1000)")
            async with _session(probe, spec) as session:
                session._engine = _Misled(session._engine, stranger.pid)  # type: ignore[assignment]
                running = asyncio.ensure_future(session.run())
                await _until(lambda: session._process is not None)
                await session.cancel()
                return await running, stranger.returncode
        finally:
            stranger.kill()
            await stranger.wait()

    end, stranger = asyncio.run(go())
    assert end.kind is ExitKind.CANCELLED
    assert stranger is None


class _Misled:
    """An engine that gives a wrong process id."""

    def __init__(self, engine: Engine, pid: int) -> None:
        self._engine = engine
        self._pid = pid

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    async def find_process(self, _plan: ContainerPlan) -> int:
        return self._pid
