"""What the appraisal of one of our nodes established, claim by claim, and what it did not. Pure.

Clause: docs/protocols/binding.md §3. Steps decide; these are their results in words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.appraisal.steps import established
from confide.rats import Claim, Status
from confide.wire.faces import LACKS

if TYPE_CHECKING:
    from confide.appraisal.eventlog import NodeEvents
    from confide.appraisal.nvidia import GpuSetResult
    from confide.appraisal.tdx_types import TdxClaims
    from confide.wire.keyset import Keyset

__all__ = ["node_claims"]

_DOC = "docs/protocols/binding.md#3"


def node_claims(
    keyset: Keyset,
    tdx: TdxClaims,
    events: NodeEvents,
    gpus: GpuSetResult | None,
    *,
    allow_listed: bool,
    simulated: bool,
) -> tuple[Claim, ...]:
    """
    Return the claims of a node whose steps 1 to 11 passed.

    `allow_listed` says that the platform was looked up in a list. Checks nothing by itself.
    """
    prefix = "SIMULATED " if simulated else ""
    intel, nvidia, node = f"{prefix}Intel", f"{prefix}NVIDIA", f"{prefix}measured node software"

    def claim(name: str, step: int, source: str, value: str, *, proven: bool = True) -> Claim:
        status = Status.PASS if proven else Status.NOT_PROVEN
        return Claim(name, status, source, f"node/{step}", _DOC, value)

    launch = f"MRTD {tdx.mr_td.hex()[:16]}…, RTMR0 to RTMR2, MRCONFIGID"
    if events.dstack is not None:
        launch += f", dstack compose {events.dstack.compose_hash.hex()}"
    found = [
        claim("hardware", 5, intel, f"TDX, TCB {tdx.tcb_status}, FMSPC {tdx.fmspc.hex()}"),
        claim("platform", 5, intel, f"PPID {tdx.ppid.hex()}", proven=allow_listed),
        claim("launch", 5, intel, launch),
        claim("event-log", 6, intel, "firmware and runtime logs replay to the registers"),
        claim("node-software", 7, node, events.node.software.hex()),
        claim("keys", 4, intel, f"keyset {keyset.digest.hex()}"),
    ]
    if events.node.role == "model":
        model, devices = established(events.model), established(gpus)
        weights = model.weights.hex() if model.weights is not None else "not measured"
        if model.weights is not None and not model.loaded:
            weights += ", measured beside an engine that the node did not start"
        found += [
            claim("model-weights", 8, node, weights, proven=model.loaded),
            claim("gpu", 10, nvidia, f"{len(devices.devices)} {devices.chip}, {devices.mode} mode"),
            claim("gpu-colocation", 10, "nobody", "no TDISP: could be relayed", proven=False),
            *(claim(f"face-{face}", 7, node, LACKS[face], proven=False) for face in events.faces),
        ]
    found.append(
        claim("physical-attack", 5, "nobody", "an extracted key signs anything", proven=False)
    )
    return tuple(found)
