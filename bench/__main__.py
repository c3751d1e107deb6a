"""Run the benchmarks: `python -m bench [--json] [--only GROUP]` in the root of the repository."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# The record that is verified is made by the simulated nodes of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "simulators"))

from bench.channel import channel_rows
from bench.client import proxy_rows
from bench.data import data_rows
from bench.gateway import appraisal_rows, first_token_rows, gateway_rows
from bench.log import large_log_rows, log_rows
from bench.many import flat_rows, idle_rows, large_rows, latency_rows, worker_rows
from bench.nodes import Place
from bench.ranks import rank_rows
from bench.records import record_rows
from bench.replay import replay_rows
from bench.runs import run_rows
from bench.start import start_rows
from bench.streams import stream_rows
from bench.training import training_rows
from bench.upload import upload_rows
from bench.verification import verification_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rows import Row

GROUPS = (
    "channel",
    "streams",
    "verification",
    "start",
    "gateway",
    "latency",
    "large",
    "idle",
    "workers",
    "proxy",
    "first-token",
    "run",
    "log",
    "data",
    "upload",
    "records",
    "replay",
    "training",
    "ranks",
)
# Minutes, or much disk: measured when it is asked for.
SLOW_GROUPS = ("log-large", "flat")

_ALONE_ROWS = {
    "channel": channel_rows,
    "streams": stream_rows,
    "verification": verification_rows,
    "start": start_rows,
    "log": log_rows,
    "data": data_rows,
    "records": record_rows,
    "replay": replay_rows,
    "training": training_rows,
    "ranks": rank_rows,
    "log-large": large_log_rows,
}
_NODE_ROWS = {
    "gateway": gateway_rows,
    "latency": latency_rows,
    "large": large_rows,
    "idle": idle_rows,
    "workers": worker_rows,
    "proxy": proxy_rows,
    "upload": upload_rows,
    "flat": flat_rows,
}


def rows(groups: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of `groups`, in order."""
    for name, measure in _ALONE_ROWS.items():
        if name in groups:
            yield from measure()
    if not {*_NODE_ROWS, "first-token", "run"} & set(groups):
        return
    with Place() as place:
        yield from _node_rows(place, groups)


def _node_rows(place: Place, groups: tuple[str, ...]) -> Iterator[Row]:
    if "first-token" in groups:
        yield from appraisal_rows(place)
        yield from first_token_rows(place)
    if "run" in groups:
        yield from run_rows(place)
    for name, measure in _NODE_ROWS.items():
        if name in groups:
            yield from measure(place)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _text(row: Row) -> str:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    met = {True: "met", False: "MISSED", None: ""}[row.met]
    numbers = f"{_number(row.value):>9} {row.unit:<12} {_number(row.peer):>9} {ratio:>6}"
    return f"{row.name:<94} {numbers}  {met:<7}{row.budget}".rstrip()


def main() -> None:
    """Print one line for each row as it is measured."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object for each row")
    parser.add_argument(
        "--only", action="append", choices=(*GROUPS, *SLOW_GROUPS), help="measure this group"
    )
    given = parser.parse_args()
    if not given.json:
        print(f"{'what':<94} {'value':>9} {'unit':<12} {'peer':>9} {'ratio':>6}  budget")
    for row in rows(tuple(given.only or GROUPS)):
        print(json.dumps(row.as_json()) if given.json else _text(row), flush=True)


if __name__ == "__main__":
    main()
