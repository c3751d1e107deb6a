"""Steps broker/1 to broker/8: each refuses what it is there for, and each carries weight."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from broker_world import INIT_DATA, RUN, expectation, ready_node
from mutants import without
from nodes import NOW, SEED, roots

from confide.appraisal.eventlog import run_commitment
from confide.broker import attested
from confide.broker.attested import Asked, GuestProof, NodeProof, floor_policy
from confide.crypto.jwe import derive_unwrapping_key
from confide.errors import Reason, ReleaseRefused
from confide.formats.trustee import FORMAT
from confide.simulator.machine import make_platform
from confide.simulator.trustee import SimulatedPod
from confide.trust.roots import VENDOR_ROOTS
from confide.wire.ccel import encode_ccel
from confide.wire.endorsements import Endorsements
from confide.wire.jwe import EcPoint, encode_wrapping_key
from confide.wire.kbs import (
    Attestation,
    KbsChallenge,
    NodeEvidence,
    encode_attestation,
    parse_attestation,
    parse_node_evidence,
    runtime_claim,
)
from confide.wire.rtmr_log import RuntimeEvent
from confide.wire.service import Capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.wire.service import Evidence

CHALLENGE = KbsChallenge(b"n" * 32, "sha384")
KEY = derive_unwrapping_key("P-256", b"g" * 96).public
OTHER = derive_unwrapping_key("P-256", b"h" * 96).public
OWN = Endorsements(tdx=(make_platform(SEED, NOW, ()).collateral(),))


@cache
def node_attestation(*, purpose: str = "release", run: bytes = RUN) -> Attestation:
    """The attestation of an honest agent node."""

    async def make() -> Attestation:
        node = await ready_node()
        claim = runtime_claim(nonce=CHALLENGE.nonce, tee_pubkey=encode_wrapping_key(KEY))
        bundle = await node.attest(
            purpose,  # type: ignore[arg-type]
            CHALLENGE.nonce,
            expectation().digest,
            None if purpose == "channel" else claim,
        )
        shown = NodeEvidence("agent", expectation().canonical(), run, bundle)
        return parse_attestation(encode_attestation(shown, nonce=CHALLENGE.nonce, key=KEY))

    return asyncio.run(make())


@cache
def guest_attestation() -> Attestation:
    """The attestation of an honest guest."""
    pod = SimulatedPod(
        platform=make_platform(SEED, NOW, ()),
        init_data=INIT_DATA,
        firmware_log=encode_ccel(()),
        tee_pubkey=encode_wrapping_key(KEY),
    )
    return parse_attestation(pod.exchange(CHALLENGE.nonce)["attestation"])


def evidence_of(attestation: Attestation, nonce: bytes = CHALLENGE.nonce) -> Evidence:
    challenge = KbsChallenge(attestation.nonce, "sha384").encode()
    documents = {"attestation": attestation.raw, "challenge": challenge}
    return FORMAT.read(Capture(documents=documents, format=FORMAT.name, nonce=nonce))


def asked(attestation: Attestation, **changes: Any) -> Asked:
    return replace(
        Asked(attestation, CHALLENGE, "tdx", spent=False, roots=roots(), now=NOW), **changes
    )


def prove_node(attestation: Attestation, **changes: Any) -> NodeProof:
    shown = changes.pop("shown", None) or parse_node_evidence(attestation.node)
    return asked(attestation, **changes).prove_node(shown, own=OWN)


def prove_guest(attestation: Attestation, **changes: Any) -> GuestProof:
    evidence = changes.pop("evidence", None) or evidence_of(attestation)
    own = changes.pop("own", OWN)
    return asked(attestation, **changes).prove_guest(evidence, own=own)


def failed(work: Callable[[], object]) -> dict[str, Reason | None]:
    with pytest.raises(ReleaseRefused) as caught:
        work()
    return {finding.step: finding.reason for finding in caught.value.failures}


def test_an_honest_node_and_an_honest_guest_are_proven() -> None:
    proof = prove_node(node_attestation())
    assert (proof.role, proof.expectation, proof.run) == ("agent", expectation(), RUN)
    assert proof.not_after > NOW
    assert prove_guest(guest_attestation()).not_after > NOW
    assert RUN.hex() not in repr(proof)


def test_the_screen_is_the_cheap_beginning_of_the_same_steps() -> None:
    full, cheap = attested._NODE_STEPS, attested._NODE_SCREEN
    assert full[: len(cheap)] == cheap
    assert attested._GUEST_STEPS[: len(attested._GUEST_SCREEN)] == attested._GUEST_SCREEN
    asked(node_attestation()).screen_node(parse_node_evidence(node_attestation().node))
    asked(guest_attestation()).screen_guest(evidence_of(guest_attestation()))


NODE_FAULTS: dict[str, tuple[Callable[[], NodeProof], str, Reason]] = {
    "another challenge": (
        lambda: prove_node(replace(node_attestation(), nonce=b"z" * 32)),
        "broker/1",
        Reason.NONCE_MISMATCH,
    ),
    "a second time": (
        lambda: prove_node(node_attestation(), spent=True),
        "broker/1",
        Reason.REPLAYED,
    ),
    "a key that is no point": (
        lambda: prove_node(replace(node_attestation(), key=EcPoint("P-256", bytes(64)))),
        "broker/2",
        Reason.BROKER_FORMAT,
    ),
    "no TDX guest": (
        lambda: prove_node(node_attestation(), tee="snp"),
        "broker/3",
        Reason.TEE_TYPE,
    ),
    "additional evidence": (
        lambda: prove_node(replace(node_attestation(), additional="x")),
        "broker/3",
        Reason.BROKER_FORMAT,
    ),
    "init-data": (
        lambda: prove_node(replace(node_attestation(), has_init_data=True)),
        "broker/3",
        Reason.BROKER_FORMAT,
    ),
    "an Expectation that is none": (
        lambda: prove_node(node_attestation(), shown=_shown(expectation=b"{}")),
        "broker/3",
        Reason.EXPECTATION_MISMATCH,
    ),
    "evidence for a channel": (
        lambda: prove_node(node_attestation(purpose="channel")),
        "broker/4",
        Reason.STATEMENT_MISMATCH,
    ),
    "evidence of a claim": (
        lambda: prove_node(node_attestation(purpose="claim")),
        "broker/4",
        Reason.STATEMENT_MISMATCH,
    ),
    "another wrapping key": (
        lambda: prove_node(
            replace(node_attestation(), key=OTHER, tee_pubkey=encode_wrapping_key(OTHER))
        ),
        "broker/4",
        Reason.CLAIM_MISMATCH,
    ),
    "a quote of another statement": (
        lambda: prove_node(node_attestation(), shown=_quote_of_another()),
        "broker/4",
        Reason.REPORT_DATA_MISMATCH,
    ),
    "another Expectation": (
        lambda: prove_node(node_attestation(), shown=_shown(expectation=_renamed().canonical())),
        "broker/5",
        Reason.EXPECTATION_MISMATCH,
    ),
    "roots that the Expectation does not name": (
        lambda: prove_node(node_attestation(), roots=VENDOR_ROOTS),
        "broker/5",
        Reason.ROOT_MISMATCH,
    ),
    "another run": (
        lambda: prove_node(node_attestation(), shown=_shown(run=b"\x08" * 32)),
        "broker/6",
        Reason.EXPECTATION_MISMATCH,
    ),
}


def _renamed() -> Any:
    return replace(expectation(), name="another")


def _shown(**changes: Any) -> NodeEvidence:
    return replace(parse_node_evidence(node_attestation().node), **changes)


def _quote_of_another() -> NodeEvidence:
    other = parse_node_evidence(node_attestation(purpose="channel").node)
    bundle = replace(_shown().evidence, quote=other.evidence.quote)
    return _shown(evidence=bundle)


@pytest.mark.parametrize("name", NODE_FAULTS)
def test_a_node_is_refused_at_the_step_that_says_why(name: str) -> None:
    work, step, reason = NODE_FAULTS[name]
    assert failed(work)[step] is reason


GUEST_FAULTS: dict[str, tuple[Callable[[], GuestProof], str, Reason]] = {
    "another challenge": (
        lambda: prove_guest(replace(guest_attestation(), nonce=b"z" * 32)),
        "broker/1",
        Reason.NONCE_MISMATCH,
    ),
    "evidence for another nonce": (
        lambda: prove_guest(
            guest_attestation(), evidence=evidence_of(guest_attestation(), b"z" * 32)
        ),
        "broker/7",
        Reason.NONCE_MISMATCH,
    ),
    "another wrapping key": (
        lambda: prove_guest(replace(guest_attestation(), key=OTHER)),
        "broker/7",
        Reason.KEY_MISMATCH,
    ),
    "report data of something else": (
        lambda: prove_guest(guest_attestation(), evidence=_bound(expected=bytes(64))),
        "broker/7",
        Reason.REPORT_DATA_MISMATCH,
    ),
    "no processor": (
        lambda: prove_guest(guest_attestation(), evidence=_machine(tdx=None)),
        "broker/7",
        Reason.EVIDENCE_MISSING,
    ),
    "vendors' roots": (
        lambda: prove_guest(guest_attestation(), roots=VENDOR_ROOTS),
        "broker/8",
        Reason.ROOT_MISMATCH,
    ),
}


def _machine(**changes: Any) -> Evidence:
    evidence = evidence_of(guest_attestation())
    return replace(evidence, attesters=(replace(evidence.attesters[0], **changes),))


def _bound(**changes: Any) -> Evidence:
    binding = evidence_of(guest_attestation()).attesters[0].binding
    return _machine(binding=replace(binding, **changes))


@pytest.mark.parametrize("name", GUEST_FAULTS)
def test_a_guest_is_refused_at_the_step_that_says_why(name: str) -> None:
    work, step, reason = GUEST_FAULTS[name]
    assert failed(work)[step] is reason


# Without the step the fault is accepted. What broker/2 and broker/4 and broker/7 refuse is refused
# again further on, at a price; they are there for that price.
CARRIED = {
    "broker/1": ("_NODE_STEPS", "a second time"),
    "broker/6": ("_NODE_STEPS", "another run"),
}


@pytest.mark.parametrize("step", CARRIED)
def test_without_the_step_the_fault_is_accepted(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table, fault = CARRIED[step]
    monkeypatch.setattr(attested, table, without(getattr(attested, table), step))
    work, _, _ = NODE_FAULTS[fault]
    assert work().expectation == expectation()


def test_the_floor_is_what_every_guest_has_to_prove() -> None:
    floor = floor_policy(simulated=False)
    assert floor.claims.require == {"hardware", "debug-off", "freshness", "keys"}
    assert not floor.unsafe_simulated
    open_ways = (floor.tdx.unsafe_debug, floor.snp.unsafe_debug, floor.snp.unsafe_migration)
    assert open_ways == (False, False, False)
    assert set(failed(lambda: prove_guest(guest_attestation(), own=Endorsements()))) == {"broker/8"}


def test_what_vendors_say_is_the_brokers_to_bring() -> None:
    """Under roots that are not simulated, what the evidence brought is not looked at."""
    simulated = roots()
    genuine = replace(
        simulated,
        name="vendor",
        tdx=replace(simulated.tdx, simulated=False),
        nvidia=replace(simulated.nvidia, simulated=False),
    )
    hardware = replace(expectation().hardware, roots="vendor")
    wanted = replace(expectation(), hardware=hardware)

    async def attest() -> NodeEvidence:
        node = await ready_node(run=None)
        payload = run_commitment("confide-expectation", run=RUN, digest=wanted.digest)
        await node.guest.extend(RuntimeEvent("confide-expectation", payload))
        claim = runtime_claim(nonce=CHALLENGE.nonce, tee_pubkey=encode_wrapping_key(KEY))
        bundle = await node.attest("release", CHALLENGE.nonce, wanted.digest, claim)
        return NodeEvidence("agent", wanted.canonical(), RUN, bundle)

    shown = asyncio.run(attest())
    mine = asked(node_attestation(), roots=genuine)
    assert failed(lambda: mine.prove_node(shown, own=Endorsements())).keys() == {"broker/5"}
    assert mine.prove_node(shown, own=OWN).expectation == wanted
    bare = replace(shown, evidence=replace(shown.evidence, collateral=b""))
    assert mine.prove_node(bare, own=OWN).expectation == wanted
