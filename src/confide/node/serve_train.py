"""The training node as a process: measures the base, gates the GPUs, serves. The composition root.

docs/protocols/training-node.md §1. The order is that of a model node (eventlog.md §3). torch is in
training processes alone, never here.
"""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.adapters.clock import SystemClock
from confide.adapters.durable import SystemDisk
from confide.adapters.entropy import SystemEntropy
from confide.adapters.http_client import node_client, require_node_url
from confide.adapters.sealed_store import SealedStore
from confide.adapters.weights_dir import copy_weights, measure_weights
from confide.adapters.weights_facts import WatchedWeights
from confide.errors import ConfigurationError, FormatError, Unavailable
from confide.inference.models import ServedModel
from confide.node.app import NodeApp
from confide.node.attester import Attester
from confide.node.gpu_gate import gate_machine
from confide.node.hardware import open_machine
from confide.node.identity import LIFETIME, NodeIdentity
from confide.node.images import open_images
from confide.node.keys import make_node_keys
from confide.node.measure import measure_model, measure_node, measure_ready
from confide.node.seat_host import SeatHost
from confide.node.seat_links import seat_address
from confide.node.seat_party import PartyPorts
from confide.node.seat_places import LinkPlace
from confide.node.serve import Service, serve
from confide.node.train_app import TrainApp
from confide.node.train_entry import TrainPorts
from confide.node.train_files import TrainFiles
from confide.node.train_jobs import TrainJobs
from confide.node.train_proof import ProvenBase
from confide.node.train_replays import TrainReplays
from confide.trainer.group import start_ranks, start_seat
from confide.trainer.process import TrainingProcess
from confide.training.shares import ENGINES, MAX_SEATS, MAX_WORLD

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from confide.node.hardware import MachineSettings
    from confide.node.seat_party import InvitedNode
    from confide.node.train_replay_work import ReplayingRun
    from confide.ports import Clock
    from confide.trainer.order_form import Device, OrderForm
    from confide.trust.roots import Roots

__all__ = ["TrainNodeSettings", "serve_train_node"]

_NEEDED: Final = ("torch", "transformers", "peft", "safetensors")
# A form of 1 GiB on a slow line; and the time of a long step with its checkpoint.
_RECEIVE_SECONDS: Final = 900.0
_DRAIN_SECONDS: Final = 120.0
_MAX_THREADS: Final = 1024


@dataclass(frozen=True, slots=True)
class TrainNodeSettings:
    """
    How a training node is started, and on which machine.

    `weights` is the base that it trains, `model` its public name; `state` a folder of this process
    alone, for what is sealed and for a copy of the base. `threads` and `device` are those of
    training processes, `ranks` how many of them a job may have. `images` is a folder of image
    layouts, named by digest: with it the node runs images of owners too (training-image.md), `gpus`
    hands them the GPUs. `invites` are nodes that are asked to join jobs, `takes_seats` lets this
    one be asked; `link` is where the seat beside this one finds it, `host` and any port unless
    named. `ray` offers jobs Ray beside the ring.
    """

    host: str
    port: int
    model: str
    weights: Path
    machine: MachineSettings
    state: Path
    threads: int = 1
    device: Device = "cpu"
    ranks: int = 1
    idle_seconds: int | None = None
    images: Path | None = None
    gpus: tuple[str, ...] = ()
    invites: tuple[InvitedNode, ...] = ()
    takes_seats: bool = False
    link: tuple[str, int] | None = None
    ray: bool = False


async def serve_train_node(
    settings: TrainNodeSettings,
    *,
    clock: Clock | None = None,
    start: Callable[[OrderForm], ReplayingRun] = TrainingProcess,
    ready: Callable[[Roots], None] = lambda _roots: None,
) -> None:
    """
    Boot and serve until told to stop; then the running job is paused, as far as time allows.

    `clock` is this machine's unless another is given, `start` begins a training process, `ready` is
    told under whose roots the node proves itself, once it has booted. Raises `ConfigurationError`,
    `Rejected` for a GPU that is not accepted, `Unavailable` where the disk or an edge fails.
    """
    _require_settings(settings)
    clock, entropy = clock or SystemClock(), SystemEntropy()
    async with AsyncExitStack() as stack:
        machine = await stack.enter_async_context(
            open_machine("model", settings.machine, clock=clock, entropy=entropy)
        )
        keys = make_node_keys(
            role="model",
            software=machine.software,
            now=clock.now(),
            lifetime=LIFETIME,
            entropy=entropy,
        )
        await measure_node(machine.guest, role="model", software=machine.software)
        place = await asyncio.to_thread(_take_place, settings.state, stack)
        # An image is not root in its container; the folder above keeps others of this machine out.
        base = await asyncio.to_thread(
            _hold_base, settings.weights, place / "base", readable=settings.images is not None
        )
        stack.callback(shutil.rmtree, base.path, ignore_errors=True)
        await measure_model(
            machine.guest,
            name=settings.model,
            weights=base.manifest.digest,
            quantisation=base.quantisation,
        )
        await gate_machine(machine, stack, clock=clock, entropy=entropy)
        await measure_ready(machine.guest)
        attester = Attester(
            keys.keyset, machine.guest, machine.collateral, machine.devices, base.unchanged
        )
        identity = NodeIdentity(
            keys, attester, clock=clock, entropy=entropy, simulated=machine.roots.simulated
        )
        store = await asyncio.to_thread(SealedStore, place / "files", entropy)
        files = TrainFiles(store, clock=clock, entropy=entropy)
        proven = ProvenBase(
            identity, machine.guest, machine.roots, settings.model, base.manifest.digest
        )
        ports = TrainPorts(
            node=proven,
            files=files,
            start=start,
            start_ranks=start_ranks,
            start_seat=start_seat,
            folder=base.path,
            checkpoints=place / "checkpoints",
            threads=settings.threads,
            device=settings.device,
            ranks=settings.ranks,
            clock=clock,
            entropy=entropy,
            images=await open_images(settings, stack, proven, base),
            party=await _open_party(settings, stack),
        )
        jobs = TrainJobs(ports)
        replays = TrainReplays(ports, jobs.pool)
        jobs.start()
        stack.push_async_callback(jobs.close)
        replays.start()
        stack.push_async_callback(replays.close)
        seats = SeatHost(
            ports, jobs.pool, _link(settings), occupied=lambda: jobs.busy or replays.busy
        )
        stack.push_async_callback(seats.close)
        served = ServedModel(
            name=settings.model,
            weights_digest=base.manifest.root_digest,
            manifest_digest=base.manifest.digest.hex(),
            upstream_name=settings.model,
            created=int(clock.now().timestamp()),
        )

        def drain() -> None:
            seats.drain()
            replays.drain()
            jobs.drain()

        ready(machine.roots)
        await serve(
            NodeApp(
                identity,
                TrainApp(
                    files, jobs, replays, served, seats=seats if settings.takes_seats else None
                ),
            ),
            host=settings.host,
            port=settings.port,
            idle_seconds=settings.idle_seconds,
            service=Service(
                drain=drain,
                drain_seconds=_DRAIN_SECONDS,
                receive_seconds=_RECEIVE_SECONDS,
                busy=lambda: jobs.busy or replays.busy or seats.busy,
            ),
        )


def _require_settings(settings: TrainNodeSettings) -> None:
    # Looked for, not loaded: they belong to training processes.
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"a training node needs {', '.join(missing)}: pip install 'confide[train]'"
        )
    if not 1 <= settings.threads <= _MAX_THREADS:
        raise ConfigurationError(f"a training process has 1 to {_MAX_THREADS} threads")
    ranks = settings.ranks + sum(node.ranks for node in settings.invites)
    if settings.ranks < 1 or ranks > MAX_WORLD:
        raise ConfigurationError(f"a job has 1 to {MAX_WORLD} ranks")
    if len(settings.invites) >= MAX_SEATS:
        raise ConfigurationError(f"a job has at most {MAX_SEATS} seats")
    for node in settings.invites:
        require_node_url(node.url)
    if settings.ray:
        _require_ray(settings)


def _require_ray(settings: TrainNodeSettings) -> None:
    if not (settings.invites or settings.takes_seats):
        raise ConfigurationError("--ray links nodes: it goes with --seat or --serve-seats")
    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError("--ray needs ray: pip install 'confide[ray]'")
    try:
        seat_address(_link(settings).host)
    except FormatError as error:
        raise ConfigurationError(
            "--ray needs --seat-address with the IPv4 address at which others reach this node"
        ) from error


async def _open_party(settings: TrainNodeSettings, stack: AsyncExitStack) -> PartyPorts | None:
    """Return what is needed to invite other nodes; None where there are none."""
    if not settings.invites:
        return None
    http = await stack.enter_async_context(node_client())
    return PartyPorts(nodes=settings.invites, link=_link(settings), http=http, wall=SystemClock())


def _link(settings: TrainNodeSettings) -> LinkPlace:
    host, port = settings.link or (settings.host, 0)
    engines = ENGINES if settings.ray else ENGINES[:1]
    return LinkPlace(settings.host, host, port, engines)


def _take_place(state: Path, stack: AsyncExitStack) -> Path:
    """
    Return the empty folder of this process below `state`, locked for as long as it runs. Blocks.

    What an earlier node left there goes: nobody could open it, or knows of it.
    """
    place = state / "training-node"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk = SystemDisk()
        stack.callback(disk.unlock, disk.lock(place / "lock"))
        for name in ("base", "checkpoints"):
            shutil.rmtree(place / name, ignore_errors=True)
    except OSError as error:
        raise ConfigurationError(
            f"--state: the folder cannot be used, or another node uses it: {error.strerror}"
        ) from error
    return place


def _hold_base(weights: Path, copy: Path, *, readable: bool) -> WatchedWeights:
    """Measure the base, and keep a copy of exactly that which nobody else writes. Blocks."""
    manifest = measure_weights(weights)
    copy_weights(weights, manifest, copy, readable=readable)
    held = WatchedWeights.measure(copy)
    if held.manifest.digest != manifest.digest:
        raise Unavailable("the weights changed while they were copied")
    return held
