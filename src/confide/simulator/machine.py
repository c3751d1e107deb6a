"""A SIMULATED confidential machine behind the ports: TDX guest, collateral, GPUs, references.

The same ports as hardware, byte-exact evidence, roots that say SIMULATED. RTMR3 lives here as it
would in the TDX module: it starts at zero with the machine, and software can only extend it.
Faults are injected by name; each leaves everything else honest.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from confide.appraisal.gpu_control import GpuState
from confide.simulator.boot import BootMeasurements, measure_boot
from confide.simulator.nvidia import SimulatedGpuSet, simulated_nvidia_roots
from confide.simulator.nvidia_faults import GpuFault
from confide.simulator.nvidia_gpu import SimulatedGpu
from confide.simulator.tdx import QuoteKind, SimulatedLaunch, SimulatedTdxPlatform
from confide.simulator.tdx_faults import TdxFault
from confide.trust.roots import Roots, make_simulated_roots
from confide.wire.rtmr_log import RuntimeEvent, extend_register

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Literal

    from confide.ports import Clock
    from confide.wire.evidence import GpuEvidence, NvidiaEndorsements

__all__ = [
    "FAULT_NAMES",
    "Fault",
    "LogFault",
    "SimulatedCollateral",
    "SimulatedGpuControl",
    "SimulatedGpus",
    "SimulatedGuest",
    "SimulatedReferences",
    "log_fault",
    "make_gpus",
    "make_platform",
    "parse_fault",
    "simulated_roots",
]

# Endorsements are made again after this: an OCSP answer lives 24 hours.
_ENDORSEMENT_LIFE = timedelta(hours=1)
T = TypeVar("T")


class LogFault(StrEnum):
    """What a dishonest host can do to the runtime log or the launch, by name."""

    # The payload of the first event is edited; the log is told as if that had been extended.
    LOG_PAYLOAD_EDITED = "log-payload-edited"
    # The last event is left out of the log.
    LOG_EVENT_DROPPED = "log-event-dropped"
    # An event is in the log that was never extended.
    LOG_EVENT_ADDED = "log-event-added"
    # Two events change places.
    LOG_EVENTS_SWAPPED = "log-events-swapped"
    # The machine was launched with other node software than it says.
    WRONG_MEASUREMENT = "wrong-measurement"
    # Every quote answers the first report data ever asked for.
    REPLAYED_NONCE = "replayed-nonce"


Fault = TdxFault | GpuFault | LogFault
FAULT_NAMES: tuple[str, ...] = tuple(
    sorted({fault.value for kind in (TdxFault, GpuFault, LogFault) for fault in kind})
)


def parse_fault(name: str) -> tuple[Fault, ...]:
    """Return the faults called `name` (a TDX and a GPU fault may share one); empty for none."""
    kinds: tuple[type[TdxFault | GpuFault | LogFault], ...] = (
        TdxFault,
        GpuFault,
        LogFault,
    )
    return tuple(fault for kind in kinds for fault in kind if fault.value == name)


def simulated_roots(seed: bytes, now: datetime) -> Roots:
    """Return the roots of the simulated platform of `seed`; `now` does not enter them."""
    return make_simulated_roots(
        SimulatedTdxPlatform(seed, now).anchor(), simulated_nvidia_roots(seed)
    )


def _pick(faults: tuple[Fault, ...], kind: type[T]) -> T | None:
    return next((fault for fault in faults if isinstance(fault, kind)), None)


class SimulatedGuest:
    """
    One booted simulated TD: the `QuoteSource` port.

    `software` is the SHA-256 of the node package that runs, `kernel` the running kernel's release.
    """

    def __init__(
        self,
        platform: SimulatedTdxPlatform,
        *,
        role: Literal["agent", "model"],
        software: bytes,
        kernel: str,
        fault: LogFault | None = None,
        kind: QuoteKind = QuoteKind.V4,
    ) -> None:
        self._platform = platform
        self._fault = fault
        self._kind = kind
        launched = bytes(32) if fault is LogFault.WRONG_MEASUREMENT else software
        self._boot: BootMeasurements = measure_boot(role=role, software=launched, kernel=kernel)
        self._rtmr3 = bytes(48)
        self._events: list[RuntimeEvent] = []
        self._first_report_data: bytes | None = None
        self._lock = asyncio.Lock()

    async def quote(self, report_data: bytes) -> tuple[bytes, tuple[RuntimeEvent, ...]]:
        """Return a quote over `report_data` and the log as of that quote."""
        async with self._lock:
            if self._first_report_data is None:
                self._first_report_data = report_data
            if self._fault is LogFault.REPLAYED_NONCE:
                report_data = self._first_report_data
            boot = self._boot
            launch = SimulatedLaunch(
                mr_td=boot.mrtd,
                rtmr=(boot.rtmr0, boot.rtmr1, boot.rtmr2, self._rtmr3),
                mr_config_id=boot.mrconfigid,
            )
            quote = self._platform.quote(launch, report_data=report_data, kind=self._kind)
            return quote, self._told()

    def _told(self) -> tuple[RuntimeEvent, ...]:
        events = tuple(self._events)
        match self._fault:
            case LogFault.LOG_EVENT_DROPPED:
                return events[:-1]
            case LogFault.LOG_EVENT_ADDED:
                return (*events, RuntimeEvent("confide-agent-image", bytes(32)))
            case LogFault.LOG_EVENTS_SWAPPED:
                return (*events[1:2], *events[:1], *events[2:])
            case LogFault.LOG_PAYLOAD_EDITED:
                first = events[0]
                edited = first.payload.replace(b'"version"', b'"verzion"')
                return (replace(first, payload=edited), *events[1:])
            case _:
                return events

    async def extend(self, event: RuntimeEvent) -> None:
        """Extend RTMR3 and append to the log."""
        async with self._lock:
            self._rtmr3 = extend_register(self._rtmr3, event.digest())
            self._events.append(event)

    def firmware_log(self) -> bytes:
        """Return the CCEL of the simulated boot."""
        return self._boot.firmware_log


class SimulatedCollateral:
    """The `CollateralSource` port: what the simulated Intel says about the platform."""

    def __init__(self, platform: SimulatedTdxPlatform) -> None:
        self._raw = platform.collateral()

    async def collateral(self, quote: bytes) -> bytes:
        """Return the collateral; `quote` is of the only platform there is."""
        del quote
        return self._raw


class SimulatedGpus:
    """The `GpuEvidenceSource` port over a simulated set."""

    def __init__(self, gpus: SimulatedGpuSet) -> None:
        self._gpus = gpus

    async def collect(self, nonce: bytes) -> tuple[GpuEvidence, ...]:
        """Return one report for each device over `nonce`."""
        return self._gpus.collect(nonce)


class SimulatedGpuControl:
    """
    The `GpuControl` port: a driver that says what one of confidential GPUs says.

    It says so whatever fault the GPUs have: a driver's word is not what finds one.
    """

    def __init__(self, gpus: int = 1) -> None:
        self._gpus = gpus
        self._ready = False

    async def state(self) -> GpuState:
        """Return the word of the driver."""
        return GpuState(
            gpus=self._gpus,
            confidential=True,
            devtools=False,
            environment="production",
            multi_gpu=0,
            ready=self._ready,
            driver="SIMULATED",
        )

    async def set_ready(self, ready: bool) -> None:  # noqa: FBT001 - as the port has it
        """Set the ready state."""
        self._ready = ready


class SimulatedReferences:
    """The `ReferenceSource` port: manifests, and OCSP answers of the last hour."""

    def __init__(self, gpus: SimulatedGpuSet, clock: Clock) -> None:
        self._gpus = gpus
        self._clock = clock
        self._made: tuple[datetime, NvidiaEndorsements] | None = None

    async def endorsements(self, devices: tuple[GpuEvidence, ...]) -> NvidiaEndorsements:
        """Return the endorsements of the set; `devices` are of the only set there is."""
        del devices
        now = self._clock.now()
        if self._made is None or now - self._made[0] > _ENDORSEMENT_LIFE:
            self._made = (now, self._gpus.endorsements(now))
        return self._made[1]


def make_gpus(
    seed: bytes, now: datetime, faults: tuple[Fault, ...], *, label: str = "model-node"
) -> SimulatedGpuSet:
    """Return the one simulated Hopper GPU of a model node; another `label` is another GPU."""
    return SimulatedGpuSet(
        seed, (SimulatedGpu(label=label),), now=now, fault=_pick(faults, GpuFault)
    )


def make_platform(seed: bytes, now: datetime, faults: tuple[Fault, ...]) -> SimulatedTdxPlatform:
    """Return the simulated machine."""
    return SimulatedTdxPlatform(seed, now, _pick(faults, TdxFault))


def log_fault(faults: tuple[Fault, ...]) -> LogFault | None:
    """Return the log fault among `faults`."""
    return _pick(faults, LogFault)
