"""`confide node agent|model|train`: one node in the foreground. `confide up` starts some."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.linux import allow_open_files
from confide.adapters.paths import Paths
from confide.cli.foreground import run_node, say
from confide.cli.places import read_bounded, require_no_password
from confide.cli.seats import parse_invited, parse_link
from confide.engines.local import LocalEngine
from confide.node.hardware import MachineSettings
from confide.node.serve_agent import AgentNodeSettings, serve_agent_node
from confide.node.serve_model import ModelNodeSettings, serve_model_node
from confide.node.serve_train import TrainNodeSettings, serve_train_node
from confide.node.tenancy import Cache, TenancySettings
from confide.wire.faces import FaceName

if TYPE_CHECKING:
    from confide.trust.roots import Roots

app = typer.Typer(help="Run one node in the foreground.", no_args_is_help=True)

Port = Annotated[int, typer.Option(help="TCP port to listen on.")]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Idle = Annotated[int | None, typer.Option(help="Stop after so many idle seconds.")]
Fault = Annotated[str, typer.Option(help="SIMULATED fault to inject, by name.")]
Kind = Annotated[
    Literal["simulated", "tdx", "dstack"],
    typer.Option(help="What proves this node; see `confide doctor`."),
]
Pccs = Annotated[str | None, typer.Option(help="PCCS to ask instead of Intel; real hardware.")]

GpuPolicy = Annotated[
    Path | None,
    typer.Option(help="The GPUs this node accepts: `gpu` of an Expectation, JSON."),
]


def _machine(
    kind: Literal["simulated", "tdx", "dstack"],
    *,
    fault: str,
    pccs: str | None,
    gpu_policy: Path | None = None,
    launch: Path | None = None,
    label: str = "",
) -> tuple[Paths, MachineSettings]:
    environment = dict(os.environ)  # noqa: TID251 - the command line reads it once
    paths = Paths.from_environment(environment)
    if kind == "simulated":
        engine = LocalEngine(paths, environment, clock=SystemClock(), entropy=SystemEntropy())
        return paths, MachineSettings(kind=kind, seed=engine.seed(), fault=fault, label=label)
    return paths, MachineSettings(
        kind=kind,
        fault=fault,
        gpu_policy=gpu_policy,
        pccs=pccs,
        cache=paths.endorsements,
        launch=launch,
        label=label,
    )


@app.command()
def agent(
    port: Port,
    model_url: Annotated[str, typer.Option(help="URL of the model node to prove and use.")],
    broker_url: Annotated[
        str, typer.Option(help="URL of the key broker; without one, no secrets and no state.")
    ] = "",
    host: Host = "127.0.0.1",
    idle_seconds: Idle = None,
    simulate_fault: Fault = "",
    machine: Kind = "simulated",
    pccs: Pccs = None,
    model_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The API key that the model node asks for."),
    ] = None,
) -> None:
    """Run an agent node."""
    model_key = ""
    if model_key_file is not None:
        model_key = read_bounded(model_key_file, "API key").decode("ascii", "replace").strip()
    paths, chosen = _machine(machine, fault=simulate_fault, pccs=pccs)
    settings = AgentNodeSettings(
        host=host,
        port=port,
        model_url=model_url,
        broker_url=broker_url,
        images=paths.images,
        machine=chosen,
        idle_seconds=idle_seconds,
        model_key=model_key,
    )
    run_node(serve_agent_node(settings))


@app.command()
def model(
    port: Port,
    model: Annotated[str, typer.Option(help="Public name of the model.")],
    weights: Annotated[
        Path | None,
        typer.Option(help="Directory of weights to serve, or that the --upstream engines read."),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Record of the training that made --weights; callers can get it."
        ),
    ] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(help="URL of an OpenAI-compatible engine; several serve one model."),
    ] = None,
    upstream_model: Annotated[str, typer.Option(help="Name of the model there.")] = "",
    upstream_host: Annotated[
        list[str] | None,
        typer.Option(help="Host beside loopback to which prompts may go in plaintext."),
    ] = None,
    pass_route: Annotated[
        list[str] | None,
        typer.Option(help="Route of the engine that passes through: 'POST /v1/example'."),
    ] = None,
    face: Annotated[
        list[FaceName] | None,
        typer.Option(help="Another service's protocol to speak as well; off unless named."),
    ] = None,
    face_tls_port: Annotated[
        int | None,
        typer.Option(help="Port for faces whose TLS ends in this node, with a key of this boot."),
    ] = None,
    launch_document: Annotated[
        Path | None,
        typer.Option(help="What MRCONFIGID was made from; real hardware, for --face near."),
    ] = None,
    host: Host = "127.0.0.1",
    idle_seconds: Idle = None,
    simulate_fault: Fault = "",
    machine: Kind = "simulated",
    gpu_policy: GpuPolicy = None,
    pccs: Pccs = None,
    keys: Annotated[
        str, typer.Option(metavar="DATABASE", help="Only callers with a key: `confide keys`.")
    ] = "",
    tenant_cache: Annotated[
        Cache | None,
        typer.Option(help="The engine's prefix cache: salted by tenant (with --keys), or shared."),
    ] = None,
    metrics: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Serve /metrics there, on this machine.")
    ] = "",
    traces: Annotated[
        str, typer.Option(metavar="URL", help="Send spans to this OTLP collector.")
    ] = "",
    telemetry_by_key: Annotated[
        bool, typer.Option(help="Name the key of a call in metrics and traces.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Processes that serve side by side, one a core.")
    ] = 1,
    max_calls: Annotated[
        int, typer.Option(min=1, max=4096, help="Calls in progress at each --upstream.")
    ] = 64,
    engine_seconds: Annotated[
        int,
        typer.Option(
            min=1, max=1800, help="How long to wait for an --upstream to begin its answer."
        ),
    ] = 600,
) -> None:
    """Run a model node."""
    paths, chosen = _machine(
        machine,
        fault=simulate_fault,
        pccs=pccs,
        gpu_policy=gpu_policy,
        launch=launch_document,
    )
    require_no_password(keys, "--keys")
    tenancy = TenancySettings(
        keys=keys,
        password=os.environ.get("PGPASSWORD"),  # noqa: TID251 - the command line reads it once
        cache=tenant_cache,
        metrics=metrics,
        traces=traces,
        by_key=telemetry_by_key,
    )
    settings = ModelNodeSettings(
        host=host,
        port=port,
        model=model,
        machine=chosen,
        state=paths.state,
        weights=weights,
        record=None if record is None else read_bounded(record, "training record"),
        # `confide up` names several in one word: a URL holds no comma that would separate.
        upstream_urls=tuple(url for word in upstream or () for url in word.split(",") if url),
        upstream_model=upstream_model,
        upstream_hosts=tuple(upstream_host or ()),
        pass_routes=tuple(pass_route or ()),
        faces=tuple(sorted(set(face or ()))),
        face_tls_port=face_tls_port,
        idle_seconds=idle_seconds,
        tenancy=tenancy,
        workers=workers,
        max_calls=max_calls,
        engine_seconds=engine_seconds,
    )
    allow_open_files()
    run_node(serve_model_node(settings))


@app.command()
def train(
    port: Port,
    model: Annotated[str, typer.Option(help="Public name of the base model.")],
    weights: Annotated[Path, typer.Option(help="Directory of the base that is trained.")],
    host: Host = "127.0.0.1",
    state: Annotated[
        Path | None,
        typer.Option(help="Folder of this node alone, for what is sealed; its own unless named."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Threads of each training process; the cores shared."),
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="What a training process computes on.")
    ] = "cpu",
    ranks: Annotated[
        int,
        typer.Option(min=1, max=1024, help="Processes that a job may have, each with a GPU."),
    ] = 1,
    idle_seconds: Idle = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Run images of owners too: a folder of image layouts, named by digest.",
        ),
    ] = None,
    image_gpu: Annotated[
        list[str] | None,
        typer.Option(metavar="CDI", help="GPUs for such images, as nvidia.com/gpu=all."),
    ] = None,
    seat: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL[=RANKS]", help="Training node to invite to jobs, and for how many ranks."
        ),
    ] = None,
    serve_seats: Annotated[
        bool, typer.Option("--serve-seats", help="Take seats in jobs of other training nodes.")
    ] = False,
    seat_address: Annotated[
        str,
        typer.Option(
            metavar="HOST[:PORT]", help="Where the seat before this one reaches it; --host."
        ),
    ] = "",
    ray: Annotated[
        bool, typer.Option("--ray", help="Let jobs link nodes by Ray (confide train --engine ray).")
    ] = False,
    simulate_fault: Fault = "",
    simulate_machine: Annotated[
        str, typer.Option(metavar="LABEL", help="Another SIMULATED machine, with another GPU.")
    ] = "",
    machine: Kind = "simulated",
    gpu_policy: GpuPolicy = None,
    pccs: Pccs = None,
) -> None:
    """Run a training node in the foreground. Ctrl-C lets the job at work rest, and ends it."""
    paths, chosen = _machine(
        machine,
        fault=simulate_fault,
        pccs=pccs,
        gpu_policy=gpu_policy,
        label=simulate_machine,
    )
    settings = TrainNodeSettings(
        host=host,
        port=port,
        model=model,
        weights=weights,
        machine=chosen,
        state=state or paths.state / "training" / str(port),
        threads=threads or max(1, len(os.sched_getaffinity(0)) // ranks),
        device=device,
        ranks=ranks,
        idle_seconds=idle_seconds,
        images=images,
        gpus=tuple(image_gpu or ()),
        invites=tuple(map(parse_invited, seat or ())),
        takes_seats=serve_seats,
        link=parse_link(seat_address) if seat_address else None,
        ray=ray,
    )

    def ready(roots: Roots) -> None:
        say(f"training node of {model} at http://{host}:{port}; Ctrl-C ends it")
        if roots.simulated:
            say("SIMULATED: the checks are real; the hardware and its roots are not. For testing")

    run_node(serve_train_node(settings, ready=ready))
