"""The simulated services give equal bytes for equal arguments, and say what they are."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from confide.adapters.sigstore_bundles import SigstoreVerifier
from confide.appraisal.nras import ReportedDevice
from confide.simulator.nras import EXPECTED, NrasFault, SimulatedNras
from confide.simulator.sigstore import SimulatedSigstore

if TYPE_CHECKING:
    from confide.ports import ProvenanceVerifier

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
GPU = ReportedDevice("gpu", "1", "570.124.06", "96.00.9F.00.01")


def test_tokens_and_keys_derive_from_seed_and_time() -> None:
    one, same, other = (SimulatedNras(seed, NOW) for seed in (b"a", b"a", b"b"))
    assert one.token((GPU,), bytes(32)) == same.token((GPU,), bytes(32))
    assert one.jwks() == same.jwks() != other.jwks()
    assert one.token((GPU,), bytes(32)) != one.token((GPU,), b"\1" * 32)


def test_every_key_says_that_it_is_simulated() -> None:
    keys = json.loads(SimulatedNras(b"a", NOW).jwks())["keys"]
    assert len(keys) == 3
    assert all("simulated" in key["kid"] and len(key["x5c"]) == 2 for key in keys)


def test_every_fault_has_a_reason() -> None:
    assert set(EXPECTED) == set(NrasFault)


def test_bundles_derive_from_seed_and_time() -> None:
    one, same = SimulatedSigstore(b"a", NOW), SimulatedSigstore(b"a", NOW)
    assert one.sign_artifact(b"x") == same.sign_artifact(b"x") != one.sign_artifact(b"y")
    verifier: ProvenanceVerifier = SigstoreVerifier(one.trusted_root())
    assert verifier is not None
