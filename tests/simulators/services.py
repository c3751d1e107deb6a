"""Builder of simulated services for tests: the documents, endorsements and roots of one day."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from confide.appraisal.nvidia_policy import GpuMode
from confide.appraisal.policy_file import parse_policy
from confide.appraisal.service_profiles import AUDIT
from confide.simulator.near import SimulatedNear, encode_report
from confide.wire.endorsements import Endorsements
from confide.wire.service import Capture
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from confide.appraisal.service_policy import Policy
    from confide.trust.roots import Roots

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
NONCE = bytes(range(32))
# Looking at a simulated service.
LOOK: Policy = replace(AUDIT, unsafe_simulated=True)


@dataclass(frozen=True, slots=True)
class NearCase:
    """One capture of a simulated gateway with a model machine, and what a relying party has."""

    near: SimulatedNear
    capture: Capture
    endorsements: Endorsements
    roots: Roots


def near_case(*, gpus: int = 1) -> NearCase:
    """Return a capture over a TLS connection that ended in the gateway."""
    mode = GpuMode.SPT if gpus == 1 else GpuMode.PPCIE
    near = SimulatedNear(b"service tests", NOW, nodes=1, gpus=gpus, mode=mode)
    devices = near.nodes[0].gpus
    assert devices is not None
    capture = Capture(
        documents={"report": encode_report(near.gateway_report(NONCE))},
        format="near",
        nonce=NONCE,
        tls_spki_sha256=near.gateway.spki_sha256,
        at=NOW,
        url="https://simulated.example/v1/attestation/report",
    )
    endorsements = Endorsements(tdx=(near.platform.collateral(),), nvidia=devices.endorsements(NOW))
    return NearCase(near, capture, endorsements, near.roots())


def registers_of(case: NearCase) -> dict[str, list[str]]:
    """Return the registers of both machines, as a policy lists them."""
    bodies = [
        parse_quote(case.near.platform.quote(node.guest.launch, report_data=bytes(64))).body
        for node in (case.near.gateway, *case.near.nodes)
    ]
    found = {"mrtd": sorted({body.mr_td.hex() for body in bodies})}
    for index in range(3):
        found[f"rtmr{index}"] = sorted({body.rtmr[index].hex() for body in bodies})
    return found


def documents_of(case: NearCase) -> list[str]:
    """Return the SHA-256 of both launch documents."""
    nodes = (case.near.gateway, *case.near.nodes)
    return sorted({hashlib.sha256(node.compose).hexdigest() for node in nodes})


def policy_text(case: NearCase, *, require: tuple[str, ...]) -> str:
    """Return a policy that names what the simulated service runs."""
    lists = "\n".join(f"{name} = {values}" for name, values in registers_of(case).items())
    return f"""
type = "confide/policy/v1"
name = "the simulated service"
profile = "strict"
unsafe_simulated = true
[claims]
require = {list(require)}
[tdx]
{lists}
[workload]
documents = {documents_of(case)}
""".replace("'", '"')


def near_policy(case: NearCase, *, without: tuple[str, ...] = ()) -> Policy:
    """Return the policy that requires everything this service can prove, less `without`."""
    provable = (
        "hardware",
        "tcb",
        "debug-off",
        "freshness",
        "keys",
        "tls",
        "launch",
        "event-log",
        "workload",
        "workload-expected",
        "images-pinned",
        "gpu",
        "gpu-firmware",
        "gpu-freshness",
        "gpu-topology",
    )
    return parse_policy(
        policy_text(case, require=tuple(name for name in provable if name not in without))
    )
