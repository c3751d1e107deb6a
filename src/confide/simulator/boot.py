"""The measured boot of a simulated TD: registers computed from what really starts.

There is no firmware and no kernel to measure here, so MRTD and RTMR0 stand for a named SIMULATED
firmware; RTMR1 is the kernel release that is running, RTMR2 a command line that carries the digest
of the node package, the way dstack binds its root file system. MRCONFIGID binds the launch
document (role and software) in dstack's form 1. A relying party that knows the same inputs
computes the same registers: that is how its reference values are made.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from confide.wire.ccel import CcelEvent, encode_ccel
from confide.wire.json import jcs
from confide.wire.rtmr_log import extend_register

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BootMeasurements", "launch_document", "measure_boot"]

# From: TCG PC Client Platform Firmware Profile §10.4.1.
_EV_SEPARATOR = 4
_EV_PLATFORM_CONFIG_FLAGS = 0x0A
_EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
_EV_IPL = 0x0D
_FIRMWARE = b"SIMULATED TDVF: no firmware is measured here"


@dataclass(frozen=True, slots=True)
class BootMeasurements:
    """Registers (48 bytes each) and the firmware log (CCEL bytes) of one simulated launch."""

    mrtd: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    mrconfigid: bytes
    firmware_log: bytes


def _sha384(raw: bytes) -> bytes:
    return hashlib.sha384(raw).digest()


def _event(register: int, kind: int, data: bytes) -> CcelEvent:
    return CcelEvent(register, kind, _sha384(data), data)


def _register(events: Sequence[CcelEvent], ccel_index: int) -> bytes:
    register = bytes(48)
    for event in events:
        if event.register == ccel_index:
            register = extend_register(register, event.digest)
    return register


def launch_document(*, role: Literal["agent", "model"], software: bytes) -> bytes:
    """Return the bytes that MRCONFIGID is made from: which role, which node package."""
    return jcs({"role": role, "software": software.hex()})


def measure_boot(
    *, role: Literal["agent", "model"], software: bytes, kernel: str
) -> BootMeasurements:
    """
    Return the measurements of launching `role` with the node package `software` (SHA-256).

    `kernel` is the release string of the running kernel.
    """
    # From: tdx.md §C step 6: the command line is measured as UTF-16LE with a terminating NUL.
    cmdline = f"SIMULATED root=confide confide.node_sha256={software.hex()} confide.role={role}"
    events = (
        _event(1, _EV_PLATFORM_CONFIG_FLAGS, b"SIMULATED TD HOB"),
        _event(1, _EV_SEPARATOR, bytes(4)),
        _event(2, _EV_EFI_BOOT_SERVICES_APPLICATION, b"SIMULATED kernel " + kernel.encode()),
        _event(2, _EV_SEPARATOR, bytes(4)),
        _event(3, _EV_IPL, cmdline.encode("utf-16-le") + bytes(2)),
    )
    launch = hashlib.sha256(launch_document(role=role, software=software)).digest()
    return BootMeasurements(
        mrtd=_sha384(_FIRMWARE),
        rtmr0=_register(events, 1),
        rtmr1=_register(events, 2),
        rtmr2=_register(events, 3),
        # From: docs/protocols/eventlog.md, dstack form 1: 01 ‖ 32-byte digest ‖ 15 zero bytes.
        mrconfigid=b"\x01" + launch + bytes(15),
        firmware_log=encode_ccel(events),
    )
