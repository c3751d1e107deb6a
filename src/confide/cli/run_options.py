"""Options of `run` and `chat`: which agent, over which nodes, and where things go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AgentArgument",
    "ExpectationOption",
    "InputOption",
    "ModelOption",
    "NodeOption",
    "OutputOption",
    "ReceiptOption",
    "RootsOption",
    "UpstreamOption",
    "WeightsOption",
]

AgentArgument = Annotated[
    str, typer.Argument(metavar="AGENT", help="Agent folder, or image pinned by digest.")
]
InputOption = Annotated[
    list[Path] | None,
    typer.Option("--input", metavar="PATH", help="Input file or directory; repeat for more."),
]
OutputOption = Annotated[
    Path | None, typer.Option(help="Directory for verified outputs. Default: beside the receipt.")
]
ExpectationOption = Annotated[
    Path | None,
    typer.Option(help="Expectation to hold the nodes to. Default: made for this folder."),
]
ReceiptOption = Annotated[
    Path | None, typer.Option(help="Where the receipt goes. Default: below the data directory.")
]
NodeOption = Annotated[
    str | None, typer.Option(metavar="URL", help="Agent node. Default: local, SIMULATED.")
]
RootsOption = Annotated[
    str | None,
    typer.Option(metavar="vendor|FILE", help="Roots for --node: vendor or simulated roots."),
]
UpstreamOption = Annotated[
    str, typer.Option(metavar="URL", help="OpenAI-compatible engine for the local nodes.")
]
ModelOption = Annotated[str, typer.Option(metavar="NAME", help="Model to serve locally.")]
WeightsOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Directory of that model, to serve and measure locally."),
]
