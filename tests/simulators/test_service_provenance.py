"""Who built it: Sigstore bundles for images, and statements of a publisher about registers."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import pytest
from services import LATER, LOOK, NOW, NearCase, near_case, near_policy

import confide
from confide.appraisal.workload import read_workload
from confide.client.provenance import verify_bundles
from confide.errors import EvidenceRejected, PolicyRejected, Reason
from confide.formats.verify import read_evidence
from confide.rats import Status
from confide.simulator.sigstore import (
    SIMULATED_IDENTITY,
    SIMULATED_ISSUER,
    SigstoreFault,
    SimulatedSigstore,
)
from confide.wire.endorsements import SigstoreBundle
from confide.wire.service import LaunchDocument, ReferenceRegisters

if TYPE_CHECKING:
    from confide.appraisal.provenance import Proofs
    from confide.appraisal.service_policy import Policy
    from confide.rats import AttestationResult
    from confide.wire.service import Evidence

SEED = b"service provenance"
LISTED = frozenset({f"{SIMULATED_ISSUER} {SIMULATED_IDENTITY}"})
CASE = cache(near_case)
SIGSTORE = cache(lambda: SimulatedSigstore(SEED, NOW))


def evidence() -> Evidence:
    return read_evidence(CASE().capture)[0]


def images(case: NearCase) -> set[bytes]:
    found: set[bytes] = set()
    for node in (case.near.gateway, *case.near.nodes):
        workload = read_workload(LaunchDocument(kind="dstack-compose", raw=node.compose))
        found |= {image.digest for image in workload.images if image.digest is not None}
    return found


def listing(policy: Policy, *require: str) -> Policy:
    return replace(
        policy,
        provenance=replace(policy.provenance, identities=LISTED),
        claims=replace(policy.claims, require=policy.claims.require | set(require)),
    )


def judged(
    evidence: Evidence, policy: Policy, bundles: tuple[SigstoreBundle, ...]
) -> AttestationResult:
    endorsements = replace(CASE().endorsements, sigstore=bundles)
    proofs = verify_bundles(evidence, endorsements, policy, trusted_root=SIGSTORE().trusted_root())
    return confide.verify(
        evidence, endorsements, policy, now=LATER, roots=CASE().roots, provenance=proofs
    )


def bundle(digest: bytes, fault: SigstoreFault | None = None) -> SigstoreBundle:
    raw = SimulatedSigstore(SEED, NOW, fault).attest(
        digest, predicate_type="https://slsa.dev/provenance/v1", predicate={}
    )
    return SigstoreBundle(sha256=digest, bundle=raw)


# --- images -------------------------------------------------------------------------------------


def test_images_that_a_listed_builder_signed_are_proven() -> None:
    policy = listing(near_policy(CASE()), "image-provenance")
    result = judged(evidence(), policy, tuple(bundle(digest) for digest in images(CASE())))
    assert result.claim("image-provenance").status is Status.PASS
    assert result.claim("image-provenance").source == "SIMULATED Sigstore"


def test_an_image_without_a_bundle_leaves_the_claim_open() -> None:
    policy = listing(near_policy(CASE()), "image-provenance")
    with pytest.raises(PolicyRejected) as caught:
        judged(evidence(), policy, (bundle(b"\x01" * 32),))
    assert caught.value.result is not None
    assert caught.value.result.claim("image-provenance").status is Status.NOT_PROVEN


@pytest.mark.parametrize(
    "fault",
    [SigstoreFault.OTHER_IDENTITY, SigstoreFault.FORGED_SIGNATURE, SigstoreFault.NO_SUBJECT],
)
def test_a_bundle_that_does_not_verify_contradicts(fault: SigstoreFault) -> None:
    policy = listing(near_policy(CASE()))
    with pytest.raises(EvidenceRejected) as caught:
        judged(evidence(), policy, tuple(bundle(digest, fault) for digest in images(CASE())))
    assert caught.value.reason is Reason.PROVENANCE_INVALID


def test_without_a_list_of_builders_no_bundle_is_looked_at() -> None:
    policy = near_policy(CASE())
    proofs: Proofs = verify_bundles(
        evidence(),
        replace(CASE().endorsements, sigstore=(SigstoreBundle(sha256=bytes(32), bundle=b"junk"),)),
        policy,
    )
    assert not proofs.proven
    assert not proofs.refused


# --- registers ----------------------------------------------------------------------------------


def with_references(registers: dict[str, bytes], raw: bytes) -> Evidence:
    """The evidence, each machine with a statement about its registers."""
    payload = json.loads(raw)["dsseEnvelope"]["payload"]
    stated = ReferenceRegisters(
        registers=registers, statement=base64.b64decode(payload), bundle=raw
    )
    found = evidence()
    return replace(
        found,
        attesters=tuple(replace(item, references=stated) for item in found.attesters),
    )


def without_lists(policy: Policy) -> Policy:
    """`policy` without the registers that the statement names."""
    return replace(
        policy,
        tdx=replace(policy.tdx, rtmr1=frozenset[str](), rtmr2=frozenset[str]()),
    )


def registers_of_gateway() -> dict[str, bytes]:
    launch = CASE().near.gateway.guest.launch
    return {"rtmr1": launch.rtmr[1], "rtmr2": launch.rtmr[2]}


def test_registers_that_a_listed_publisher_signed_need_no_list() -> None:
    policy = listing(without_lists(near_policy(CASE())))
    raw = bundle(b"\x07" * 32).bundle
    signed = with_references(registers_of_gateway(), raw)
    result = judged(signed, policy, ())
    assert result.claim("launch").status is Status.PASS
    assert "rtmr1, rtmr2" in result.claim("launch").value
    with pytest.raises(PolicyRejected):
        judged(evidence(), policy, ())


def test_a_statement_of_somebody_else_counts_for_nothing() -> None:
    policy = listing(without_lists(near_policy(CASE())))
    raw = bundle(b"\x07" * 32, SigstoreFault.OTHER_IDENTITY).bundle
    with pytest.raises(PolicyRejected) as caught:
        judged(with_references(registers_of_gateway(), raw), policy, ())
    assert caught.value.result is not None
    assert caught.value.result.claim("launch").status is Status.FAIL


def test_registers_that_differ_from_the_signed_ones_contradict_even_a_list() -> None:
    policy = listing(near_policy(CASE()))
    raw = bundle(b"\x07" * 32).bundle
    wrong = registers_of_gateway() | {"rtmr2": bytes(48)}
    with pytest.raises(PolicyRejected) as caught:
        judged(with_references(wrong, raw), policy, ())
    assert caught.value.reason is Reason.MEASUREMENT_MISMATCH


def test_a_statement_does_not_count_under_an_open_list_of_builders() -> None:
    raw = bundle(b"\x07" * 32).bundle
    result = judged(with_references({"rtmr1": bytes(48)}, raw), LOOK, ())
    assert result.claim("launch").status is Status.NOT_PROVEN
