"""A SIMULATED dstack guest: registers, event log and MRCONFIGID that follow from an app-compose.

Form: docs/protocols/eventlog.md §1 and §5 (version 1 digests, as dstack 0.5 writes them) and form 1
of MRCONFIGID. There is no firmware: its events are named SIMULATED, and replaying the log gives
the registers, as it does on hardware.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.simulator.tdx import SimulatedLaunch
from confide.wire.json import jcs
from confide.wire.rtmr_log import RUNTIME_EVENT_TYPE, RuntimeEvent, extend_register

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

__all__ = ["SimulatedGuestLaunch", "launch_guest"]

# From: TCG PC Client Platform Firmware Profile §10.4.1: separator, configuration, application, IPL.
_FIRMWARE_EVENTS: Final = (
    (0, 0x8000000B, "SIMULATED TD HOB"),
    (0, 0x80000001, "SIMULATED SecureBoot"),
    (0, 0x0A, "SIMULATED ACPI tables"),
    (0, 0x04, "SIMULATED separator"),
    (1, 0x80000003, "SIMULATED kernel"),
    (1, 0x04, "SIMULATED separator"),
    (2, 0x0D, "SIMULATED command line"),
    (2, 0x0D, "SIMULATED initial file system"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedGuestLaunch:
    """What one guest launched with: registers, the log that replays to them, the description."""

    launch: SimulatedLaunch
    log: list[JsonValue]
    vm_config: dict[str, JsonValue]
    app_id: bytes
    instance_id: bytes


def launch_guest(compose: bytes, *, label: str, kms: bool = True) -> SimulatedGuestLaunch:
    """Return the launch of the guest called `label` from the exact bytes of its app-compose."""
    compose_hash = hashlib.sha256(compose).digest()
    app_id = hashlib.sha256(b"SIMULATED app").digest()[:20]
    instance_id = hashlib.sha256(b"SIMULATED instance " + label.encode() + app_id).digest()[:20]
    os_image = hashlib.sha256(b"SIMULATED dstack image").digest()
    provider = {"id": b"SIMULATED provider".hex(), "name": "kms" if kms else "local-sgx"}
    events = [
        RuntimeEvent("system-preparing", b""),
        RuntimeEvent("app-id", app_id),
        RuntimeEvent("compose-hash", compose_hash),
        RuntimeEvent("instance-id", instance_id),
        RuntimeEvent("boot-mr-done", b""),
        RuntimeEvent("mr-kms", hashlib.sha256(b"SIMULATED KMS").digest()),
        RuntimeEvent("os-image-hash", os_image),
        RuntimeEvent("key-provider", jcs(provider)),
        RuntimeEvent("storage-fs", b"zfs"),
        RuntimeEvent("system-ready", b""),
    ]
    registers = [bytes(48)] * 4
    log: list[JsonValue] = []
    for register, kind, text in _FIRMWARE_EVENTS:
        digest = hashlib.sha384(text.encode()).digest()
        registers[register] = extend_register(registers[register], digest)
        log.append(_entry(register, kind, digest, "", text.encode()))
    for event in events:
        registers[3] = extend_register(registers[3], event.digest(1))
        log.append(_entry(3, RUNTIME_EVENT_TYPE, event.digest(1), event.name, event.payload))
    launch = SimulatedLaunch(
        mr_td=hashlib.sha384(b"SIMULATED dstack firmware").digest(),
        rtmr=(registers[0], registers[1], registers[2], registers[3]),
        # From: dstack.md §8: form 1.
        mr_config_id=b"\x01" + compose_hash + bytes(15),
    )
    vm_config: dict[str, JsonValue] = {
        "cpu_count": 16,
        "memory_size": 1 << 37,
        "num_gpus": 8,
        "num_nvswitches": 4,
        "os_image_hash": os_image.hex(),
        "spec_version": 1,
    }
    return SimulatedGuestLaunch(
        launch=launch, log=log, vm_config=vm_config, app_id=app_id, instance_id=instance_id
    )


def _entry(register: int, kind: int, digest: bytes, name: str, payload: bytes) -> JsonValue:
    return {
        "imr": register,
        "event_type": kind,
        "digest": digest.hex(),
        "event": name,
        "event_payload": payload.hex(),
    }
