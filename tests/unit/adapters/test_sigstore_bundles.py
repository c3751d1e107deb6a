"""Bundles of a simulated Sigstore, verified offline by the real library."""

from __future__ import annotations

import hashlib
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from confide.adapters.sigstore_bundles import SigstoreVerifier, embedded_root, verify_artifact
from confide.appraisal.provenance import SigstoreIdentity, SigstoreProof
from confide.errors import ConfigurationError, EvidenceRejected, Reason
from confide.simulator.sigstore import (
    SIMULATED_IDENTITY,
    SIMULATED_ISSUER,
    SigstoreFault,
    SimulatedSigstore,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
ARTIFACT = b"image manifest"
SHA256 = hashlib.sha256(ARTIFACT).digest()
SIGNER = SigstoreIdentity(issuer=SIMULATED_ISSUER, identity=SIMULATED_IDENTITY)
HONEST = SimulatedSigstore(b"test", NOW)
ATTESTED_ONLY = {
    SigstoreFault.OTHER_SUBJECT,
    SigstoreFault.OTHER_PAYLOAD_TYPE,
    SigstoreFault.OTHER_STATEMENT_TYPE,
    SigstoreFault.TWO_SIGNATURES,
    SigstoreFault.NO_SUBJECT,
}


def signed(fault: SigstoreFault | None = None) -> bytes:
    return SimulatedSigstore(b"test", NOW, fault).sign_artifact(ARTIFACT)


def attested(fault: SigstoreFault | None = None) -> bytes:
    return SimulatedSigstore(b"test", NOW, fault).attest(
        SHA256, predicate_type="https://slsa.dev/provenance/v1", predicate={"a": 1}
    )


def verify(bundle: bytes, **changed: Any) -> SigstoreProof:
    inputs: dict[str, Any] = {
        "sha256": SHA256,
        "policy": (SIGNER,),
        "trusted_root": HONEST.trusted_root(),
        **changed,
    }
    return verify_artifact(bundle, **inputs)


def refused(bundle: bytes, **changed: Any) -> str:
    with pytest.raises(EvidenceRejected) as refusal:
        verify(bundle, **changed)
    assert refusal.value.reason is Reason.PROVENANCE_INVALID
    return refusal.value.failures[0].step


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a network nor a cache of the user is touched."""
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was used"))


def test_a_message_signature_is_verified() -> None:
    proof = verify(signed())
    assert (proof.sha256, proof.issuer, proof.identity) == (
        SHA256,
        SIMULATED_ISSUER,
        SIMULATED_IDENTITY,
    )
    assert (proof.predicate_type, proof.payload, proof.log_index) == ("", b"", 1)
    assert proof.integrated_time == NOW + timedelta(seconds=60)
    assert proof.root_sha256 == hashlib.sha256(HONEST.trusted_root()).hexdigest()
    assert not proof.public_good


def test_a_statement_is_verified_and_handed_on_unread() -> None:
    proof = verify(attested())
    assert proof.predicate_type == "https://slsa.dev/provenance/v1"
    assert json.loads(proof.payload)["predicate"] == {"a": 1}


@pytest.mark.parametrize("make", [signed, attested])
@pytest.mark.parametrize("fault", SigstoreFault, ids=str)
def test_every_fault_is_refused(fault: SigstoreFault, make: Callable[..., bytes]) -> None:
    if make is signed and fault in ATTESTED_ONLY:
        verify(make(fault))
    else:
        refused(make(fault))


@pytest.mark.parametrize("make", [signed, attested])
def test_a_bundle_is_about_one_artifact(make: Callable[..., bytes]) -> None:
    step = "provenance/2" if make is signed else "provenance/4"
    assert refused(make(), sha256=bytes(32)) == step


def test_the_public_root_does_not_accept_a_simulated_bundle() -> None:
    assert refused(signed(), trusted_root=None) == "provenance/2"
    other = SimulatedSigstore(b"other", NOW).trusted_root()
    assert refused(signed(), trusted_root=other) == "provenance/2"


def test_the_signer_is_one_that_the_caller_named() -> None:
    workflow = SigstoreIdentity(
        issuer=SIMULATED_ISSUER,
        repository="https://github.com/simulated/app",
        workflow=".github/workflows/build.yml",
        ref_prefix="refs/tags/",
    )
    verify(signed(), policy=(workflow,))
    stranger = SigstoreIdentity(issuer=SIMULATED_ISSUER, identity="someone@example.com")
    verify(signed(), policy=(stranger, SIGNER))
    assert refused(signed(), policy=(stranger,)) == "provenance/3"
    heads = SigstoreIdentity(
        issuer=SIMULATED_ISSUER,
        repository="https://github.com/simulated/app",
        workflow=".github/workflows/build.yml",
        ref_prefix="refs/heads/",
    )
    assert refused(signed(), policy=(heads,)) == "provenance/3"
    elsewhere = SigstoreIdentity(issuer="https://example.com", identity=SIMULATED_IDENTITY)
    assert refused(signed(), policy=(elsewhere,)) == "provenance/3"


@pytest.mark.parametrize("make", [signed, attested])
def test_any_member_changed_or_missing_is_refused_or_not_looked_at(
    make: Callable[..., bytes],
) -> None:
    """Each member in turn is removed and replaced: never another exception than ours."""
    verifier = SigstoreVerifier(HONEST.trusted_root())
    accepted = set()
    for path in _paths(json.loads(make())):
        for value in (None, 0, -1, 10**15, "", "AA==", "A", [], {}, "\x00", True, _REMOVED):
            document = json.loads(make())
            _put(document, path, value)
            try:
                verifier.verify(json.dumps(document).encode(), sha256=SHA256, policy=(SIGNER,))
            except EvidenceRejected:
                continue
            accepted.add(path[-1])
    # What nobody signs, or what may be absent: the entry then has no promise, the message no hint.
    assert accepted <= {"messageDigest", "algorithm", "keyId", "logId", "timestampVerificationData"}


_REMOVED = object()


def _paths(value: Any, *above: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = [above] if above else []
    pairs: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, dict) else []
    for name, item in list(enumerate(value)) if isinstance(value, list) else pairs:
        found += _paths(item, *above, name)
    return found


def _put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for name in path[:-1]:
        document = document[name]
    if value is _REMOVED:
        del document[path[-1]]
    else:
        document[path[-1]] = value


@pytest.mark.parametrize(
    "bundle", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 99, b'{"a":1,"a":2}', b" " * (5 << 20)]
)
def test_what_is_no_bundle_is_refused(bundle: bytes) -> None:
    assert refused(bundle) in {"provenance/1", "provenance/2"}


def test_the_caller_names_a_digest_a_signer_and_a_root() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        verify(signed(), sha256=b"x")
    with pytest.raises(ValueError, match="signer"):
        verify(signed(), policy=())
    for root in (b"", b"{}", b"[]", b'{"mediaType":"x"}'):
        with pytest.raises(ConfigurationError):
            verify(signed(), trusted_root=root)


def test_the_embedded_root_is_sigstores() -> None:
    root = json.loads(embedded_root())
    assert root["certificateAuthorities"][0]["uri"] == "https://fulcio.sigstore.dev"
    SigstoreVerifier(None)


def test_without_sigstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    root = HONEST.trusted_root()
    monkeypatch.setitem(sys.modules, "sigstore.errors", None)
    with pytest.raises(ConfigurationError, match=r"confide\[services\]"):
        verify(signed(), trusted_root=root)
