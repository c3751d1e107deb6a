"""SIMULATED documents for the readers of Tinfoil, Trustee, bare evidence and our own nodes."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from confide.errors import Reason
from confide.simulator.nvidia import SimulatedGpuSet
from confide.simulator.nvidia_gpu import SimulatedGpu
from confide.simulator.nvidia_switch import SimulatedSwitch
from confide.simulator.tdx import SimulatedLaunch, SimulatedTdxPlatform
from confide.simulator.tinfoil import SimulatedEnclave
from confide.simulator.trustee import SimulatedPod
from confide.wire.json import jcs, parse_json
from confide.wire.service import Capture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.wire.evidence import GpuEvidence
    from confide.wire.service import Evidence, Remark

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
SEED = b"readers of foreign formats"
NONCE = bytes(range(32))
TLS = b"t" * 32
HPKE = b"h" * 32
RELEASE = b"r" * 32
INIT_DATA = (
    b"version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\"aa.toml\" = '''\nx = 1\n'''\n"
)
LAUNCH = SimulatedLaunch(bytes(48), (bytes(48), bytes(48), bytes(48), bytes(48)))


@cache
def platform() -> SimulatedTdxPlatform:
    return SimulatedTdxPlatform(SEED, NOW)


def quote(report_data: bytes = bytes(64), launch: SimulatedLaunch = LAUNCH) -> bytes:
    return platform().quote(launch, report_data=report_data)


@cache
def gpus(nonce: bytes = NONCE) -> tuple[GpuEvidence, ...]:
    cards = (SimulatedGpu(), SimulatedGpu(label="1"))
    return SimulatedGpuSet(SEED, cards, now=NOW, switches=(SimulatedSwitch(),)).collect(nonce)


def cards(nonce: bytes) -> tuple[GpuEvidence, ...]:
    return tuple(device for device in gpus(nonce) if device.kind == "gpu")


@cache
def enclave() -> SimulatedEnclave:
    return SimulatedEnclave(platform=platform(), tls=TLS, hpke=HPKE, release=RELEASE)


@cache
def pod(*, devices: bool = True) -> SimulatedPod:
    return SimulatedPod(
        platform=platform(),
        init_data=INIT_DATA,
        firmware_log=b"log",
        gpus=cards if devices else None,
    )


def unsigned_report(report_data: bytes = bytes(64), host_data: bytes = bytes(32)) -> bytes:
    """1,184 bytes in the shape of an SNP report of version 2, every octet telling; unsigned."""
    raw = bytearray((7 * at + 3) % 251 for at in range(1184))
    raw[0:4] = (2).to_bytes(4, "little")
    raw[52:56] = (1).to_bytes(4, "little")
    # Version 2 has nothing here, and numbers of eight bytes have to survive JSON.
    for start, end in ((14, 16), (70, 72), (76, 80), (392, 416), (504, 672), (816, 1184)):
        raw[start:end] = bytes(end - start)
    for at in (58, 386, 482, 498):
        raw[at : at + 4] = bytes(4)
    raw[491] = raw[495] = 0
    raw[80:144], raw[192:224] = report_data, host_data
    return bytes(raw)


def capture(documents: Mapping[str, bytes] | bytes, **changed: Any) -> Capture:
    if isinstance(documents, bytes):
        documents = {"document": documents}
    return Capture(documents=documents, **changed)


def edited(raw: bytes, edit: Any) -> bytes:
    """`raw` as JSON after `edit` changed it in place (or returned another)."""
    value: Any = parse_json(raw, what="case", reason=Reason.SERVICE_FORMAT)
    changed = edit(value)
    return jcs(changed if changed is not None else value)


def failed(evidence: Evidence) -> set[str]:
    """The claims that the reader of `evidence` found contradicted."""
    return {remark.claim for remark in remarks(evidence) if remark.failed}


def remarks(evidence: Evidence) -> tuple[Remark, ...]:
    return evidence.attesters[0].remarks
