"""The contracts of `ports.GpuEvidenceSource` and `ports.GpuControl`, over the simulator and NVML.

NVML is a stand-in: nothing here saw an NVIDIA driver. hardware.md §6.
"""

from __future__ import annotations

import asyncio
import ctypes
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from nodes import NOW, SEED
from nvml_stand_in import Chain, Nvml, Report, Settings

from confide.adapters.nvml import NvmlGpus
from confide.appraisal.gpu_gate import gate_faults
from confide.appraisal.nvidia import appraise_gpus
from confide.appraisal.nvidia_policy import GpuMode
from confide.errors import ConfigurationError, Unavailable, Unsupported
from confide.simulator.machine import SimulatedGpuControl, SimulatedGpus
from confide.simulator.nvidia import SimulatedGpuSet
from confide.simulator.nvidia_gpu import SimulatedGpu

if TYPE_CHECKING:
    from confide.ports import GpuControl, GpuEvidenceSource

ONE = SimulatedGpuSet(SEED, (SimulatedGpu(label="model-node"),), now=NOW)
EIGHT = SimulatedGpuSet(
    SEED,
    tuple(SimulatedGpu(label=str(n), chip="GB100", mode=GpuMode.MPT) for n in range(8)),
    now=NOW,
)
NONCE = bytes(range(32))


@pytest.mark.parametrize("gpus", [ONE, EIGHT], ids=["one GPU", "eight GPUs"])
@pytest.mark.parametrize("kind", ["simulated", "nvml"])
def test_every_device_answers_this_nonce_and_is_accepted(kind: str, gpus: SimulatedGpuSet) -> None:
    count = gpus.policy().gpu_count
    source: GpuEvidenceSource = SimulatedGpus(gpus)
    if kind == "nvml":
        source = NvmlGpus(Nvml(gpus, count=count))
    for nonce in (NONCE, bytes(32)):
        found = asyncio.run(source.collect(nonce))
        accepted = appraise_gpus(
            found,
            gpus.endorsements(NOW),
            roots=gpus.roots(),
            policy=gpus.policy(),
            expected_nonce=nonce,
            now=NOW,
        )
        assert len(accepted.devices) == count
        assert len({device.ueid for device in accepted.devices}) == count


@pytest.mark.parametrize("control", [SimulatedGpuControl(), NvmlGpus(Nvml())], ids=["sim", "nvml"])
def test_the_ready_state_is_what_it_was_set_to_and_starts_shut(control: GpuControl) -> None:
    async def turn() -> None:
        assert (await control.state()).ready is False
        for ready in (True, True, False):
            await control.set_ready(ready)
            assert (await control.state()).ready is ready
        assert gate_faults(await control.state(), ONE.policy()) == ()

    asyncio.run(turn())


def test_the_drivers_words_are_told_as_they_are_and_made_printable() -> None:
    nvml = Nvml(environment=1, feature=0, devtools=1, multi_gpu=2, ready=1)
    state = asyncio.run(NvmlGpus(nvml).state())
    assert (state.environment, state.confidential, state.devtools) == ("simulation", False, True)
    assert (state.multi_gpu, state.ready, state.gpus) == (2, True, 1)
    assert state.driver == "570.1[31m"
    nvml.environment = 9
    assert asyncio.run(NvmlGpus(nvml).state()).environment == "unknown"


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (2, Unavailable, "booted again"),
        (3, Unavailable, "not supported"),
        (4, ConfigurationError, "run as root"),
        (9, ConfigurationError, "driver is not loaded"),
        (12, ConfigurationError, "install the NVIDIA driver"),
        (13, ConfigurationError, "too old"),
        (15, Unavailable, "fell off the bus"),
        (28, Unavailable, "a GPU is gone"),
        (999, Unavailable, "status 999"),
    ],
)
@pytest.mark.parametrize("function", ["settings", "get ready"])
def test_a_failing_status_is_an_error_even_where_the_binding_hides_it(
    status: int, kind: type[Exception], words: str, function: str
) -> None:
    nvml = Nvml(failures={function: status})
    with pytest.raises(kind, match=words):
        asyncio.run(NvmlGpus(nvml).state())
    assert nvml.init == 0, "the session stays open"


@pytest.mark.parametrize("function", ["nvmlInit", "count", "handle", "report", "chain", "settings"])
def test_no_evidence_is_better_than_some(function: str) -> None:
    nvml = Nvml(EIGHT, count=8, failures={function: 15})
    with pytest.raises(Unavailable, match="fell off"):
        asyncio.run(NvmlGpus(nvml).collect(NONCE))
    assert nvml.init == 0


def test_a_gpu_that_goes_in_the_middle_fails_the_set() -> None:
    nvml = Nvml(EIGHT, count=8)

    def leave() -> None:
        nvml.count = 7

    nvml.before["chain"] = leave
    with pytest.raises(Unavailable):
        asyncio.run(NvmlGpus(nvml).collect(NONCE))
    late = Nvml(ONE, count=1)

    def come() -> None:
        late.count = 2

    late.before["chain"] = come
    with pytest.raises(Unavailable, match="changed while it was asked"):
        asyncio.run(NvmlGpus(late).collect(NONCE))


@pytest.mark.parametrize("size", [0x2001, 0xFFFFFFFF])
def test_a_size_that_no_buffer_holds_is_refused(size: int) -> None:
    with pytest.raises(Unavailable, match="announces"):
        asyncio.run(NvmlGpus(Nvml(oversize=size)).collect(NONCE))


@pytest.mark.parametrize("count", [-1, 17])
def test_a_count_that_no_evidence_holds_is_refused(count: int) -> None:
    with pytest.raises(Unavailable, match="at most 16"):
        asyncio.run(NvmlGpus(Nvml(count=count)).collect(NONCE))


def test_switches_are_out_of_reach_and_that_is_said() -> None:
    with pytest.raises(Unsupported, match="libnvidia-nscq"):
        asyncio.run(NvmlGpus(Nvml(EIGHT, count=8, multi_gpu=1)).collect(NONCE))


def test_a_nonce_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32"):
        asyncio.run(NvmlGpus(Nvml()).collect(bytes(31)))


def test_calls_are_one_at_a_time() -> None:
    nvml = Nvml()
    most: list[int] = []

    def look() -> None:
        most.append(nvml.init)

    nvml.before = dict.fromkeys(("count", "report", "get ready"), look)
    gpus = NvmlGpus(nvml)

    async def together() -> None:
        asking: list[Any] = [gpus.collect(NONCE), gpus.state(), gpus.collect(NONCE), gpus.state()]
        await asyncio.gather(*asking)

    asyncio.run(together())
    assert set(most) == {1}


def test_without_the_binding_the_extra_is_named() -> None:
    program = (
        "import sys\nsys.modules['pynvml'] = None\n"
        "from confide.adapters.nvml import load_nvml\nload_nvml()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert "ConfigurationError: no nvidia-ml-py: pip install 'confide[gpu]'" in ran.stderr


def test_the_stand_in_has_the_shape_of_the_binding() -> None:
    pynvml = pytest.importorskip("pynvml", reason="NOT COMPARED WITH nvidia-ml-py: not installed")
    offered = {name for name in dir(Nvml) if name.startswith("nvml")}
    assert offered <= set(dir(pynvml))
    real = pynvml.c_nvmlSystemConfComputeSettings_v1_t
    assert [entry[0] for entry in Settings._fields_] == [entry[0] for entry in real._fields_]
    assert real().version == Settings().version
    for name, mine in (("Certificate", Chain), ("AttestationReport", Report)):
        theirs = dict(getattr(pynvml, f"c_nvmlConfComputeGpu{name}_t")._fields_)
        for entry in mine._fields_:
            assert ctypes.sizeof(theirs[entry[0]]) == ctypes.sizeof(entry[1])
    assert pynvml.NVMLError(15).value == 15
