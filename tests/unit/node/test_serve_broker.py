"""A broker refuses to start with anything left open that decides what it releases."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from broker_world import KEYS, World
from log_world import WITNESSES, policy
from nodes import roots

from confide.broker.owners import make_owners
from confide.errors import ConfigurationError
from confide.node.serve_broker import BrokerSettings, serve_broker
from confide.trust.roots import VENDOR_ROOTS
from confide.wire.endorsements import Endorsements

if TYPE_CHECKING:
    from confide.wire.service import Evidence

OWNERS = make_owners("acme", threshold=1, keys=[b"o" * 32])


async def _nothing(_evidence: Evidence) -> Endorsements:
    return Endorsements()


def settings(**changes: Any) -> BrokerSettings:
    given: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "store": World().sealed(),
        "keys": KEYS,
        "owners": (OWNERS,),
        "roots": roots(),
        "allow_simulated": True,
        "log_url": "http://127.0.0.1:9",
        "log_policy": policy(1, WITNESSES[0]),
        "endorse": _nothing,
        "report": lambda _line: None,
    }
    return BrokerSettings(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"owners": ()}, "without owners"),
        ({"log_policy": None}, "without a log"),
        ({"log_url": ""}, "without a log"),
        ({"roots": VENDOR_ROOTS}, "no simulated roots are given"),
        ({"allow_simulated": False}, "not allowed"),
    ],
)
def test_it_does_not_start(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        asyncio.run(serve_broker(settings(**changes)))
