"""What attacks on services need: honest cases, and the result whether accepted or refused."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import reader_cases as cases
from services import LATER, NearCase, near_case

import confide
from confide.errors import Rejected
from confide.simulator.nvidia import SimulatedGpuSet, simulated_nvidia_roots
from confide.simulator.nvidia_gpu import SimulatedGpu
from confide.trust.roots import make_simulated_roots
from confide.wire.json import b64encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.appraisal.service_policy import Policy
    from confide.rats import AttestationResult, Status
    from confide.trust.roots import Roots
    from confide.wire.evidence import GpuEvidence

CASE = cache(near_case)
OTHER_NONCE = b"\x5a" * 32


def outcome(call: Callable[[], AttestationResult]) -> AttestationResult:
    """The result, whether it was accepted or refused."""
    try:
        return call()
    except Rejected as error:
        if error.result is None:
            raise
        return error.result


def refused(call: Callable[[], object]) -> Rejected:
    with pytest.raises(Rejected) as caught:
        call()
    assert caught.value.result is not None
    return caught.value


def status(result: AttestationResult | None, name: str) -> Status:
    assert result is not None
    return result.claim(name).status


def judge(case: NearCase, policy: Policy, **changes: Any) -> AttestationResult:
    capture = changes.pop("capture", case.capture)
    endorsements = changes.pop("endorsements", case.endorsements)
    return confide.verify(
        capture, endorsements, policy, **{"now": LATER, "roots": case.roots, **changes}
    )


def accepted(case: NearCase, policy: Policy) -> bool:
    try:
        judge(case, policy)
    except Rejected:
        return False
    return True


@cache
def gpu_set() -> SimulatedGpuSet:
    return SimulatedGpuSet(cases.SEED, (SimulatedGpu(),), now=cases.NOW)


@cache
def roots() -> Roots:
    return make_simulated_roots(cases.platform().anchor(), simulated_nvidia_roots(cases.SEED))


def dstack_documents(nonce: bytes, devices: tuple[GpuEvidence, ...]) -> dict[str, bytes]:
    """An answer of the guest over `nonce`, beside evidence of devices asked for apart."""
    entries = [
        {"arch": "HOPPER", "evidence": b64encode(d.report), "certificate": b64encode(d.chain_pem)}
        for d in devices
    ]
    bundle = {
        "vendor": "nvidia",
        "format": "nvidia-nvattest-collect-evidence-json-v1",
        "evidence": json.dumps({"evidences": entries}),
    }
    answer = {
        "quote": cases.quote(nonce + bytes(32)).hex(),
        "event_log": "[]",
        "report_data": nonce.hex(),
    }
    return {"quote": json.dumps(answer).encode(), "gpu": json.dumps({"bundles": [bundle]}).encode()}
