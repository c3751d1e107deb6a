"""The contract of `ports.QuoteSource`: the simulator and every adapter. hardware.md §2 to §5.

The adapters run over stand-ins: nothing here saw TDX hardware or a dstack machine.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest
from appraisals import appraise, attested, refusals
from dstack_logs import COMPOSE_HASH
from dstack_stand_in import DstackPeer, dstack_socket
from nodes import KERNEL, NOW, SEED, SOFTWARE
from runs import expectation_and_roots
from td_stand_in import KernelTree, Td

from confide.adapters.dstack_agent import connect_dstack
from confide.adapters.dstack_guest import open_dstack_guest
from confide.adapters.tdx_tsm import open_tdx_guest
from confide.appraisal.eventlog import replay_ccel, replay_runtime
from confide.errors import Reason
from confide.simulator.machine import SimulatedGuest, make_platform
from confide.wire.ccel import parse_ccel
from confide.wire.rtmr_log import RuntimeEvent, encode_log, parse_log
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dstack_stand_in import Generation

    from confide.ports import QuoteSource

OURS = (RuntimeEvent("confide-node", b"{}"), RuntimeEvent("confide-ready", b""))
PLAIN = ("simulated", "tdx")
DSTACK: dict[str, tuple[Generation, Literal[1, 2]]] = {
    "dstack 0.5": ("0.5", 1),
    "dstack 0.6": ("v0", 2),
    "dstack v1": ("v1", 2),
    "dstack v1, no Version": ("v1-mute", 1),
}


@contextmanager
def _open(kind: str, folder: Path) -> Iterator[QuoteSource]:
    if kind == "simulated":
        platform = make_platform(SEED, NOW, ())
        yield SimulatedGuest(platform, role="agent", software=SOFTWARE, kernel=KERNEL)
        return
    if kind == "tdx":
        yield open_tdx_guest(KernelTree(), name="contract")
        return
    td = Td()
    generation, version = DSTACK[kind]
    peer = DstackPeer(td, generation, log_version=version)
    # 0.5 has no register to write to: the agent extends. The others have no `EmitEvent`.
    tree = KernelTree(td, measured=kind != "dstack 0.5", table=None)
    with dstack_socket(peer, folder) as path:
        agent = connect_dstack(path)
        try:
            yield open_dstack_guest(agent, tree)
        finally:
            agent.close()


@pytest.fixture(params=[*PLAIN, *DSTACK])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QuoteSource]:
    with _open(request.param, tmp_path) as made:
        yield made


def _replays(quote: bytes, events: tuple[RuntimeEvent, ...]) -> bool:
    # Out through JSON and in again: what a verifier replays.
    return replay_runtime(parse_log(encode_log(events))) == parse_quote(quote).body.rtmr[3]


def test_a_quote_is_over_exactly_what_was_asked_for(guest: QuoteSource) -> None:
    async def ask() -> None:
        for data in (bytes(64), bytes(range(64)), b"\xff" * 64):
            quote, events = await guest.quote(data)
            assert parse_quote(quote).body.report_data == data
            assert _replays(quote, events)

    asyncio.run(ask())


def test_an_extension_is_in_the_register_and_at_the_end_of_the_log(guest: QuoteSource) -> None:
    async def extend() -> None:
        _, before = await guest.quote(bytes(64))
        for count, event in enumerate(OURS, start=1):
            await guest.extend(event)
            quote, events = await guest.quote(bytes(64))
            told = [(event.name, event.payload) for event in events]
            expected = [(event.name, event.payload) for event in (*before, *OURS[:count])]
            assert told == expected
            assert _replays(quote, events)

    asyncio.run(extend())


def test_the_firmware_log_reproduces_what_was_quoted(guest: QuoteSource) -> None:
    quote, _ = asyncio.run(guest.quote(bytes(64)))
    replayed = replay_ccel(parse_ccel(guest.firmware_log()))
    assert replayed[:3] == parse_quote(quote).body.rtmr[:3]
    assert replayed[3] == bytes(48)


def test_no_event_comes_between_a_quote_and_its_log(guest: QuoteSource) -> None:
    async def race() -> None:
        extending = [guest.extend(RuntimeEvent(f"event-{n}", b"%d" % n)) for n in range(6)]
        quoting = [guest.quote(bytes([n]) * 64) for n in range(6)]
        _, quotes = await asyncio.gather(asyncio.gather(*extending), asyncio.gather(*quoting))
        for number, (quote, events) in enumerate(quotes):
            assert parse_quote(quote).body.report_data == bytes([number]) * 64
            assert _replays(quote, events)

    asyncio.run(race())


def test_giving_up_in_the_middle_leaves_register_and_log_in_step(guest: QuoteSource) -> None:
    async def give_up() -> None:
        for event in OURS:
            waiting = asyncio.ensure_future(guest.extend(event))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        quote, events = await guest.quote(bytes(64))
        assert _replays(quote, events)

    asyncio.run(give_up())


@pytest.mark.parametrize("kind", PLAIN)
def test_a_verifier_accepts_a_node_on_it(kind: str, tmp_path: Path) -> None:
    with _open(kind, tmp_path) as guest:
        evidence = attested("agent", guest)
    assert appraise(evidence, "agent").keyset.role == "agent"


@pytest.mark.parametrize("kind", DSTACK)
def test_a_verifier_accepts_a_node_on_dstack_whose_compose_it_knows(
    kind: str, tmp_path: Path
) -> None:
    # hardware.md §5.6: dstack's own boot stands in RTMR3 before ours.
    fitting, _ = expectation_and_roots()
    wanted = replace(fitting, agent_node=replace(fitting.agent_node, compose=(COMPOSE_HASH.hex(),)))
    with _open(kind, tmp_path) as guest:
        evidence = attested("agent", guest, expectation=wanted)
    node = appraise(evidence, "agent", expectation=wanted)
    assert node.events.dstack is not None
    assert node.events.dstack.compose_hash == COMPOSE_HASH


@pytest.mark.parametrize("kind", DSTACK)
def test_and_refuses_one_whose_compose_nobody_named(kind: str, tmp_path: Path) -> None:
    with _open(kind, tmp_path) as guest:
        found = refusals(attested("agent", guest), "agent")
    assert found["7"] is Reason.EVENT_UNKNOWN
