"""A host that swaps keys or nodes in the middle: client ↔ agent node, agent node ↔ model node.

The proxy is real and in the path; the second agent node proves the model node through it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
from deployment import published
from in_path import Evidence, InPath, Meddler

from confide.adapters.entropy import SystemEntropy
from confide.adapters.evidence_http import EVIDENCE_PATH
from confide.channel.carriage import CHANNEL_PATH
from confide.errors import Reason, Rejected, RemoteProtocolError, RunRefused, Unavailable
from confide.node.keys import make_node_keys
from confide.receipts.statement import parse_run_statement
from confide.wire.evidence import EvidenceBundle, decode_evidence, encode_evidence_file
from confide.wire.keyset import parse_keyset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from deployment import Deployment
    from stub_openai import StubOpenAI

pytestmark = pytest.mark.container


class _Edited(Evidence):
    def __init__(self, edit: Callable[[EvidenceBundle], EvidenceBundle]) -> None:
        self._edit = edit

    def evidence(self, raw: bytes) -> bytes:
        return encode_evidence_file(self._edit(decode_evidence(raw)))


class _Elsewhere(Meddler):
    """Sends everything behind the evidence to another node."""

    def __init__(self, relay: InPath, other: str) -> None:
        self._relay, self._other = relay, other

    def response(self, path: str, pieces: Iterable[bytes]) -> Iterable[bytes]:
        yield from pieces
        if path == EVIDENCE_PATH:
            self._relay.target = self._other


def _attackers_keyset(bundle: EvidenceBundle) -> EvidenceBundle:
    honest = parse_keyset(bundle.keyset)
    made = make_node_keys(
        role=honest.role,
        software=honest.software,
        now=datetime.now(UTC),
        lifetime=timedelta(hours=1),
        entropy=SystemEntropy(),
    )
    return replace(bundle, keyset=made.keyset.document())


def _attackers_keyset_and_statement(bundle: EvidenceBundle) -> EvidenceBundle:
    swapped = _attackers_keyset(bundle)
    digest = parse_keyset(swapped.keyset).digest.hex()
    statement = {**cast("dict[str, Any]", bundle.statement), "keyset": digest}
    return replace(swapped, statement=cast("Any", statement))


def _without_devices(bundle: EvidenceBundle) -> EvidenceBundle:
    return replace(bundle, devices=())


def _without_devices_and_statement(bundle: EvidenceBundle) -> EvidenceBundle:
    statement = dict(cast("dict[str, Any]", bundle.statement))
    del statement["devices"]
    return replace(bundle, devices=(), statement=cast("Any", statement))


@pytest.fixture(scope="module")
def behind(deployment: Deployment) -> Iterator[InPath]:
    """A proxy in front of the model node."""
    with InPath(deployment.model_url) as relay:
        yield relay


@pytest.fixture(scope="module")
def relayed(deployment: Deployment, behind: InPath) -> Iterator[str]:
    """An agent node whose way to the model node is the proxy."""
    with deployment.installation.agent_node(behind.url) as node:
        yield node.url


ORDERS = [{"do": "call", "text": "a secret prompt", "save": "label.txt"}]


def test_a_proxy_between_the_nodes_changes_nothing(
    deployment: Deployment, behind: InPath, relayed: str
) -> None:
    behind.meddler = Meddler()
    folder = deployment.folder()
    outcome = deployment.run(ORDERS, url=relayed, folder=folder)
    assert outcome.failure is None
    assert published(folder) == {"label.txt": b"billing"}
    # The evidence, the call, the closing.
    assert behind.paths == [EVIDENCE_PATH, CHANNEL_PATH, CHANNEL_PATH]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_attackers_keyset, Reason.KEYSET_MISMATCH),
        (_attackers_keyset_and_statement, Reason.REPORT_DATA_MISMATCH),
    ],
)
def test_a_client_seals_to_no_keyset_that_was_swapped(
    deployment: Deployment, edit: Callable[[EvidenceBundle], EvidenceBundle], reason: Reason
) -> None:
    with InPath(deployment.agent_url, _Edited(edit)) as relay:
        with pytest.raises(Rejected) as refusal:
            deployment.run([{"do": "say", "text": "never"}], url=relay.url)
        assert reason in {finding.reason for finding in refusal.value.failures}
        assert relay.paths == [EVIDENCE_PATH]
    deployment.nothing_left()


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_attackers_keyset, Reason.KEYSET_MISMATCH),
        (_attackers_keyset_and_statement, Reason.REPORT_DATA_MISMATCH),
        (_without_devices, Reason.GPU_MISSING),
        (_without_devices_and_statement, Reason.REPORT_DATA_MISMATCH),
    ],
)
def test_an_agent_node_starts_nothing_before_a_model_node_that_was_swapped(
    deployment: Deployment, behind: InPath, relayed: str, stub: StubOpenAI, *,
    edit: Callable[[EvidenceBundle], EvidenceBundle], reason: Reason,
) -> None:  # fmt: skip
    behind.meddler = _Edited(edit)
    behind.paths.clear()
    prompts, seen = stub.prompts, list[Any]()
    with pytest.raises(RunRefused) as refusal:
        deployment.run(ORDERS, url=relayed, progress=seen)
    assert refusal.value.reason is reason
    assert "started" not in {progress.step for progress in seen}
    assert behind.paths == [EVIDENCE_PATH]
    assert stub.prompts == prompts
    deployment.nothing_left()


def test_a_client_that_is_led_to_another_node_after_the_proof_learns_it(
    deployment: Deployment, relayed: str
) -> None:
    """Same machine, same software, another boot: it holds other keys and can open nothing."""
    folder = deployment.folder()
    with InPath(deployment.agent_url) as relay:
        relay.meddler = _Elsewhere(relay, relayed)
        with pytest.raises((RemoteProtocolError, Unavailable)) as refusal:
            deployment.run([{"do": "say", "text": "never"}], url=relay.url, folder=folder)
    # A node that refuses early may close before its word arrives: then nothing is known at all.
    if isinstance(refusal.value, RemoteProtocolError):
        assert refusal.value.reason is Reason.KEYSET_MISMATCH
    assert not (folder / "out").exists()
    deployment.nothing_left()


def test_a_call_that_is_led_to_another_model_node_is_not_answered(
    deployment: Deployment, behind: InPath, relayed: str, stub: StubOpenAI
) -> None:
    prompts, folder = stub.prompts, deployment.folder()
    with deployment.installation.model_node() as other:
        behind.meddler = _Elsewhere(behind, other.url)
        try:
            outcome = deployment.run(ORDERS, url=relayed, folder=folder)
        finally:
            behind.meddler, behind.target = Meddler(), deployment.model_url
    # The agent saw a failed call, the run has a receipt that says so, and no prompt was read.
    assert stub.prompts == prompts
    assert outcome.verified is None
    assert isinstance(outcome.failure, Rejected)
    statement = parse_run_statement(outcome.receipt.run.payload)
    assert statement.result == "node-failed"
    made = [event for event in statement.events if event.kind == "model-call"]
    assert [event["outcome"] for event in made] == ["refused:keyset-mismatch"]
    assert made[0]["response"] is None
    assert not (folder / "out").exists()
    deployment.nothing_left()


def test_a_node_without_a_gpu_does_not_start(deployment: Deployment) -> None:
    at = deployment.installation
    node = at.launch(
        "model", "--model", "support-notes", "--upstream", at.upstream, fault="device-missing"
    )
    assert node.process.wait(timeout=60) != 0
    said = node.log.read_text()
    assert said.startswith("EvidenceRejected: "), said
    assert "Traceback" not in said


def test_a_model_node_that_is_down_is_unavailable(deployment: Deployment, relayed: str) -> None:
    del relayed
    with deployment.installation.agent_node("http://127.0.0.1:9") as node:
        with pytest.raises(Unavailable) as refusal:
            deployment.run(ORDERS, url=node.url)
        assert "cannot run this now" in str(refusal.value)
    deployment.nothing_left()
