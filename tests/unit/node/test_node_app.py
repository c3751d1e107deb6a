"""What a node shows the outside: health, evidence over the caller's nonce, and nothing in clear."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from nodes import NOW, SimulatedNode, fitting_expectation, roots

from confide.appraisal.node import appraise_node
from confide.errors import Unavailable
from confide.node.app import NodeApp
from confide.node.identity import NodeIdentity
from confide.wire.evidence import decode_evidence
from confide.wire.faces import FaceName
from confide.wire.json import jcs

NONCE = b"q" * 32


@pytest.fixture
def node() -> SimulatedNode:
    simulated = SimulatedNode("agent")
    asyncio.run(simulated.boot())
    return simulated


@dataclass
class Everything:
    """A face that takes every path, and says what it took."""

    name: FaceName = FaceName.NEAR
    taken: list[str] = field(default_factory=list)

    def takes(self, scope: Any) -> bool:
        self.taken.append(scope["path"])
        return True

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b"face"})


def call(
    node: SimulatedNode,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    broken: bool = False,
    faces: tuple[Everything, ...] = (),
) -> httpx2.Response:
    async def exchange() -> httpx2.Response:
        identity = NodeIdentity(
            node.keys, node.attester, clock=node.clock, entropy=node.entropy, simulated=True
        )
        if broken:

            async def refuse() -> None:
                raise Unavailable("something measured has changed")

            object.__setattr__(identity.current.attester, "unchanged", refuse)

        async def inner(*_: object) -> None:
            raise AssertionError("nothing in clear may reach the inner application")

        transport = httpx2.ASGITransport(app=NodeApp(identity, inner, faces))
        async with httpx2.AsyncClient(transport=transport, base_url="http://node") as client:
            return await client.request(method, path, content=body)

    return asyncio.run(exchange())


def test_evidence_answers_the_callers_nonce(node: SimulatedNode) -> None:
    known = roots()
    expectation = fitting_expectation(known)
    body = jcs({"nonce": NONCE.hex(), "expectation": expectation.digest.hex()})
    answer = call(node, "POST", "/confide/v1/evidence", body)
    proven = appraise_node(
        decode_evidence(answer.content),
        subject="agent-node",
        role="agent",
        purpose="channel",
        nonce=NONCE,
        claim=None,
        expectation=expectation,
        roots=known,
        now=NOW,
    )
    assert proven.keyset.digest == node.keys.keyset.digest


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"nonce":"00","expectation":"00"}',
        jcs({"nonce": "AA" * 32, "expectation": "aa" * 32}),
        jcs({"nonce": "aa" * 32, "expectation": "aa" * 32, "claim": "aa" * 32}),
        b"[" * 5000,
        b" " * 5000,
    ],
    ids=["empty", "no members", "short", "upper case", "a claim", "deep", "long"],
)
def test_anything_else_than_a_nonce_and_a_digest_is_refused(
    node: SimulatedNode, body: bytes
) -> None:
    assert call(node, "POST", "/confide/v1/evidence", body).status_code == 400


def test_there_is_no_evidence_once_something_measured_changed(node: SimulatedNode) -> None:
    body = jcs({"nonce": "aa" * 32, "expectation": "aa" * 32})
    answer = call(node, "POST", "/confide/v1/evidence", body, broken=True)
    assert answer.status_code == 503
    assert b"measured" not in answer.content, "what went wrong inside is not told outside"


def test_health_is_a_hint_that_says_simulated(node: SimulatedNode) -> None:
    health = json.loads(call(node, "GET", "/confide/v1/health").content)
    assert health == {
        "role": "agent",
        "keyset": node.keys.keyset.digest.hex(),
        "ready": True,
        "simulated": True,
    }


@pytest.mark.parametrize("path", ["/confide/v1/runs", "/v1/chat/completions", "/", "/metrics"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_is_served_in_clear(node: SimulatedNode, method: str, path: str) -> None:
    assert call(node, method, path).status_code == 404


@pytest.mark.parametrize(
    "path", ["/confide/v1/health", "/confide/v1/evidence", "/confide/v1/ohttp"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_a_face_takes_over_no_route_of_the_node(
    node: SimulatedNode, method: str, path: str
) -> None:
    face = Everything()
    assert call(node, method, path, faces=(face,)).status_code != 299
    assert face.taken == [], "it is not even asked"


def test_the_first_face_that_takes_a_path_serves_it(node: SimulatedNode) -> None:
    first, second = Everything(), Everything()
    answer = call(node, "GET", "/v1/attestation/report", faces=(first, second))
    assert (answer.status_code, answer.content) == (299, b"face")
    assert (first.taken, second.taken) == (["/v1/attestation/report"], [])
