"""The GPU gate: what has to be so before a GPU takes work, and what shuts it. hardware.md §7."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from nodes import KERNEL, NOW, SEED, SOFTWARE, FixedClock
from nvml_stand_in import Nvml
from td_stand_in import MEASUREMENTS, KernelTree

from confide.adapters.nvml import NvmlGpus
from confide.adapters.tdx_tsm import open_tdx_guest
from confide.appraisal.gpu_control import GpuState
from confide.appraisal.gpu_gate import gate_faults, state_faults
from confide.appraisal.nvidia_policy import GpuMode
from confide.errors import ConfideError, ConfigurationError, Rejected, Unavailable
from confide.node.attester import Devices
from confide.node.gpu_gate import open_gate, shut_gate
from confide.simulator.machine import (
    SimulatedGpuControl,
    SimulatedGpus,
    SimulatedGuest,
    SimulatedReferences,
    make_gpus,
    make_platform,
)
from confide.simulator.nvidia_faults import GpuFault

if TYPE_CHECKING:
    from confide.ports import GpuControl, QuoteSource
    from confide.wire.evidence import GpuEvidence

GOOD = GpuState(
    gpus=1,
    confidential=True,
    devtools=False,
    environment="production",
    multi_gpu=0,
    ready=False,
    driver="570.1",
)
POLICY = make_gpus(SEED, NOW, ()).policy()
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "confidential computing off": ({"confidential": False}, "--set-cc-mode=on"),
    "devtools": ({"devtools": True}, "DevTools"),
    "simulated driver": ({"environment": "simulation"}, "simulation"),
    "environment unknown": ({"environment": "unknown"}, "unknown"),
    "no GPU": ({"gpus": 0}, "no GPU"),
    "a GPU too many": ({"gpus": 2}, "exactly 1"),
    "another mode": ({"multi_gpu": 1}, "multi-GPU mode 1"),
}


@pytest.mark.parametrize(("changed", "words"), WRONG.values(), ids=WRONG)
def test_the_drivers_own_word_can_refuse(changed: dict[str, Any], words: str) -> None:
    faults = gate_faults(replace(GOOD, **changed), POLICY)
    assert any(words in f"{fault.what} {fault.mend}" for fault in faults)


def test_the_drivers_word_alone_refuses_nothing_that_is_right() -> None:
    assert gate_faults(GOOD, POLICY) == ()
    assert state_faults(replace(GOOD, ready=True)) == ()
    ppcie = replace(
        POLICY, mode=GpuMode.PPCIE, switch_count=4, switch_bios=POLICY.driver, gpu_count=8
    )
    assert gate_faults(replace(GOOD, gpus=8, multi_gpu=1), ppcie) == ()


@dataclass
class Node:
    """A node in front of its gate, and what was asked of it in order."""

    gpu_fault: GpuFault | None = None
    control: GpuControl = field(default_factory=SimulatedGpuControl)

    def __post_init__(self) -> None:
        platform = make_platform(SEED, NOW, ())
        self.guest: QuoteSource = SimulatedGuest(
            platform, role="model", software=SOFTWARE, kernel=KERNEL
        )
        self.gpus = make_gpus(SEED, NOW, () if self.gpu_fault is None else (self.gpu_fault,))

    async def open(self) -> None:
        honest = make_gpus(SEED, NOW, ())
        await open_gate(
            self.guest,
            Devices(SimulatedGpus(self.gpus), SimulatedReferences(self.gpus, FixedClock())),
            self.control,
            policy=honest.policy(),
            roots=honest.roots(),
            nonce=bytes(32),
            now=NOW,
        )

    async def measured(self) -> list[str]:
        return [event.name for event in (await self.guest.quote(bytes(64)))[1]]


async def _refused(
    node: Node, kind: type[BaseException], words: str | None = None
) -> BaseException:
    with pytest.raises(kind, match=words) as raised:
        await node.open()
    return raised.value


def test_a_proven_set_is_measured_and_then_takes_work() -> None:
    async def go() -> None:
        node = Node()
        await node.open()
        assert await node.measured() == ["confide-gpu"]
        assert (await node.control.state()).ready
        await shut_gate(node.control)
        assert not (await node.control.state()).ready

    asyncio.run(go())


@pytest.mark.parametrize("fault", list(GpuFault), ids=lambda fault: fault.value)
def test_a_set_that_is_not_proven_takes_no_work(fault: GpuFault) -> None:
    async def go() -> None:
        node = Node(fault)
        await _refused(node, Rejected)
        assert await node.measured() == []
        assert not (await node.control.state()).ready

    asyncio.run(go())


class Watched(SimulatedGpuControl):
    """A driver whose word changes at the n-th question; remembers what it was set to."""

    def __init__(self, *, at: int = 99, **changed: Any) -> None:
        super().__init__()
        self.asked = 0
        self.set: list[bool] = []
        self._at, self._changed = at, changed

    async def state(self) -> GpuState:
        self.asked += 1
        found = await super().state()
        return replace(found, **self._changed) if self.asked >= self._at else found

    async def set_ready(self, ready: bool) -> None:
        self.set.append(ready)
        await super().set_ready(ready)


@pytest.mark.parametrize(("changed", "words"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("at", [2, 3], ids=["before the reports", "after them"])
def test_a_wrong_word_shuts_the_gate_before_and_after_the_reports(
    changed: dict[str, Any], words: str, at: int
) -> None:
    async def go() -> None:
        control = Watched(at=at, **changed)
        node = Node(control=control)
        await _refused(node, ConfigurationError, words)
        assert True not in control.set
        assert await node.measured() == ["confide-gpu"] * (at - 2)

    asyncio.run(go())


def test_gpus_that_took_work_before_are_shut_first() -> None:
    async def go() -> None:
        control = Watched()
        await control.set_ready(True)
        await Node(control=control).open()
        assert control.set == [True, False, True]

    asyncio.run(go())


def test_gpus_that_somebody_else_opened_meanwhile_are_shut() -> None:
    async def go() -> None:
        control = Watched(at=3, ready=True)
        node = Node(control=control)
        raised = await _refused(node, Unavailable, "nobody has accepted")
        assert control.set == [False, False]
        assert "could not be shut" in "".join(raised.__notes__)

    asyncio.run(go())


@pytest.mark.parametrize("ready", [0, 1])
def test_a_ready_state_that_does_not_stick_ends_the_start(ready: int) -> None:
    async def go() -> None:
        nvml = Nvml(ready=ready, sticks=False)
        await _refused(Node(control=NvmlGpus(nvml)), Unavailable, "not what it was set to")
        assert nvml.set_to[-1] == 0

    asyncio.run(go())


def test_an_edge_that_fails_on_the_way_shuts_the_gate() -> None:
    async def go() -> None:
        control, tree = Watched(), KernelTree()
        node = Node(control=control)
        node.guest = open_tdx_guest(tree, name="gate")
        tree.denied = frozenset({MEASUREMENTS})
        await _refused(node, ConfigurationError, "run as root")
        assert control.set == [False, False]

    asyncio.run(go())


def test_giving_up_shuts_the_gate() -> None:
    async def go() -> None:
        reached, control = asyncio.Event(), Watched()

        class Slow(SimulatedGpus):
            async def collect(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
                reached.set()
                await asyncio.Event().wait()
                return await super().collect(nonce)

        gpus = make_gpus(SEED, NOW, ())
        opening = asyncio.ensure_future(
            open_gate(
                Node().guest,
                Devices(Slow(gpus), SimulatedReferences(gpus, FixedClock())),
                control,
                policy=gpus.policy(),
                roots=gpus.roots(),
                nonce=bytes(32),
                now=NOW,
            )
        )
        await reached.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert control.set == [False, False]

    asyncio.run(go())


def test_nvml_without_rights_opens_nothing() -> None:
    async def go() -> None:
        nvml = Nvml(failures={"set ready": 4})
        node = Node(control=NvmlGpus(nvml))
        await _refused(node, ConfideError, "run as root")
        assert await node.measured() == []

    asyncio.run(go())
