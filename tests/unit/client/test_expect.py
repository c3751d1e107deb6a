"""An Expectation for an agent on local nodes: what it asks of a broker, and who answers."""

from __future__ import annotations

from typing import Any, cast

import pytest
from nodes import NOW, SEED, SOFTWARE, roots

from confide.agents.manifest import parse_agent_manifest
from confide.client.expect import BrokerReference, expectation_for
from confide.client.local import local_reference
from confide.errors import ConfigurationError
from confide.expectation import NO_BROKER, BrokerSpec, Expectation, parse_expectation

PLAIN = b'name = "notes"\nmode = "batch"\nentry = ["python3"]\nmodel = "support-notes"\n'
BROKER = BrokerReference(b"k" * 32, "records")


def made(more: bytes, broker: BrokerReference | None) -> Expectation:
    reference: Any = local_reference(
        seed=SEED, roots=roots(), software=SOFTWARE, kernel="6.1", model="support-notes",
        weights=None, now=NOW,
    )  # fmt: skip
    manifest = parse_agent_manifest(more + PLAIN)
    return expectation_for(manifest, "8" * 64, cast("Any", reference), broker=broker)


def test_what_the_agent_asks_for_is_in_its_expectation() -> None:
    found = made(b'secrets = ["pin", "TOKEN=token"]\nstate = true\n', BROKER)
    assert found.broker == BrokerSpec((b"k" * 32).hex(), "records", ("pin", "TOKEN=token"), True)
    assert parse_expectation(found.canonical()) == found


@pytest.mark.parametrize("more", [b'secrets = ["pin"]\n', b"state = true\n"])
def test_an_agent_that_needs_a_broker_is_refused_without_one(more: bytes) -> None:
    with pytest.raises(ConfigurationError, match="notes asks for secrets or state"):
        made(more, None)


def test_an_agent_that_needs_none_names_none() -> None:
    assert made(b"", BROKER).broker == made(b"state = false\n", None).broker == NO_BROKER
