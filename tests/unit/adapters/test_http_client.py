"""Waiting for nodes: who asks often must not pay for more than the asking."""

from __future__ import annotations

import cProfile
import pstats

from confide.adapters.broker_http import ask_broker, broker_client
from confide.adapters.http_client import ask_health, make_node_client
from confide.adapters.log_http import ask_log, ask_witness, log_client

# Nobody listens on port 1 of this machine, and an answer is not what this is about.
_NOBODY = "http://127.0.0.1:1"


def test_the_certificates_of_this_system_are_read_once_however_often_nodes_are_asked() -> None:
    profile = cProfile.Profile()
    with profile:
        for ask in (ask_health, ask_broker, ask_log, ask_witness) * 3:
            assert ask(_NOBODY) is None
        for make in (make_node_client, broker_client, log_client):
            make()
    stats: dict[tuple[str, int, str], tuple[int, ...]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    calls = {name: counts[0] for (_file, _line, name), counts in stats.items()}
    asked = [count for name, count in calls.items() if "'connect' of '_socket.socket'" in name]
    assert sum(asked) >= 12
    read = [count for name, count in calls.items() if "load_verify_locations" in name]
    assert sum(read) <= 1
