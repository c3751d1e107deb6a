"""What a dstack agent can do instead of answering: hardware.md §5."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import pytest
from dstack_stand_in import DstackPeer, dstack_socket
from td_stand_in import KernelTree, Td

from confide.adapters.dstack_agent import DstackApi, connect_dstack
from confide.adapters.dstack_guest import find_dstack, open_dstack_guest
from confide.errors import ConfideError, ConfigurationError, Unavailable, Unsupported
from confide.wire.rtmr_log import RuntimeEvent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from confide.adapters.dstack_agent import DstackAgent

DATA = bytes(range(64))
EVENT = RuntimeEvent("confide-node", b"{}")


@contextmanager
def _agent(peer: DstackPeer, folder: Path, *, seconds: float = 30.0) -> Iterator[DstackAgent]:
    with dstack_socket(peer, folder) as path:
        agent = connect_dstack(path, seconds=seconds)
        try:
            yield agent
        finally:
            agent.close()


@pytest.mark.parametrize(
    ("generation", "api", "emits"),
    [
        ("0.5", DstackApi.LEGACY, True),
        ("v0", DstackApi.V0, False),
        ("v1", DstackApi.V1, False),
        ("v1-mute", DstackApi.V1, False),
    ],
)
def test_each_generation_is_known_by_what_it_answers(
    generation: Any, api: DstackApi, emits: bool, tmp_path: Path
) -> None:
    with _agent(DstackPeer(generation=generation), tmp_path) as agent:
        assert agent.api is api
        assert agent.emits_events is emits
        if not emits:
            with pytest.raises(Unsupported, match="EmitEvent"):
                agent.emit(EVENT)


def test_an_older_agent_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match="tappd"),
        _agent(DstackPeer(generation="tappd"), tmp_path),
    ):
        pass


def test_a_socket_that_nobody_serves_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        connect_dstack(str(tmp_path / "nobody.sock"))


PROBES: dict[str, Any] = {
    "garbage": (200, b"\xff\xfe"),
    "not an object": (200, b"[]"),
    "no version": (200, b"{}"),
    "version is no text": (200, b'{"version": 5}'),
    "version with controls": (200, b'{"version": "\\u001b[31m"}'),
    "refused": (400, b'{"error":"no"}'),
    "broken off": "close",
    "too long": (200, b" " * (65 * 1024)),
}


@pytest.mark.parametrize("answer", PROBES.values(), ids=PROBES)
def test_a_probe_that_is_answered_badly_starts_nothing(answer: Any, tmp_path: Path) -> None:
    peer = DstackPeer(broken={"v1/Version": answer})
    with pytest.raises(Unavailable), _agent(peer, tmp_path):
        pass


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_an_answer_that_does_not_come_is_not_waited_for(
    how: Literal["hang", "drip"], tmp_path: Path
) -> None:
    # The first question: a short patience is never tried on an answer that should come.
    peer = DstackPeer(broken={"v1/Version": how})
    with pytest.raises(Unavailable), _agent(peer, tmp_path, seconds=0.2):
        pass
    assert peer.called == []


QUOTES: dict[str, tuple[int, bytes]] = {
    "refused": (400, b'{"error":"report data"}'),
    "garbage": (200, b"not json"),
    "empty": (200, b"{}"),
    "no hex": (200, b'{"quote":"zz","event_log":"[]"}'),
    "half a byte": (200, b'{"quote":"abc","event_log":"[]"}'),
    "no quote in it": (200, b'{"quote":"00ff","event_log":"[]"}'),
    "log no text": (200, b'{"quote":"00ff","event_log":[]}'),
    "log no json": (200, b'{"quote":"00ff","event_log":"{"}'),
    "log no array": (200, b'{"quote":"00ff","event_log":"{}"}'),
    "one member twice": (200, b'{"quote":"00","quote":"00","event_log":"[]"}'),
}


@pytest.mark.parametrize("answer", QUOTES.values(), ids=QUOTES)
def test_no_quote_is_an_error_whatever_came_instead(
    answer: tuple[int, bytes], tmp_path: Path
) -> None:
    with (
        _agent(DstackPeer(broken={"GetQuote": answer}), tmp_path) as agent,
        pytest.raises(Unavailable),
    ):
        agent.quote(DATA)


@pytest.mark.parametrize("attestation", ["00", "ff" * 100, "", None])
def test_an_envelope_that_is_none_is_an_error(attestation: str | None, tmp_path: Path) -> None:
    answer = (200, json.dumps({"attestation": attestation}).encode())
    peer = DstackPeer(generation="v1", broken={"v1/Attest": answer})
    with _agent(peer, tmp_path) as agent, pytest.raises(ConfideError):
        agent.quote(DATA)


def test_a_quote_next_to_an_attestation_is_two_machines(tmp_path: Path) -> None:
    with (
        _agent(DstackPeer(also={"attestation": "00"}), tmp_path) as agent,
        pytest.raises(Unavailable, match="next to"),
    ):
        agent.quote(DATA)
    empty = tmp_path / "empty"
    empty.mkdir()
    with _agent(DstackPeer(also={"attestation": ""}), empty) as agent:
        assert agent.quote(DATA).entries


@pytest.mark.parametrize("generation", ["0.5", "v0", "v1"])
def test_a_quote_over_other_report_data_is_noticed(generation: Any, tmp_path: Path) -> None:
    peer = DstackPeer(generation=generation, answered=b"x" * 64)
    with (
        _agent(peer, tmp_path) as agent,
        pytest.raises(Unavailable, match="other report data"),
    ):
        agent.quote(DATA)


def test_without_emit_event_and_without_a_register_no_node_is_measured(tmp_path: Path) -> None:
    peer = DstackPeer()
    with (
        _agent(peer, tmp_path) as agent,
        pytest.raises(ConfigurationError, match=r"EmitEvent.*6\.16"),
    ):
        open_dstack_guest(agent, KernelTree(peer.td, measured=False))


def test_a_register_that_the_agents_log_does_not_explain_is_refused(tmp_path: Path) -> None:
    peer = DstackPeer(hidden=1)
    with (
        _agent(peer, tmp_path) as agent,
        pytest.raises(Unavailable, match="does not reproduce the quoted RTMR3"),
    ):
        open_dstack_guest(agent, KernelTree(peer.td))


def test_a_register_of_another_machine_than_the_agents_is_refused(tmp_path: Path) -> None:
    peer = DstackPeer()
    tree = KernelTree(Td(), table=None)
    with _agent(peer, tmp_path) as agent, pytest.raises(ConfigurationError, match="extended"):
        open_dstack_guest(agent, tree)


def test_without_any_firmware_log_nothing_starts(tmp_path: Path) -> None:
    peer = DstackPeer(firmware=False)
    with _agent(peer, tmp_path) as agent:
        with pytest.raises(ConfigurationError, match="does not reproduce RTMR0"):
            open_dstack_guest(agent, KernelTree(peer.td, table=None))
        # The table of the machine's own firmware does as well.
        assert open_dstack_guest(agent, KernelTree(peer.td)).firmware_log()


def test_an_event_that_the_agent_swallows_is_noticed(tmp_path: Path) -> None:
    peer = DstackPeer(generation="0.5", deaf=True)
    with _agent(peer, tmp_path) as agent:
        guest = open_dstack_guest(agent, KernelTree(peer.td, measured=False))
        with pytest.raises(Unavailable, match="no more and no less"):
            asyncio.run(guest.extend(EVENT))
        _, events = asyncio.run(guest.quote(DATA))
        assert EVENT.name not in {event.name for event in events}


def test_an_event_of_somebody_else_ends_all_evidence(tmp_path: Path) -> None:
    peer = DstackPeer(generation="0.5")
    with _agent(peer, tmp_path) as agent:
        guest = open_dstack_guest(agent, KernelTree(peer.td, measured=False))
        agent.emit(RuntimeEvent("of-another-container", b""))
        with pytest.raises(Unavailable, match="no more and no less"):
            asyncio.run(guest.quote(DATA))


def test_an_agent_that_refuses_to_emit_extends_nothing(tmp_path: Path) -> None:
    peer = DstackPeer(generation="0.5", broken={"EmitEvent": (400, b'{"error":"no"}')})
    with _agent(peer, tmp_path) as agent:
        guest = open_dstack_guest(agent, KernelTree(peer.td, measured=False))
        with pytest.raises(Unavailable, match="refused EmitEvent"):
            asyncio.run(guest.extend(EVENT))


def test_the_socket_is_looked_for_in_its_places() -> None:
    places = ("/run/new.sock", "/run/old.sock")
    assert find_dstack(KernelTree(extra=frozenset({places[1]})), places) == places[1]
    assert find_dstack(KernelTree(extra=frozenset(places)), places) == places[0]
    with pytest.raises(ConfigurationError, match=r"/run/new\.sock, /run/old\.sock"):
        find_dstack(KernelTree(), places)
