"""Real machines put together from adapters, over stand-ins, and what `confide doctor` says of them.

hardware.md §8 and §9. No TDX, no dstack and no GPU was here.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from dstack_stand_in import DstackPeer, dstack_socket
from nodes import CountingEntropy, FixedClock
from nvml_stand_in import Nvml
from td_stand_in import KernelTree

from confide.adapters.software import node_software
from confide.cli.doctor_hardware import HardwareFindings, examine_hardware
from confide.errors import ConfigurationError
from confide.node.hardware import Hardware, MachineSettings, open_machine
from confide.node.measure import measure_node
from confide.trust.roots import VENDOR_ROOTS
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from confide.cli.findings import Finding
    from confide.node.machine import Machine

POLICY = {"count": 1, "mode": "SPT", "chips": ["GH100"], "drivers": ["1"], "vbios": ["1"]}
CPU = b"processor : 0\nflags\t\t: fpu sse tdx_guest avx\n"


class Machines(KernelTree):
    """The tree of a TD, with `/proc/cpuinfo`."""

    cpuinfo = CPU

    def read(self, path: str, max_bytes: int) -> bytes:
        return self.cpuinfo if path == "/proc/cpuinfo" else super().read(path, max_bytes)


@contextmanager
def _hardware(tree: KernelTree, peer: DstackPeer | None, folder: Path) -> Iterator[Hardware]:
    with ExitStack() as stack:
        sockets: tuple[str, ...] = (str(folder / "nobody.sock"),)
        if peer is not None:
            sockets = (stack.enter_context(dstack_socket(peer, folder)),)
            tree.extra = frozenset(sockets)
        yield Hardware(tree, sockets=sockets, load_nvml=Nvml)


async def _boot(role: Any, settings: MachineSettings, hardware: Hardware) -> Machine:
    clock, entropy = FixedClock(), CountingEntropy()
    async with open_machine(
        role, settings, clock=clock, entropy=entropy, hardware=hardware
    ) as machine:
        await measure_node(machine.guest, role=role, software=machine.software)
        _, events = await machine.guest.quote(bytes(64))
        assert events[-1].name == "confide-node"
        return machine


@pytest.mark.parametrize("kind", ["tdx", "dstack"])
def test_a_real_machine_has_vendor_roots_and_measures_what_runs(kind: Any, tmp_path: Path) -> None:
    policy = tmp_path / "gpus.json"
    policy.write_bytes(jcs(POLICY))
    peer = DstackPeer() if kind == "dstack" else None
    tree = KernelTree() if peer is None else KernelTree(peer.td)
    with _hardware(tree, peer, tmp_path) as hardware:
        settings = MachineSettings(kind=kind, gpu_policy=policy)
        machine = asyncio.run(_boot("model", settings, hardware))
    assert machine.roots is VENDOR_ROOTS
    assert not machine.roots.simulated
    assert machine.software == node_software()
    assert machine.gpus is not None
    assert machine.gpus.policy.gpu_count == 1
    assert tree.reports == {}


def test_an_agent_node_has_no_gpus(tmp_path: Path) -> None:
    with _hardware(KernelTree(), None, tmp_path) as hardware:
        machine = asyncio.run(_boot("agent", MachineSettings(kind="tdx"), hardware))
    assert machine.gpus is None
    assert machine.devices is None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no TDX": ({"kind": "tdx"}, "kernel 6.7"),
    "no dstack": ({"kind": "dstack"}, "no dstack agent"),
    "a label on real hardware": ({"kind": "tdx", "label": "second"}, "simulated machine only"),
    "a fault on real hardware": ({"kind": "tdx", "fault": "devtools"}, "simulated machine only"),
    "no GPU policy": ({"kind": "tdx"}, "--gpu-policy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_machine_that_is_not_there_is_not_replaced_by_another(name: str, tmp_path: Path) -> None:
    settings, words = REFUSED[name]
    tree = KernelTree(configfs=name == "no GPU policy")
    with (
        _hardware(tree, None, tmp_path) as hardware,
        pytest.raises(ConfigurationError, match=words),
    ):
        asyncio.run(_boot("model", MachineSettings(**settings), hardware))


@pytest.mark.parametrize(
    "raw", [b"", b"{}", jcs({**POLICY, "mode": "PPCIE"}), jcs({**POLICY, "count": 0})]
)
def test_a_gpu_policy_that_is_none_starts_nothing(raw: bytes, tmp_path: Path) -> None:
    policy = tmp_path / "gpus.json"
    settings = MachineSettings(kind="tdx", gpu_policy=policy)
    with _hardware(KernelTree(), None, tmp_path) as hardware:
        with pytest.raises(ConfigurationError, match="cannot be read"):
            asyncio.run(_boot("model", settings, hardware))
        policy.write_bytes(raw)
        with pytest.raises(ConfigurationError, match="is none"):
            asyncio.run(_boot("model", settings, hardware))


def test_the_launch_document_is_what_the_file_holds(tmp_path: Path) -> None:
    policy, launch = tmp_path / "gpus.json", tmp_path / "launch.json"
    policy.write_bytes(jcs(POLICY))
    settings = MachineSettings(kind="tdx", gpu_policy=policy, launch=launch)
    with _hardware(KernelTree(), None, tmp_path) as hardware:
        with pytest.raises(ConfigurationError, match="launch document cannot be read"):
            asyncio.run(_boot("model", settings, hardware))
        launch.write_bytes(b"x" * (256 * 1024 + 1))
        with pytest.raises(ConfigurationError, match="launch document is above"):
            asyncio.run(_boot("model", settings, hardware))
    launch.write_bytes(b'{"exact": "bytes"}')
    with _hardware(KernelTree(), None, tmp_path) as hardware:
        machine = asyncio.run(_boot("model", settings, hardware))
    assert machine.launch == b'{"exact": "bytes"}'
    without = MachineSettings(kind="tdx", gpu_policy=policy)
    with _hardware(KernelTree(), None, tmp_path) as hardware:
        assert asyncio.run(_boot("model", without, hardware)).launch is None


def test_the_simulated_machine_needs_none_of_it(tmp_path: Path) -> None:
    settings = MachineSettings(kind="simulated", seed=b"s" * 32)
    with _hardware(KernelTree(configfs=False), None, tmp_path) as hardware:
        machine = asyncio.run(_boot("model", settings, hardware))
    assert machine.roots.simulated
    assert machine.gpus is not None


def _examined(
    hardware: Hardware, *, release: str = "6.16.1", quote: bool = False
) -> tuple[HardwareFindings, dict[str, Finding]]:
    found = examine_hardware(hardware, release=release, name="doctor", quote=quote)
    return found, {line.name: line for line in found.lines}


def test_doctor_finds_nothing_lacking_where_nothing_is(tmp_path: Path) -> None:
    peer = DstackPeer(generation="0.5")
    tree = Machines()
    with _hardware(tree, peer, tmp_path) as hardware:
        found, lines = _examined(hardware)
        assert {line.state for line in found.lines} == {"ok"}
        assert (found.tdx, found.dstack, found.gpus) == (True, True, True)
        assert tree.asked == [], "a quote that nobody asked for"
        assert "DevTools off" in lines["GPU confidential mode"].detail
        assert "0.5.8" in lines["dstack guest agent"].detail
        asked, lines = _examined(hardware, quote=True)
    assert asked.tdx
    assert tree.asked == [bytes(64)]
    assert "verified by nobody" in lines["a quote"].detail
    assert tree.reports == {}
    assert tree.td.rtmr3 == bytes(48), "doctor extended RTMR3"


def _extended() -> KernelTree:
    tree = Machines()
    tree.td.extend(bytes(48))
    return tree


def _no_guest() -> KernelTree:
    tree = Machines()
    tree.cpuinfo = b"flags : fpu not_tdx_guest_really\nmodel name : tdx_guest\n"
    return tree


LACKS: dict[str, tuple[Any, Any, str, str]] = {
    "guest": (_no_guest, Nvml, "Intel TDX guest", "TDX guest"),
    "configfs": (lambda: Machines(configfs=False), Nvml, "quotes (configfs-tsm)", "mount"),
    # The kernel is new enough: to install another one would mend nothing.
    "registers": (lambda: Machines(measured=False), Nvml, "RTMR3 (sysfs)", "modprobe tdx_guest"),
    "fresh register": (_extended, Nvml, "RTMR3 (sysfs)", "boot the guest again"),
    "firmware log": (lambda: Machines(table=None), Nvml, "firmware log (CCEL)", "TDVF"),
    "driver": (Machines, lambda: Nvml(failures={"nvmlInit": 12}), "NVIDIA GPU", "confide[gpu]"),
    "mode": (Machines, lambda: Nvml(feature=0), "GPU confidential mode", "--set-cc-mode=on"),
    "devtools": (Machines, lambda: Nvml(devtools=1), "GPU confidential mode", "DevTools"),
    "ready": (Machines, lambda: Nvml(ready=1), "GPU ready state", "-srs 0"),
    "switches": (Machines, lambda: Nvml(multi_gpu=1), "NVSwitches", "without protected PCIe"),
}


@pytest.mark.parametrize("name", LACKS)
def test_doctor_names_what_is_lacking_and_how_to_mend_it(name: str) -> None:
    tree, nvml, line, mend = LACKS[name]
    found, lines = _examined(Hardware(tree(), sockets=("/run/none",), load_nvml=nvml))
    assert lines[line].state != "ok"
    assert mend in lines[line].mend
    gpu = line.startswith(("GPU", "NV"))
    assert (found.tdx, found.gpus) == (gpu, not gpu)


def test_doctor_sends_nobody_to_mend_parts_of_a_guest_that_is_none() -> None:
    tree = _no_guest()
    tree.measured, tree.configfs = False, False
    _, lines = _examined(Hardware(tree, sockets=(), load_nvml=Nvml), release="6.15.0")
    assert lines["guest kernel"].mend == "install kernel 6.16 or later"
    for name in ("quotes (configfs-tsm)", "RTMR3 (sysfs)"):
        assert lines[name].mend.startswith("first the TDX guest; in it: ")
    assert "6.16" in lines["RTMR3 (sysfs)"].mend


@pytest.mark.parametrize(
    ("release", "state", "words"),
    [
        ("6.16.0-rc1", "ok", "RTMR3"),
        ("7.0", "ok", "RTMR3"),
        ("6.15.9", "optional", "no RTMR3"),
        ("6.6.1", "optional", "neither"),
        ("unknown", "optional", "neither"),
    ],
)
def test_doctor_reads_the_kernels_release(release: str, state: str, words: str) -> None:
    _, lines = _examined(Hardware(Machines(), sockets=(), load_nvml=Nvml), release=release)
    assert lines["guest kernel"].state == state
    assert words in lines["guest kernel"].detail


@pytest.mark.parametrize(("measured", "state"), [(True, "ok"), (False, "optional")])
def test_doctor_says_whether_dstack_can_be_measured(
    measured: bool, state: str, tmp_path: Path
) -> None:
    with _hardware(Machines(measured=measured), DstackPeer(), tmp_path) as hardware:
        found, lines = _examined(hardware)
    assert lines["dstack guest agent"].state == state
    assert found.dstack is measured


def test_a_failing_gpu_is_a_line_and_no_crash() -> None:
    hardware = Hardware(Machines(), sockets=(), load_nvml=lambda: Nvml(failures={"count": 15}))
    found, lines = _examined(hardware)
    assert "fell off" in lines["NVIDIA GPU"].detail
    assert not found.gpus
