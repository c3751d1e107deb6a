"""`confide demo`: the bundled example, end to end, then verified again as a stranger would.

`confide demo train` is the same for a training (`demo_train`).
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from confide.cli import exits
from confide.cli.demo_train import app as training
from confide.cli.job import Job, Request
from confide.cli.localnodes import local_engine
from confide.cli.places import Places
from confide.cli.result import log_words, roots_digest
from confide.cli.run import run_job
from confide.cli.screen import Screen, command_line, heading, printable
from confide.client.local import example_folder
from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["app"]

app = typer.Typer(invoke_without_command=True, add_completion=False)
app.add_typer(training)
_EXAMPLE = "followup"
_DRAWN = "pseudonym-key"
_EXCERPT = "followup.md"
_EXCERPT_LINES = 16


@app.callback()
def demo(
    ctx: typer.Context,
    upstream: Annotated[
        str, typer.Option(metavar="URL", help="OpenAI-compatible engine instead of the bundled.")
    ] = "",
    model: Annotated[str, typer.Option(metavar="NAME", help="Name of the model there.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Run the bundled example end to end: before, during, after. SIMULATED hardware."""
    if ctx.invoked_subcommand is not None:
        if upstream or model or as_json:
            raise ConfigurationError("options of confide demo train stand after train")
        return
    screen = Screen.of(ctx, as_json=as_json)
    folder = example_folder(_EXAMPLE)
    sample = folder / "sample" / "notes.csv"
    request = Request(
        str(folder),
        "batch",
        (sample,),
        upstream=upstream,
        model=model,
        release=True,
        draw=(_DRAWN,),
    )
    engine = local_engine(Places.here())
    before = any(state.alive for state in engine.status())
    try:
        with Job(request) as job:
            code = run_job(screen, job)
            if code == exits.ACCEPTED:
                code = _as_a_stranger(screen, job)
            if code == exits.ACCEPTED:
                _excerpt(screen, job.destination / _EXCERPT)
                _try_it(screen, folder)
    finally:
        if not before:
            engine.down()
    raise typer.Exit(code)


def _as_a_stranger(screen: Screen, job: Job) -> int:
    words = [
        "verify",
        str(job.receipt_path),
        "--simulated-roots",
        f"sha256:{roots_digest(job)}",
        "--outputs",
        str(job.destination),
        *log_words(job),
    ]
    screen.show(
        heading("Verified again, by another process, offline"),
        Text(f"$ confide {' '.join(words[:2])} …", style="dim"),
    )
    if screen.as_json:
        words.append("--json")
    sys.stdout.flush()
    # The same interpreter, a process that shares nothing with the run but the receipt file.
    return subprocess.run([sys.executable, "-m", "confide", *words], check=False).returncode  # noqa: S603 - our own program and arguments


def _excerpt(screen: Screen, path: Path) -> None:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[:_EXCERPT_LINES]
    screen.show(
        heading(_EXCERPT, "what the agent wrote, verified"),
        *(Text(f"  {printable(line)}") for line in lines),
    )


def _try_it(screen: Screen, folder: Path) -> None:
    screen.show(
        heading("Your turn", "a CSV with columns `customer` and `note`; run it twice"),
        command_line(f"confide run {folder} --input notes.csv"),
    )
