"""Evidence that is missing, old, edited or somebody else's, on its way to a real client.

Every attack is a change in a real in-path proxy; the first test shows that the proxy alone changes
nothing. In each refusal the node has received a nonce and a digest, and nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import httpx2
import pytest
from in_path import Evidence, InPath, Meddler

from confide.adapters.evidence_http import EVIDENCE_PATH
from confide.channel.carriage import CHANNEL_PATH
from confide.errors import (
    EvidenceRejected,
    FormatError,
    PolicyRejected,
    Reason,
    Rejected,
    RunRefused,
    Unavailable,
)
from confide.simulator.machine import simulated_roots
from confide.wire.ccel import parse_ccel
from confide.wire.evidence import EvidenceBundle, decode_evidence, encode_evidence_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deployment import Deployment

    from confide.client.agent import ProvenAgentNode
    from confide.expectation import Expectation
    from confide.ports import Clock
    from confide.trust.roots import Roots

pytestmark = pytest.mark.container


@pytest.fixture(scope="module")
def relay(deployment: Deployment) -> Iterator[InPath]:
    """A proxy in front of the agent node."""
    with InPath(deployment.agent_url) as running:
        yield running


class _Edited(Evidence):
    def __init__(self, edit: Callable[[EvidenceBundle], EvidenceBundle]) -> None:
        self._edit = edit

    def evidence(self, raw: bytes) -> bytes:
        return encode_evidence_file(self._edit(decode_evidence(raw)))


class _Instead(Evidence):
    def __init__(self, instead: Callable[[bytes], bytes]) -> None:
        self._instead = instead

    def evidence(self, raw: bytes) -> bytes:
        return self._instead(raw)


class _FromElsewhere(Meddler):
    """Lets another node answer the same question: same nonce, same Expectation."""

    def __init__(self, url: str) -> None:
        self._url = url

    def answer(self, path: str, raw: bytes) -> bytes | None:
        if path != EVIDENCE_PATH:
            return None
        headers = {"content-type": "application/json"}
        return httpx2.post(
            self._url + path, content=raw, headers=headers, trust_env=False, timeout=60
        ).content


@dataclass(frozen=True, slots=True)
class _At:
    """A clock that stands."""

    time: datetime

    def now(self) -> datetime:
        return self.time


def prove(
    deployment: Deployment,
    relay: InPath,
    meddler: Meddler | None = None,
    *,
    expectation: Expectation | None = None,
    clock: Clock | None = None,
    roots: Roots | None = None,
) -> ProvenAgentNode:
    """Prove the agent node through the proxy. Nothing but the evidence request may pass it."""
    relay.meddler = meddler or Meddler()
    relay.paths.clear()

    async def work() -> ProvenAgentNode:
        async with deployment.client(relay.url, clock=clock, roots=roots) as client:
            return await client.prove(expectation or deployment.expectation())

    try:
        return asyncio.run(work())
    finally:
        assert set(relay.paths) <= {EVIDENCE_PATH}


def refused(error: Rejected) -> set[Reason | None]:
    """The reasons of every failed finding."""
    return {finding.reason for finding in error.failures}


def test_a_proxy_that_changes_nothing_changes_nothing(
    deployment: Deployment, relay: InPath
) -> None:
    proven = prove(deployment, relay)
    assert proven.node.result.simulated
    relay.meddler = Meddler()
    outcome = deployment.run([{"do": "say", "text": "through"}], url=relay.url)
    assert outcome.failure is None
    assert relay.paths[-1] == CHANNEL_PATH


# --- missing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "member",
    ["statement", "keyset", "tdx", "devices", "endorsements", "quote", "collateral", "runtime_log",
     "firmware_log"],
)  # fmt: skip
def test_evidence_without_a_member_is_missing_evidence(
    deployment: Deployment, relay: InPath, member: str
) -> None:
    def cut(raw: bytes) -> bytes:
        value = json.loads(raw)
        evidence = value["evidence"]
        del (evidence if member in evidence else evidence["tdx"])[member]
        return json.dumps(value).encode()

    with pytest.raises(FormatError) as refusal:
        prove(deployment, relay, _Instead(cut))
    assert refusal.value.reason is Reason.EVIDENCE_MISSING


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b"null", b'{"evidence":{},"blobs":{}}', b"\xff" * 9]
)
def test_an_answer_that_is_no_evidence_is_missing_evidence(
    deployment: Deployment, relay: InPath, answer: bytes
) -> None:
    with pytest.raises(FormatError) as refusal:
        prove(deployment, relay, _Instead(lambda _raw: answer))
    assert refusal.value.reason is Reason.EVIDENCE_MISSING


def test_no_answer_is_unavailable_and_nothing_else(deployment: Deployment) -> None:
    with InPath("http://127.0.0.1:9") as nowhere, pytest.raises(Unavailable):
        prove(deployment, nowhere)


# --- stale --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "reasons"),
    [
        (40, {Reason.KEYSET_EXPIRED, Reason.COLLATERAL_AGE}),
        (2, {Reason.KEYSET_EXPIRED}),
        (-2, {Reason.KEYSET_EXPIRED}),
    ],
)
def test_evidence_is_stale_by_the_clients_clock(
    deployment: Deployment, relay: InPath, days: int, reasons: set[Reason]
) -> None:
    clock = _At(datetime.now(UTC) + timedelta(days=days))
    with pytest.raises(EvidenceRejected) as refusal:
        prove(deployment, relay, clock=clock)
    assert reasons <= refused(refusal.value), refused(refusal.value)


# --- replayed, from another node ----------------------------------------------------------------


def test_evidence_of_an_earlier_exchange_is_refused(deployment: Deployment, relay: InPath) -> None:
    kept: list[bytes] = []

    def replay(raw: bytes) -> bytes:
        kept.append(raw)
        return kept[0]

    prove(deployment, relay, _Instead(replay))
    with pytest.raises(EvidenceRejected) as refusal:
        prove(deployment, relay, _Instead(replay))
    assert refusal.value.reason is Reason.NONCE_MISMATCH


def test_old_evidence_under_the_new_nonce_is_not_what_was_quoted(
    deployment: Deployment, relay: InPath
) -> None:
    kept: list[EvidenceBundle] = []

    def dress_up(fresh: EvidenceBundle) -> EvidenceBundle:
        kept.append(fresh)
        return replace(kept[0], statement=fresh.statement)

    prove(deployment, relay, _Edited(dress_up))
    with pytest.raises(Rejected) as refusal:
        prove(deployment, relay, _Edited(dress_up))
    assert refusal.value.reason is Reason.REPORT_DATA_MISMATCH


def test_evidence_of_the_model_node_is_not_an_agent_nodes(
    deployment: Deployment, relay: InPath
) -> None:
    with pytest.raises(EvidenceRejected) as refusal:
        prove(deployment, relay, _FromElsewhere(deployment.model_url))
    assert Reason.NODE_ROLE_MISMATCH in refused(refusal.value)


def test_evidence_of_another_expectation_is_refused(deployment: Deployment, relay: InPath) -> None:
    class _OtherExpectation(Meddler):
        def request(self, path: str, pieces: Any) -> Any:
            raw = b"".join(pieces)
            if path != EVIDENCE_PATH:
                return [raw]
            value = json.loads(raw)
            value["expectation"] = hashlib.sha256(b"other").hexdigest()
            return [json.dumps(value).encode()]

    with pytest.raises(EvidenceRejected) as refusal:
        prove(deployment, relay, _OtherExpectation())
    assert refusal.value.reason is Reason.EXPECTATION_MISMATCH


# --- simulated where the policy does not name the simulated root --------------------------------


def test_a_policy_of_vendor_roots_refuses_simulated_evidence(
    deployment: Deployment, relay: InPath
) -> None:
    fitting = deployment.expectation()
    vendor = replace(fitting, hardware=replace(fitting.hardware, roots="vendor"))
    with pytest.raises(Rejected) as refusal:
        prove(deployment, relay, expectation=vendor)
    assert refusal.value.reason is Reason.SIMULATED_NOT_ALLOWED


def test_another_simulated_root_is_another_root(deployment: Deployment, relay: InPath) -> None:
    other = simulated_roots(b"another installation", datetime.now(UTC))
    fitting = deployment.expectation()
    with pytest.raises(Rejected) as refusal:
        prove(deployment, relay, roots=other)
    assert refusal.value.reason is Reason.SIMULATED_NOT_ALLOWED
    # An Expectation that names it: then the evidence does not chain to it.
    naming = replace(fitting, hardware=replace(fitting.hardware, roots=other.name))
    with pytest.raises(EvidenceRejected) as deeper:
        prove(deployment, relay, roots=other, expectation=naming)
    assert deeper.value.reason is Reason.ROOT_MISMATCH


def test_the_node_itself_refuses_an_expectation_of_other_roots(deployment: Deployment) -> None:
    async def work() -> None:
        folder = deployment.folder()
        fitting = deployment.expectation()
        vendor = replace(fitting, hardware=replace(fitting.hardware, roots="vendor"))
        async with deployment.client() as client:
            # A careless client that skipped its own first step.
            proven = replace(await client.prove(fitting), expectation=vendor)
            given = deployment.inputs(folder, [{"do": "say", "text": "never"}], {})
            await client.run(proven, given, destination=folder / "out", on_progress=lambda _p: None)

    with pytest.raises(RunRefused) as refusal:
        asyncio.run(work())
    assert refusal.value.reason is Reason.SIMULATED_NOT_ALLOWED
    deployment.nothing_left()


# --- event logs ---------------------------------------------------------------------------------


def _log(
    edit: Callable[[list[dict[str, Any]]], object],
) -> Callable[[EvidenceBundle], EvidenceBundle]:
    def work(bundle: EvidenceBundle) -> EvidenceBundle:
        log = cast("list[dict[str, Any]]", json.loads(json.dumps(bundle.runtime_log)))
        edit(log)
        return replace(bundle, runtime_log=cast("Any", log))

    return work


def _edit_payload(log: list[dict[str, Any]]) -> None:
    other = bytes.fromhex(log[0]["event_payload"]).replace(b'"agent"', b'"agenT"')
    log[0]["event_payload"] = other.hex()


def _edit_payload_and_preimage(log: list[dict[str, Any]]) -> None:
    _edit_payload(log)
    entry = log[0]
    members = {
        "name": entry["event"], "payload": entry["event_payload"], "type": entry["event_type"],
    }  # fmt: skip
    entry["preimage"] = json.dumps(members, separators=(",", ":")).encode().hex()


def _edit_payload_and_digest(log: list[dict[str, Any]]) -> None:
    _edit_payload_and_preimage(log)
    log[0]["digest"] = hashlib.sha384(bytes.fromhex(log[0]["preimage"])).hexdigest()


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        # Digest and preimage were both kept; which of them is compared first does not matter.
        (_edit_payload, None),
        (_edit_payload_and_preimage, Reason.DIGEST_MISMATCH),
        (_edit_payload_and_digest, Reason.RTMR3_MISMATCH),
        (lambda log: log.pop(), Reason.RTMR3_MISMATCH),
        (lambda log: log.pop(0), Reason.RTMR3_MISMATCH),
        (lambda log: log.insert(0, log.pop(1)), Reason.RTMR3_MISMATCH),
        (lambda log: log.append(log[-1]), Reason.RTMR3_MISMATCH),
        (lambda log: log.clear(), Reason.RTMR3_MISMATCH),
    ],
    ids=["payload-edited", "digest-kept", "payload-and-digest", "last-dropped", "first-dropped",
         "swapped", "repeated", "emptied"],
)  # fmt: skip
def test_an_event_log_that_was_touched_is_refused(
    deployment: Deployment, relay: InPath, edit: Callable[[list[dict[str, Any]]], object],
    reason: Reason | None,
) -> None:  # fmt: skip
    with pytest.raises(EvidenceRejected) as refusal:
        prove(deployment, relay, _Edited(_log(edit)))
    either = {Reason.DIGEST_MISMATCH, Reason.PREIMAGE_MISMATCH}
    assert ({reason} if reason else either) & refused(refusal.value)


def test_a_firmware_log_that_was_touched_is_refused(deployment: Deployment, relay: InPath) -> None:
    def flip(bundle: EvidenceBundle) -> EvidenceBundle:
        last = parse_ccel(bundle.firmware_log)[-1]
        other = bytes((last.digest[0] ^ 1,)) + last.digest[1:]
        return replace(bundle, firmware_log=bundle.firmware_log.replace(last.digest, other))

    with pytest.raises(EvidenceRejected) as refusal:
        prove(deployment, relay, _Edited(flip))
    touched = {Reason.RTMR0_MISMATCH, Reason.RTMR1_MISMATCH, Reason.RTMR2_MISMATCH}
    assert touched & refused(refusal.value)


# --- faults of the node itself, by name ---------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("log-payload-edited", Reason.RTMR3_MISMATCH),
        ("expired-collateral", Reason.COLLATERAL_EXPIRED),
        ("debug-td", Reason.TD_DEBUG),
    ],
)
def test_a_node_with_a_fault_is_refused(deployment: Deployment, fault: str, reason: Reason) -> None:
    at = deployment.installation
    with at.agent_node(deployment.model_url, fault=fault) as node, InPath(node.url) as relay:
        with pytest.raises((EvidenceRejected, PolicyRejected)) as refusal:
            prove(deployment, relay)
        assert reason in refused(refusal.value)
