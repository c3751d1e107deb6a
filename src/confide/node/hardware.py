"""The machine that a setting names, put together from adapters. docs/protocols/hardware.md §8.

A real machine comes with vendor roots and with the vendors' services; the simulated one with
neither. No environment variable and no discovery chooses: what is not there is an error.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from confide.adapters.bounded_http import open_http
from confide.adapters.dstack_agent import DSTACK_SOCKETS, connect_dstack
from confide.adapters.dstack_guest import find_dstack, open_dstack_guest
from confide.adapters.endorsement_cache import DiskCache, NoCache
from confide.adapters.endorsement_http import EndorsementFetcher
from confide.adapters.intel_pcs import IntelPcs
from confide.adapters.nvidia_services import NvidiaServices
from confide.adapters.nvml import NvmlGpus, load_nvml
from confide.adapters.software import node_software
from confide.adapters.tdx_tsm import TdxPlaces, open_tdx_guest
from confide.adapters.tsm_files import KernelFiles
from confide.appraisal.policy import gpu_policy
from confide.errors import ConfigurationError, FormatError
from confide.expectation import parse_gpu_spec
from confide.node.attester import Devices
from confide.node.machine import Machine, MachineGpus, simulated_machine
from confide.trust.roots import VENDOR_ROOTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from confide.adapters.tsm_files import AttributeFiles
    from confide.ports import Clock, Entropy, QuoteSource

__all__ = ["Hardware", "MachineKind", "MachineSettings", "open_machine"]

MachineKind: TypeAlias = Literal["simulated", "tdx", "dstack"]
# From: docs/protocols/near.md §1.5, the larger of both.
_MAX_FILE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """
    Which machine. `seed`, `fault` and `label` are of the simulated one, the others of real ones.

    `gpu_policy` is a file with the member `gpu` of an Expectation: which GPUs this node itself
    accepts. `pccs` is the URL of a PCCS instead of Intel's service, `cache` keeps endorsements.
    `launch` is the document whose digest the machine was launched with (MRCONFIGID), for faces
    that show it.
    """

    kind: MachineKind
    seed: bytes = b""
    fault: str = ""
    label: str = ""
    gpu_policy: Path | None = None
    pccs: str | None = None
    cache: Path | None = None
    launch: Path | None = None


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where this machine offers what; the defaults are those of Linux."""

    files: AttributeFiles = field(default_factory=KernelFiles)
    places: TdxPlaces = field(default_factory=TdxPlaces)
    sockets: tuple[str, ...] = DSTACK_SOCKETS
    load_nvml: Callable[[], Any] = load_nvml


@asynccontextmanager
async def open_machine(
    role: Literal["agent", "model"],
    settings: MachineSettings,
    *,
    clock: Clock,
    entropy: Entropy,
    hardware: Hardware | None = None,
) -> AsyncIterator[Machine]:
    """
    Yield the machine that `settings` names.

    Raises `ConfigurationError` where this machine is not that one or lacks something, in words that
    say what; `Unavailable` where an edge of it fails.
    """
    if settings.kind == "simulated":
        yield simulated_machine(
            role, seed=settings.seed, clock=clock, fault=settings.fault, label=settings.label
        )
        return
    if settings.fault or settings.label:
        raise ConfigurationError("faults and labels are for the simulated machine only")
    real = hardware or Hardware()
    async with AsyncExitStack() as stack:
        guest = await _guest(settings.kind, real, entropy, stack)
        http = await stack.enter_async_context(open_http())
        cache = NoCache() if settings.cache is None else DiskCache(settings.cache)
        fetcher = EndorsementFetcher(http, clock=clock, entropy=entropy, cache=cache)
        gpus = None
        if role == "model":
            gpus = _gpus(settings.gpu_policy, real, NvidiaServices(fetcher))
        collateral = IntelPcs(fetcher, pccs=settings.pccs)
        launch = None if settings.launch is None else _read(settings.launch, "launch document")
        yield Machine(node_software(), guest, collateral, gpus, VENDOR_ROOTS, launch)


async def _guest(
    kind: MachineKind, real: Hardware, entropy: Entropy, stack: AsyncExitStack
) -> QuoteSource:
    if kind == "tdx":
        # Of this process alone: two that share a report would overtake each other.
        name = f"confide-{entropy.token(8).hex()}"
        return await asyncio.to_thread(open_tdx_guest, real.files, name=name, places=real.places)
    agent = await asyncio.to_thread(lambda: connect_dstack(find_dstack(real.files, real.sockets)))
    stack.callback(agent.close)
    return await asyncio.to_thread(open_dstack_guest, agent, real.files, places=real.places)


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"the {what} cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"the {what} is above {_MAX_FILE_BYTES} bytes")
    return raw


def _gpus(policy: Path | None, real: Hardware, references: NvidiaServices) -> MachineGpus:
    if policy is None:
        raise ConfigurationError("a model node on real hardware needs --gpu-policy FILE")
    raw = _read(policy, "GPU policy")
    try:
        accepted = gpu_policy(parse_gpu_spec(raw))
    except FormatError as error:
        raise ConfigurationError(f"the GPU policy is none: {error}") from error
    gpus = NvmlGpus(real.load_nvml())
    return MachineGpus(Devices(gpus, references), gpus, accepted)
