"""Secrets and state of a run: the order, what refuses it, what is kept. state.md §2, §3."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from nodes import NOW
from runs import OUTPUTS, VALUES, PretendedSandbox, PretendedSession, Story, run_ports, world
from secret_broker import SecretBroker, SecretBrokerSession, refused

from confide.agents.sandbox import SECRET_BYTES, ExitKind, LeftOut, OutputFile, SandboxExit
from confide.agents.state_files import StateEntry, StateTree, pack_state
from confide.agents.state_seal import open_state, seal_state
from confide.errors import (
    ConfideError,
    FormatError,
    Reason,
    Rejected,
    ReleaseRefused,
    RemoteProtocolError,
    RunRefused,
    Unavailable,
)
from confide.node.run import Run
from confide.wire.frames import FrameDecoder, FrameKind
from confide.wire.release_receipt import parse_release_receipt

if TYPE_CHECKING:
    from confide.broker.released import OpenedState, ReleasedSecret
    from confide.expectation import Expectation
    from confide.receipts.transcript import Event

LEFT = (StateEntry("notes", None), StateEntry("notes/may.txt", b"three refunds"))
WELL = SandboxExit(ExitKind.EXITED, 0, 10, b"", b"", 0, 0, (), ())


def broker(**how: Any) -> SecretBroker:
    return SecretBroker(NOW, **{"values": VALUES, **how})


class OneRun:
    """One run against one broker, driven as `node/agent.py` drives it."""

    def __init__(
        self, place: SecretBroker, *secrets: str, state: bool = False, **limits: int
    ) -> None:
        self.broker = place
        expectation = world().expectation
        self.expectation: Expectation = replace(
            expectation,
            broker=place.spec(*secrets, state=state),
            limits=replace(expectation.limits, **limits),
        )
        self.sandbox = PretendedSandbox()
        ports = run_ports(world(), Story("secrets"), place, self.sandbox)
        self.run = Run(ports, ports.identity.current, self.expectation, b"n" * 32)

    @property
    def agent(self) -> PretendedSession:
        """What the agent has and leaves."""
        return self.sandbox.sessions[0]

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.run.transcript.events]

    def events(self, kind: str) -> list[Event]:
        return [event for event in self.run.transcript.events if event.kind == kind]

    async def prepare(self) -> None:
        await self.run.open()
        await self.run.prepare()

    async def end(self, end: SandboxExit = WELL, left: StateTree | None = None) -> None:
        """Let the agent end, and conclude."""
        self.agent.end = end
        self.agent.left = left or StateTree(LEFT, (), over=False)
        assert self.run.session is not None
        self.run.record_exit(await self.run.session.run(), unreported=0)
        await self.run.keep_state()

    def refuses(self) -> ConfideError:
        """It must be refused, before anything ran; what the broker lent is given back."""

        async def go() -> ConfideError:
            with pytest.raises(ConfideError) as error:
                await self.prepare()
            await self.run.close()
            return error.value

        found = asyncio.run(go())
        assert "agent-started" not in self.kinds
        assert not self.broker.leased
        assert not self.sandbox.sessions or self.agent.closed
        return found


def reason_of(error: ConfideError) -> Reason | None:
    assert isinstance(error, Rejected | FormatError)
    return error.reason


# What the agent finds


def test_secrets_come_after_the_model_and_before_the_agent() -> None:
    one = OneRun(broker(), "db-password", "TOKEN=token")
    asyncio.run(one.prepare())
    assert one.kinds == [
        "run-started",
        "model-verified",
        "secret-released",
        "secret-released",
        "agent-started",
    ]
    assert one.agent.secrets == {"db-password": VALUES["db-password"]}
    assert one.agent.variables == {"TOKEN": VALUES["token"].decode()}
    assert one.broker.asked == ["attest", "db-password", "token"]
    spec = one.sandbox.specs[0]
    assert (spec.secret_files, spec.state) == (True, False)
    assert not any(value.decode() in str(spec.environment) for value in VALUES.values())


def test_the_transcript_holds_versions_and_no_values() -> None:
    one = OneRun(broker(), "db-password", "TOKEN=token")
    asyncio.run(one.prepare())
    assert one.run.secrets is not None
    releases = one.run.secrets.releases
    for event, envelope in zip(one.events("secret-released"), releases, strict=True):
        receipt = parse_release_receipt(envelope.payload)
        assert (event["version"], event["receipt"]) == (receipt.version, envelope.digest)
    written = repr(one.run) + str(one.run.transcript.documents())
    assert not any(VALUES[name].decode() in written for name in ("db-password", "token"))


def test_nothing_is_asked_for_that_is_not_listed() -> None:
    one = OneRun(broker())
    asyncio.run(one.prepare())
    assert one.broker.asked == []
    assert one.run.secrets is None


def test_the_first_run_finds_an_empty_state_and_the_next_one_what_it_left() -> None:
    place = broker()

    async def go() -> None:
        first = OneRun(place, state=True)
        await first.prepare()
        assert first.agent.restored == ()
        await first.end()
        await first.run.close()
        assert not place.leased
        second = OneRun(place, state=True)
        await second.prepare()
        assert second.agent.restored == LEFT
        opened, saved = second.events("state-opened")[0], first.events("state-saved")[0]
        assert (opened["counter"], opened["digest"]) == (saved["counter"], saved["digest"])
        assert (saved["counter"], saved["digest"]) == (1, hashlib.sha256(place.sealed).digest())
        await second.end()
        assert place.counter == 2

    asyncio.run(go())


def test_what_is_saved_is_sealed() -> None:
    one = OneRun(broker(), state=True)
    asyncio.run(one.prepare())
    asyncio.run(one.end())
    resource = one.expectation.broker.state_resource("tests")
    assert b"three refunds" not in one.broker.sealed
    opened = open_state(
        one.broker.state_key,
        one.broker.sealed,
        resource=resource,
        counter=1,
        digest=one.broker.digest,
    )
    assert opened == pack_state(LEFT)


# What refuses the run


def test_a_node_without_a_broker_refuses_at_once() -> None:
    one = OneRun(broker(), "token")
    one.run.ports = replace(one.run.ports, open_secrets=None)
    found = one.refuses()
    assert isinstance(found, RunRefused)
    assert found.reason is Reason.EXPECTATION_MISMATCH
    assert one.kinds == []


@pytest.mark.parametrize("where", ["attest", "token", "db-password", "open"])
@pytest.mark.parametrize(
    "why", [refused(Reason.RELEASE_MISSING), Unavailable("broker"), RemoteProtocolError("broker")]
)
def test_what_does_not_come_refuses_the_run(where: str, why: ConfideError) -> None:
    one = OneRun(broker(failures={where: why}), "db-password", "TOKEN=token", state=True)
    assert one.refuses() is why
    if where != "attest":
        assert one.broker.asked[-1] == "close"


def test_the_brokers_reason_and_step_reach_the_client() -> None:
    one = OneRun(broker(failures={"token": refused(Reason.RELEASE_REVOKED)}), "token")
    found = one.refuses()
    assert isinstance(found, ReleaseRefused)
    assert (found.reason, found.failures[0].step) == (Reason.RELEASE_REVOKED, "broker/4.2")


def test_two_runs_do_not_have_one_state() -> None:
    place = broker()
    first, second = OneRun(place, state=True), OneRun(place, state=True)
    asyncio.run(first.prepare())

    async def other() -> None:
        with pytest.raises(ReleaseRefused) as error:
            await second.prepare()
        assert error.value.reason is Reason.STATE_IN_USE
        await second.run.close()

    asyncio.run(other())
    assert place.leased, "the lease of the first was given back by the second"
    asyncio.run(first.run.close())
    assert not place.leased


@pytest.mark.parametrize("value", [b"\xff" * 9, b"two\nlines", b"nul\0", b"x" * (SECRET_BYTES + 1)])
def test_a_value_that_has_no_place_refuses_the_run(value: bytes) -> None:
    if len(value) > SECRET_BYTES:
        one = OneRun(broker(values={"token": value}), "token")
        assert reason_of(one.refuses()) is Reason.LIMIT_EXCEEDED
        return
    one = OneRun(broker(values={"token": value}), "TOKEN=token")
    assert reason_of(one.refuses()) is Reason.BROKER_FORMAT


def rolled_back(place: SecretBroker) -> Reason | None:
    return reason_of(OneRun(place, state=True).refuses())


def sealed(place: SecretBroker, archive: bytes) -> bytes:
    """`archive` as the first state of the agent of these tests."""
    resource = place.spec(state=True).state_resource("tests")
    return seal_state(place.state_key, archive, resource=resource, counter=1, salt=bytes(32))


def test_another_state_than_the_counter_says_is_refused() -> None:
    place = broker()
    resource = place.spec(state=True).state_resource("tests")
    old = seal_state(
        place.state_key, pack_state(LEFT), resource=resource, counter=1, salt=bytes(32)
    )
    place.sealed, place.counter = old, 2
    assert rolled_back(place) is Reason.STATE_ROLLBACK
    place.counter = 1
    asyncio.run(OneRun(place, state=True).prepare())


def test_a_state_that_is_no_archive_or_too_large_is_refused() -> None:
    place = broker()
    place.sealed, place.counter = sealed(place, b"no"), 1
    assert rolled_back(place) is Reason.BROKER_FORMAT
    archive = pack_state(LEFT)
    place.sealed = sealed(place, archive)
    small = OneRun(place, state=True, state_bytes=len(archive) - 1)
    assert reason_of(small.refuses()) is Reason.BROKER_FORMAT


class _Confused(SecretBrokerSession):
    """What comes is genuine, and of somebody else."""

    async def secret(self, name: str) -> ReleasedSecret:
        return replace(await super().secret(name), name="another")

    async def open_state(self) -> OpenedState:
        return replace(await super().open_state(), resource="records/state/another")


class _ConfusedBroker(SecretBroker):
    async def open(self, expectation: Expectation, run: bytes) -> SecretBrokerSession:
        return _Confused(self, expectation, run)


@pytest.mark.parametrize(("secrets", "state"), [(("token",), False), ((), True)])
def test_what_belongs_to_somebody_else_is_refused(secrets: tuple[str, ...], state: bool) -> None:
    one = OneRun(_ConfusedBroker(NOW, VALUES), *secrets, state=state)
    assert reason_of(one.refuses()) is Reason.SECRET_MISMATCH
    assert not one.agent.secrets


# What is kept


@pytest.mark.parametrize(
    "end",
    [
        replace(WELL, status=1),
        replace(WELL, kind=ExitKind.KILLED_WALL, status=None),
        replace(WELL, kind=ExitKind.CANCELLED, status=None),
        replace(WELL, kind=ExitKind.NOT_STARTED, status=None),
    ],
)
def test_the_old_state_stays_unless_the_agent_ended_well(end: SandboxExit) -> None:
    one = OneRun(broker(), state=True)
    asyncio.run(one.prepare())
    asyncio.run(one.end(end))
    assert [event["reason"] for event in one.events("state-kept")] == ["agent-failed"]
    assert (one.broker.counter, one.broker.leased) == (0, False)
    assert "save" not in one.broker.asked


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (refused(Reason.STATE_FORK), "state-fork"),
        (Unavailable("broker"), "unavailable"),
        (RemoteProtocolError("broker"), "unavailable"),
    ],
)
def test_a_save_that_is_not_taken_is_told(why: ConfideError, reason: str) -> None:
    one = OneRun(broker(failures={"save": why}), state=True)
    asyncio.run(one.prepare())
    asyncio.run(one.end())
    assert [event["reason"] for event in one.events("state-kept")] == [reason]
    assert not one.events("state-saved")
    assert not one.broker.leased


def test_a_state_above_its_limit_is_not_saved() -> None:
    for left, limit in (
        (StateTree((), (), over=True), 1 << 20),
        (StateTree(LEFT, (), over=False), len(pack_state(LEFT)) - 1),
    ):
        one = OneRun(broker(), state=True, state_bytes=limit)
        asyncio.run(one.prepare())
        asyncio.run(one.end(left=left))
        assert [event["reason"] for event in one.events("state-kept")] == ["too-large"]
        assert (one.broker.counter, one.broker.leased) == (0, False)


def test_what_cannot_be_kept_is_in_the_transcript() -> None:
    one = OneRun(broker(), state=True)
    asyncio.run(one.prepare())
    left = StateTree(LEFT, (LeftOut("a link", "not a regular file"),), over=False)
    asyncio.run(one.end(left=left))
    assert [e["outcome"] for e in one.events("state-left-out")] == ["not a regular file"]
    assert one.events("state-saved")


def test_a_run_that_is_let_go_gives_the_lease_back() -> None:
    """The client went away, a chat expired: nobody concludes, `close` comes all the same."""
    one = OneRun(broker(), "token", state=True)
    asyncio.run(one.prepare())
    assert one.broker.leased
    asyncio.run(one.run.close())
    assert not one.broker.leased
    assert one.agent.closed
    assert one.broker.asked.count("close") == 1


def test_the_lease_is_given_back_when_wiping_fails() -> None:
    one = OneRun(broker(), state=True)

    async def go() -> None:
        await one.prepare()

        class Broken(PretendedSession):
            async def close(self) -> None:
                raise Unavailable("unmount")

        one.run.session = Broken()
        with pytest.raises(Unavailable):
            await one.run.close()

    asyncio.run(go())
    assert not one.broker.leased


# What leaves the run


def spoken(**changed: Any) -> SandboxExit:
    """An agent that prints its password everywhere."""
    text = b"the password is correct horse.\n"
    return replace(WELL, stdout=text, stderr=text * 2, stdout_bytes=31, stderr_bytes=62, **changed)


def test_values_are_scrubbed_before_anything_is_hashed() -> None:
    one = OneRun(broker(), "db-password", "PIN=pin")
    asyncio.run(one.prepare())
    one.agent.files = {"a.txt": b"pin 1234", "b.txt": b"x" * 300_000 + b"correct horse"}
    outputs = tuple(
        OutputFile(path, len(raw), hashlib.sha256(raw).hexdigest())
        for path, raw in one.agent.files.items()
    )
    asyncio.run(one.end(spoken(outputs=outputs)))
    place = b"[secret db-password]"
    scrubbed = b"x" * 300_000 + place
    consoles = {event["stream"]: event for event in one.events("console")}
    text = b"the password is " + place + b".\n"
    assert consoles["stdout"]["sha256"] == hashlib.sha256(text).digest()
    assert (consoles["stdout"]["bytes"], consoles["stdout"]["truncated"]) == (len(text), False)
    assert [event["sha256"] for event in one.events("output")] == [
        hashlib.sha256(raw).digest() for raw in (b"pin 1234", scrubbed)
    ]
    assert [(event["where"], event["count"]) for event in one.events("scrubbed")] == [
        ("stdout", 1),
        ("stderr", 2),
        ("output/1", 1),
    ]

    async def given() -> bytes:
        decoder = FrameDecoder()
        frames = [f async for piece in one.run.outputs() for f in decoder.feed(piece)]
        return b"".join(data for kind, data in frames if kind is FrameKind.DATA)

    assert asyncio.run(given()) == b"pin 1234" + scrubbed


def test_turns_are_scrubbed_on_their_way_out_alone() -> None:
    one = OneRun(broker(), "db-password")
    asyncio.run(one.prepare())

    async def talk() -> bytes:
        assert one.run.session is not None
        # The pretended agent says what it is told.
        return await one.run.session.turn(b'{"say": "correct horse"}')

    assert asyncio.run(talk()) == b'{"say": "[secret db-password]"}'
    asyncio.run(one.end())
    assert [(event["where"], event["count"]) for event in one.events("scrubbed")] == [("turns", 1)]


def test_a_console_that_was_cut_ends_in_no_half_value() -> None:
    one = OneRun(broker(), "db-password")
    asyncio.run(one.prepare())
    kept = b"." * 100 + b"correct hors"
    asyncio.run(one.end(replace(WELL, stdout=kept, stdout_bytes=5000)))
    console = one.events("console")[0]
    assert console["sha256"] == hashlib.sha256(b"." * 100).digest()
    assert console["truncated"] is True


def test_a_file_named_after_a_value_is_left_out() -> None:
    one = OneRun(broker(), "db-password")
    asyncio.run(one.prepare())
    named = OutputFile("tables/correct horse.csv", 1, "00" * 32)
    asyncio.run(one.end(replace(WELL, outputs=(named,))))
    assert not one.events("output")
    assert [e["outcome"] for e in one.events("output-refused")] == ["secret in the name"]


def test_outputs_that_grow_above_the_limit_are_not_given_out() -> None:
    one = OneRun(broker(values={"a-long-name-of-a-secret": b"8 bytes!"}), "a-long-name-of-a-secret",
                 output_bytes=1000)  # fmt: skip
    asyncio.run(one.prepare())
    one.agent.files = {"x": b"8 bytes!" * 100}
    raw = OutputFile("x", 800, "00" * 32)
    asyncio.run(one.end(replace(WELL, outputs=(raw,))))
    assert one.events("agent-exited")[0]["end"] == ExitKind.KILLED_OUTPUT.value
    assert not one.events("output")


def test_a_state_is_kept_as_it_is() -> None:
    """It leaves the run sealed: the agent may remember what it was given."""
    one = OneRun(broker(), "db-password", state=True)
    asyncio.run(one.prepare())
    entries = (StateEntry("remembered", VALUES["db-password"]),)
    asyncio.run(one.end(left=StateTree(entries, (), over=False)))
    again = OneRun(one.broker, "db-password", state=True)
    asyncio.run(again.prepare())
    assert again.agent.restored == entries


def test_outputs_without_a_value_are_as_the_agent_left_them() -> None:
    one = OneRun(broker(), "db-password")
    asyncio.run(one.prepare())
    outputs = tuple(
        OutputFile(path, len(raw), hashlib.sha256(raw).hexdigest()) for path, raw in OUTPUTS.items()
    )
    asyncio.run(one.end(replace(WELL, outputs=outputs)))
    recorded = [(event["sha256"], event["bytes"]) for event in one.events("output")]
    assert recorded == [(bytes.fromhex(o.sha256), o.size) for o in outputs]
    assert not one.events("scrubbed")
