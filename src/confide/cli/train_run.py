"""`confide train RECIPE`, and what can be done with a training that was begun: the verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from confide.cli.places import Places
from confide.cli.screen import Screen

__all__ = ["training"]

training = typer.Typer()

Where = Annotated[
    str, typer.Argument(metavar="DIR", help="The folder of the training, or its name.")
]
Checkpoints = Annotated[
    bool, typer.Option("--checkpoints", help="Fetch the sealed checkpoints too, for a replay.")
]
Cancels = Annotated[
    bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels the job in the node, too.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@training.command()
def run(
    ctx: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to train, and how.")],
    data: Annotated[Path, typer.Option(metavar="FILE", help="The rows: JSON lines.")],
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows that are only evaluated on.")
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The training node. Default: local, SIMULATED."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The base, for a local node. Default: the bundled model."),
    ] = None,
    expectation: Annotated[
        Path | None,
        typer.Option("--expectation", "--expect", metavar="FILE", help="What it has to prove."),
    ] = None,
    roots: Annotated[
        str | None,
        typer.Option(metavar="vendor|FILE", help="Roots for --node: vendor or simulated roots."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Keys and results; default: below the data."
        ),
    ] = None,
    suffix: Annotated[str, typer.Option(metavar="NAME", help="A name for the tuned model.")] = "",
    engine: Annotated[
        Literal["ring", "ray"],
        typer.Option(help="What links nodes that train together; ray where they offer it."),
    ] = "ring",
    checkpoints: Checkpoints = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when the job is asked for.")
    ] = False,
    cancel_on_interrupt: Cancels = False,
    as_json: Json = False,
) -> None:
    """Train a model on private rows, and prove how it was made.

    `confide train RECIPE.toml --data ROWS.jsonl` is short for this.

    Reads the rows and proves the node before anything is sent, sends the rows sealed, shows how it
    goes on, and opens the results only when the record and everything that came hold. What was
    interrupted goes on with `confide train resume DIR`. Exit codes: 0 accepted, 10 rejected, 20
    unavailable, 30 malformed, 2 usage.
    """
    from confide.cli.train_target import (  # noqa: PLC0415 - a record is shown without
        default_folder,
        read_recipe,
        require_sendable,
        target_of,
    )
    from confide.cli.train_work import Wishes, begin  # noqa: PLC0415 - as above

    screen, places = Screen.of(ctx, as_json=as_json), Places.here()
    wanted = read_recipe(recipe)
    # Before a local node is started for nothing.
    require_sendable(data, validation, suffix)
    target = target_of(places, wanted, node=node, expectation=expectation, roots=roots, base=base)
    wishes = Wishes(
        checkpoints=checkpoints,
        detach=detach,
        cancel_on_interrupt=cancel_on_interrupt,
        suffix=suffix,
    )
    folder = output or default_folder(places, recipe)
    rows = (data, validation)
    raise typer.Exit(begin(screen, places, target, wanted, folder, rows, wishes, engine=engine))


@training.command()
def resume(
    ctx: typer.Context,
    folder: Where,
    node: Annotated[
        str | None, typer.Option(metavar="URL", help="Go on at another node: the one before ended.")
    ] = None,
    checkpoints: Checkpoints = False,
    cancel_on_interrupt: Cancels = False,
    as_json: Json = False,
) -> None:
    """Take up a training: send the rest, let a paused or failed job go on, open the results.

    With --node it goes on at another node, from the last checkpoint that was kept here, if that
    node meets the same Expectation and holds the proof of the node before to it.
    """
    from confide.cli.train_target import find_folder  # noqa: PLC0415 - a record is shown without
    from confide.cli.train_work import Wishes, go_on  # noqa: PLC0415 - as above

    screen, places = Screen.of(ctx, as_json=as_json), Places.here()
    wishes = Wishes(checkpoints=checkpoints, cancel_on_interrupt=cancel_on_interrupt)
    found = find_folder(places, folder)
    raise typer.Exit(go_on(screen, places, found, wishes, node=node))


@training.command("open")
def open_(
    ctx: typer.Context, folder: Where, checkpoints: Checkpoints = False, as_json: Json = False
) -> None:
    """Open the results of a job that has ended, once everything holds. Does not wait for it."""
    from confide.cli.train_target import find_folder  # noqa: PLC0415 - a record is shown without
    from confide.cli.train_work import open_results  # noqa: PLC0415 - as above

    screen, places = Screen.of(ctx, as_json=as_json), Places.here()
    found = find_folder(places, folder)
    raise typer.Exit(open_results(screen, places, found, checkpoints=checkpoints))


@training.command()
def pause(ctx: typer.Context, folder: Where, as_json: Json = False) -> None:
    """Let a job rest after its next checkpoint; `resume` lets it go on."""
    _change(ctx, folder, "pause", as_json=as_json)


@training.command()
def cancel(ctx: typer.Context, folder: Where, as_json: Json = False) -> None:
    """End a job for good: what was computed is discarded in the node. Keys stay in the folder."""
    _change(ctx, folder, "cancel", as_json=as_json)


def _change(ctx: typer.Context, folder: str, what: str, *, as_json: bool) -> None:
    from confide.cli.train_manage import change  # noqa: PLC0415 - as above
    from confide.cli.train_target import find_folder  # noqa: PLC0415 - a record is shown without

    screen, places = Screen.of(ctx, as_json=as_json), Places.here()
    change(screen, places, find_folder(places, folder), what)


@training.command()
def jobs(ctx: typer.Context, as_json: Json = False) -> None:
    """List the trainings that this user began, and how each stands."""
    from confide.cli.train_manage import list_jobs  # noqa: PLC0415 - a record is shown without

    list_jobs(Screen.of(ctx, as_json=as_json), Places.here())
