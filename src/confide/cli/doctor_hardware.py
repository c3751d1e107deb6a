"""What a machine has and lacks for real evidence, found out by trying.

docs/protocols/hardware.md §9. A machine's word on itself proves nothing: every line here is for its
operator. Nothing is extended or set, and no quote is made unless that was asked for.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from confide.adapters.dstack_agent import connect_dstack
from confide.adapters.dstack_guest import find_dstack
from confide.adapters.nvml import NvmlGpus
from confide.adapters.tdx_firmware import read_ccel, require_replay
from confide.adapters.tdx_register import read_registers
from confide.adapters.tdx_tsm import TsmQuotes
from confide.appraisal.gpu_gate import state_faults
from confide.cli.findings import Finding
from confide.errors import ConfideError

if TYPE_CHECKING:
    from confide.appraisal.gpu_control import GpuState
    from confide.node.hardware import Hardware

__all__ = ["HardwareFindings", "examine_hardware"]

_CPUINFO: Final = "/proc/cpuinfo"
_MAX_CPUINFO_BYTES: Final = 8 * 1024 * 1024
_SWITCH: Final = "/dev/nvidia-nvswitch0"
_MEND_TDX: Final = "start this system as a TDX guest; the host needs TDX enabled in BIOS and kernel"
# From: Linux ABI testing/configfs-tsm-report and testing/sysfs-devices-virtual-misc-tdx_guest.
_QUOTES_FROM: Final = (6, 7)
_REGISTERS_FROM: Final = (6, 16)


@dataclass(frozen=True, slots=True)
class HardwareFindings:
    """The lines, and which real machines a node could be started on; none of it is proven."""

    lines: tuple[Finding, ...]
    tdx: bool
    dstack: bool
    gpus: bool


def examine_hardware(
    hardware: Hardware, *, release: str, name: str, quote: bool
) -> HardwareFindings:
    """
    Look at this machine. `release` is that of its kernel, `name` a name of this process alone.

    With `quote` a quote is made: it takes up to seconds and the host sees it.
    """
    guest, kernel = _guest(hardware), _kernel(release)
    parts = [_reports(hardware, name), _register(hardware, kernel), _firmware(hardware)]
    if quote:
        parts.append(_quote(hardware, name))
    if guest.state != "ok":
        parts = [_in_a_guest(part) for part in parts]
    tsm = [kernel, *parts]
    agent = _dstack(hardware)
    gpus = _gpus(hardware)
    return HardwareFindings(
        lines=(guest, *tsm, agent, *gpus),
        tdx=all(line.state == "ok" for line in (guest, *tsm)),
        dstack=guest.state == agent.state == "ok",
        gpus=all(line.state == "ok" for line in gpus),
    )


def _lacking(name: str, error: ConfideError, mend: str) -> Finding:
    return Finding(name, "optional", str(error), mend)


def _in_a_guest(part: Finding) -> Finding:
    """Return `part` as what can be done about it outside of a TDX guest: nothing yet."""
    return replace(part, mend=f"first the TDX guest; in it: {part.mend}") if part.mend else part


def _guest(hardware: Hardware) -> Finding:
    name = "Intel TDX guest"
    try:
        flags = hardware.files.read(_CPUINFO, _MAX_CPUINFO_BYTES)
    except OSError:
        return Finding(name, "simulated", "the processor's flags cannot be read", _MEND_TDX)
    if re.search(rb"^flags\s*:.*\btdx_guest\b", flags, re.MULTILINE):
        return Finding(name, "ok", "the processor says so: tdx_guest")
    return Finding(name, "simulated", "absent: nodes here are simulated", _MEND_TDX)


def _kernel(release: str) -> Finding:
    name = "guest kernel"
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version >= _REGISTERS_FROM:
        return Finding(name, "ok", f"{release}: quotes and RTMR3")
    part = "quotes, and no RTMR3" if version >= _QUOTES_FROM else "neither quotes nor RTMR3"
    return Finding(name, "optional", f"{release}: {part}", "install kernel 6.16 or later")


def _reports(hardware: Hardware, name: str) -> Finding:
    line = "quotes (configfs-tsm)"
    quotes = TsmQuotes(hardware.files, name=name, reports=hardware.places.reports)
    try:
        quotes.require_provider()
    except ConfideError as error:
        mend = "mount -t configfs none /sys/kernel/config; modprobe tdx_guest; as root"
        return _lacking(line, error, mend)
    return Finding(line, "ok", "offered by tdx_guest; --quote makes one")


def _quote(hardware: Hardware, name: str) -> Finding:
    line = "a quote"
    quotes = TsmQuotes(hardware.files, name=f"{name}-quote", reports=hardware.places.reports)
    try:
        made = quotes.quote(bytes(64))
    except ConfideError as error:
        mend = "on the host: start the quote generation service (qgsd) and register the platform"
        return _lacking(line, error, mend)
    return Finding(line, "ok", f"{len(made)} bytes over what was asked for; verified by nobody")


def _register(hardware: Hardware, kernel: Finding) -> Finding:
    line = "RTMR3 (sysfs)"
    try:
        values = read_registers(hardware.files, hardware.places.measurements)
    except ConfideError as error:
        return _lacking(line, error, kernel.mend or "modprobe tdx_guest, and look as root")
    if any(values[3]):
        mend = "boot the guest again, and let nothing else measure into RTMR3"
        return Finding(
            line, "optional", "extended before: no node of --machine tdx can start", mend
        )
    return Finding(line, "ok", "not extended yet: a node can start; writing was not tried")


def _firmware(hardware: Hardware) -> Finding:
    line, places = "firmware log (CCEL)", hardware.places
    try:
        log = read_ccel(hardware.files, table=places.ccel_table, data=places.ccel_data)
    except ConfideError as error:
        return _lacking(line, error, "boot with a TDVF that measures, and look as root")
    try:
        require_replay(log, read_registers(hardware.files, places.measurements))
    except ConfideError as error:
        return _lacking(line, error, "boot without loaders that measure without logging")
    return Finding(line, "ok", f"{len(log)} bytes; reproduces RTMR0 to RTMR2")


def _dstack(hardware: Hardware) -> Finding:
    line = "dstack guest agent"
    try:
        agent = connect_dstack(find_dstack(hardware.files, hardware.sockets))
    except ConfideError as error:
        mend = "only in a dstack machine: mount its dstack.sock into this container"
        return _lacking(line, error, mend)
    agent.close()
    detail = f"{agent.api}, version {agent.version or 'not told'}"
    if agent.emits_events:
        return Finding(line, "ok", f"{detail}; extends RTMR3 when asked")
    if hardware.files.exists(hardware.places.measurements):
        return Finding(line, "ok", f"{detail}; RTMR3 through sysfs")
    mend = "a dstack image whose kernel is 6.16 or later; without RTMR3 no node is measured"
    return Finding(line, "optional", f"{detail}; extends nothing, and RTMR3 is not here", mend)


def _gpus(hardware: Hardware) -> list[Finding]:
    try:
        state = asyncio.run(NvmlGpus(hardware.load_nvml()).state())
    except ConfideError as error:
        mend = "pass a GPU through, install its driver, and pip install 'confide[gpu]'"
        return [Finding("NVIDIA GPU", "simulated", str(error), mend)]
    switches = hardware.files.exists(_SWITCH)
    return [
        Finding("NVIDIA GPU", "ok", f"{state.gpus} of them, driver {state.driver or 'not told'}"),
        *_mode(state),
        _ready(state),
        _switches(switches, state.multi_gpu),
    ]


def _mode(state: GpuState) -> list[Finding]:
    line = "GPU confidential mode"
    if faults := state_faults(state):
        return [Finding(line, "optional", fault.what, fault.mend) for fault in faults]
    return [Finding(line, "ok", f"on, {state.environment}, DevTools off")]


def _ready(state: GpuState) -> Finding:
    line = "GPU ready state"
    if state.ready:
        mend = "nothing, if a node runs here; else nvidia-smi conf-compute -srs 0"
        return Finding(line, "optional", "the GPUs take work already; a node shuts them", mend)
    return Finding(line, "ok", "shut: a node opens it after it has proven the GPUs")


def _switches(present: bool, multi_gpu: int) -> Finding:
    line = "NVSwitches"
    if present or multi_gpu == 1:
        return Finding(
            line,
            "optional",
            "protected PCIe needs their evidence, by libnvidia-nscq: not driven here",
            "pass GPUs through without protected PCIe mode",
        )
    return Finding(line, "ok", "none, and none needed")
