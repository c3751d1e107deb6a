"""One TD as its kernel shows it: registers, configfs-tsm, sysfs, ACPI tables; no kernel needed.

The semantics are those of drivers/virt/coco/tsm.c and tdx-guest.c as docs/protocols/hardware.md §2
to §4 tell them. Nothing here ran on TDX hardware.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nodes import KERNEL, NOW, SEED, SOFTWARE

from confide.simulator.boot import measure_boot
from confide.simulator.machine import make_platform
from confide.simulator.tdx import SimulatedLaunch
from confide.wire.rtmr_log import extend_register

if TYPE_CHECKING:
    from collections.abc import Callable

REPORTS = "/sys/kernel/config/tsm/report"
MEASUREMENTS = "/sys/devices/virtual/misc/tdx_guest/measurements"
TABLE = "/sys/firmware/acpi/tables/CCEL"
LOG = "/sys/firmware/acpi/tables/data/CCEL"
ZERO = bytes(48)
_MAX_INBLOB = 64
_FILL = bytes([0xFF]) * 1024


def ccel_table(*, cc_type: int = 2) -> bytes:
    """The ACPI table: header, kind of machine, length and address of the log, checksum."""
    head = struct.pack("<4sIBB6s8sI4sI", b"CCEL", 56, 1, 0, b"TEST  ", b"STAND-IN", 1, b"TEST", 1)
    raw = head + struct.pack("<BBHQQ", cc_type, 0, 0, 0x40000, 0x7F000000)
    return raw[:9] + bytes([-sum(raw) % 256]) + raw[10:]


class Td:
    """The part that no software can change: what was launched, and RTMR3, which only grows."""

    def __init__(self) -> None:
        self.boot = measure_boot(role="agent", software=SOFTWARE, kernel=KERNEL)
        self.rtmr3 = ZERO
        self.platform = make_platform(SEED, NOW, ())

    def extend(self, digest: bytes) -> None:
        self.rtmr3 = extend_register(self.rtmr3, digest)

    def registers(self) -> tuple[bytes, bytes, bytes, bytes]:
        return self.boot.rtmr0, self.boot.rtmr1, self.boot.rtmr2, self.rtmr3

    def quote(self, report_data: bytes) -> bytes:
        launch = SimulatedLaunch(
            mr_td=self.boot.mrtd, rtmr=self.registers(), mr_config_id=self.boot.mrconfigid
        )
        return self.platform.quote(launch, report_data=report_data)


def fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@dataclass
class _Report:
    generation: int = 0
    inblob: bytes | None = None


@dataclass
class KernelTree:
    """
    `AttributeFiles` over a `Td`. The faults are what a kernel, a host or a neighbour can do.

    `refusals` are taken by reads of `outblob`, one each. `overtaken` is how often somebody else
    writes to our report before we read it. `answered` is what the quote is over instead of what was
    asked for. `ignored` extensions are not done, `spoiled` ones are followed by somebody else's.
    """

    td: Td = field(default_factory=Td)
    provider: bytes = b"tdx_guest\n"
    configfs: bool = True
    provided: bool = True
    measured: bool = True
    denied: frozenset[str] = frozenset()
    refusals: deque[int] = field(default_factory=deque)
    overtaken: int = 0
    answered: bytes | None = None
    ignored: int = 0
    spoiled: int = 0
    write_fails_after_extending: bool = False
    table: bytes | None = field(default_factory=ccel_table)
    log: bytes = b""
    log_of: Callable[[bytes], bytes] | None = None
    reports: dict[str, _Report] = field(default_factory=dict)
    asked: list[bytes] = field(default_factory=list)
    extra: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.log = self.log or self.td.boot.firmware_log + _FILL

    def make_directory(self, path: str) -> None:
        self._deny(path)
        if not self.configfs or not path.startswith(f"{REPORTS}/"):
            raise fail(errno.ENOENT)
        if not self.provided:
            raise fail(errno.ENXIO)
        if path in self.reports:
            raise fail(errno.EEXIST)
        self.reports[path] = _Report()

    def remove_directory(self, path: str) -> None:
        if self.reports.pop(path, None) is None:
            raise fail(errno.ENOENT)

    def exists(self, path: str) -> bool:
        if path.startswith(MEASUREMENTS):
            return self.measured
        if path in {TABLE, LOG}:
            return self.table is not None
        return (path == REPORTS and self.configfs) or path in self.reports or path in self.extra

    def read(self, path: str, max_bytes: int) -> bytes:
        self._deny(path)
        found = self._read(path)
        if len(found) > max_bytes:
            raise fail(errno.EFBIG)
        return found

    def write(self, path: str, data: bytes) -> None:
        self._deny(path)
        folder, _, name = path.rpartition("/")
        if folder == MEASUREMENTS and self.measured:
            self._extend(name, data)
        elif folder in self.reports and name == "inblob":
            if len(data) > _MAX_INBLOB:
                raise fail(errno.EINVAL)
            self.reports[folder].inblob = data
            self.reports[folder].generation += 1
        else:
            raise fail(errno.ENOENT)

    def _deny(self, path: str) -> None:
        if any(path.startswith(prefix) for prefix in self.denied):
            raise fail(errno.EACCES)

    def _read(self, path: str) -> bytes:
        folder, _, name = path.rpartition("/")
        if folder == MEASUREMENTS and self.measured:
            return dict(
                zip((f"rtmr{n}:sha384" for n in range(4)), self.td.registers(), strict=True)
            )[name]
        if path == TABLE and self.table is not None:
            return self.table
        if path == LOG and self.table is not None:
            return self.log
        if folder in self.reports:
            return self._attribute(self.reports[folder], name)
        raise fail(errno.ENOENT)

    def _attribute(self, report: _Report, name: str) -> bytes:
        if name == "provider":
            return self.provider
        if name == "generation":
            return b"%d\n" % report.generation
        if name != "outblob":
            raise fail(errno.EINVAL)
        if self.refusals:
            raise fail(self.refusals.popleft())
        if self.overtaken:
            self.overtaken -= 1
            report.inblob, report.generation = bytes(64), report.generation + 1
        # The TDX provider takes report data of exactly 64 bytes.
        if report.inblob is None or len(report.inblob) != 64:
            raise fail(errno.EINVAL)
        self.asked.append(report.inblob)
        return self.td.quote(self.answered or report.inblob)

    def _extend(self, name: str, data: bytes) -> None:
        if name != "rtmr3:sha384":
            raise fail(errno.EACCES)
        if len(data) != 48:
            raise fail(errno.EINVAL)
        if self.ignored:
            self.ignored -= 1
            return
        self.td.extend(data)
        if self.spoiled:
            self.spoiled -= 1
            self.td.extend(bytes(48))
        if self.write_fails_after_extending:
            raise fail(errno.EINTR)
