"""What `confide proxy` shows: one line for each call, or one view of everything that matters now.

No content: when, which route, the model that was proven, how long, which receipt.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from confide.cli.screen import fields, heading, printable, shortened, simulated_line
from confide.wire.keyset import format_time

if TYPE_CHECKING:
    from datetime import datetime

    from confide.client.held import NodeState
    from confide.client.proxy import Served
    from confide.wire.json import JsonValue

__all__ = ["ProxyView", "served_document", "served_line"]

_ROWS = 16
_LATENCIES = 512


def served_line(served: Served) -> Text:
    """Return the line of one call."""
    good = served.problem is None and served.status < 400
    tokens = "" if served.output_tokens is None else f"{served.input_tokens}+{served.output_tokens}"
    cells = (
        f"{served.at:%H:%M:%S}",
        f"{served.method} {printable(served.path, max_chars=60)}",
        printable(served.model or "-", max_chars=40),
        str(served.status),
        f"{tokens} tok" if tokens else "-",
        f"{served.seconds * 1000:.0f} ms",
        served.receipt or served.problem or "-",
    )
    return Text("  ".join(cells), "" if good else "red")


def served_document(served: Served) -> dict[str, JsonValue]:
    """Return the same for programs."""
    return {
        "at": format_time(served.at),
        "method": served.method,
        "path": served.path,
        "model": served.model,
        "status": served.status,
        "input_tokens": served.input_tokens,
        "output_tokens": served.output_tokens,
        "milliseconds": round(served.seconds * 1000, 1),
        "receipt": served.receipt,
        "problem": served.problem,
    }


class ProxyView:
    """The live view: what is trusted and until when, and the last calls."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._last: deque[Served] = deque(maxlen=_ROWS)
        self._seconds: deque[float] = deque(maxlen=_LATENCIES)
        self._calls = self._failed = self._receipts = 0

    def add(self, served: Served) -> None:
        """Take one call in."""
        self._last.append(served)
        self._calls += 1
        self._failed += served.problem is not None or served.status >= 500
        self._receipts += served.receipt is not None
        self._seconds.append(served.seconds)

    def render(self, nodes: tuple[NodeState, ...], now: datetime) -> RenderableType:
        """Return the view as of `now`."""
        parts: list[RenderableType] = [Text(f"confide proxy  {self._url}", "bold")]
        if any(node.simulated for node in nodes):
            parts.append(simulated_line())
        parts.append(heading("nodes"))
        parts += [_node(node, now) for node in nodes]
        middle = f"{median(self._seconds) * 1000:.0f} ms" if self._seconds else "-"
        counts = f"{self._calls} calls, {self._failed} failed, {self._receipts} receipts"
        parts += [heading("calls", f"{counts}, median {middle}")]
        parts += [served_line(served) for served in self._last]
        return Group(*parts)


def _node(node: NodeState, now: datetime) -> Table:
    if node.refused is not None:
        state = f"refused: {node.refused}"
    elif node.until is None:
        state = "not asked"
    else:
        state = "proven" if now <= node.until else "expired"
    rows = [(state, printable(node.url))]
    if node.keyset is not None and node.until is not None:
        rows.append(("keys", shortened(node.keyset.hex())))
        rows.append(("until", format_time(node.until)))
    if node.changes:
        last = node.changes[-1]
        how = "rotated" if last.reason is None else f"other keys ({last.reason})"
        rows.append(("changed", f"{format_time(last.at)}  {how}"))
    return fields(rows)
