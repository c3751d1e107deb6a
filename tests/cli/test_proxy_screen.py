"""What `confide proxy` shows: lines and the live view. No terminal is needed to look at them."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import timedelta

import pytest
from nodes import NOW
from rich.console import Console

from confide.cli.proxy_screen import ProxyView, served_document, served_line
from confide.client.held import Change, NodeState
from confide.client.proxy import Served
from confide.errors import Reason

SERVED = Served(
    at=NOW,
    method="POST",
    path="/v1/chat/completions",
    model="support-notes",
    status=200,
    input_tokens=7,
    output_tokens=5,
    seconds=0.0384,
    receipt="rcpt-1",
    problem=None,
)
NODE = NodeState(
    "https://node.example", NOW, NOW + timedelta(hours=1), bytes(32), simulated=True,
    refused=None, changes=(),
)  # fmt: skip


def shown(view: ProxyView, *nodes: NodeState) -> str:
    console = Console(width=160, file=io.StringIO())
    with console.capture() as captured:
        console.print(view.render(nodes, NOW))
    return captured.get()


def test_a_line_says_what_happened_and_no_word_of_it() -> None:
    assert served_line(SERVED).plain == (
        "12:00:00  POST /v1/chat/completions  support-notes  200  7+5 tok  38 ms  rcpt-1"
    )
    failed = replace(SERVED, receipt=None, model=None, output_tokens=None, problem="unavailable")
    assert served_line(failed).plain.endswith("200  -  38 ms  unavailable")
    assert served_line(failed).style == "red"


def test_what_a_program_put_into_a_route_does_nothing_to_a_terminal() -> None:
    odd = replace(SERVED, path="/v1/\x1b[2Jx" + "y" * 200)
    assert "\x1b" not in served_line(odd).plain
    assert len(served_line(odd).plain) < 200


def test_programs_get_the_same() -> None:
    found = served_document(SERVED)
    assert (found["receipt"], found["milliseconds"], found["at"]) == (
        "rcpt-1", 38.4, "2026-11-22T12:00:00Z"
    )  # fmt: skip


def test_the_view_shows_trust_first_and_says_simulated() -> None:
    view = ProxyView("http://127.0.0.1:8484")
    view.add(SERVED)
    view.add(replace(SERVED, receipt=None, problem="receipt-missing", status=502, seconds=0.1))
    text = shown(view, NODE)
    assert "SIMULATED" in text
    assert text.index("proven") < text.index("rcpt-1")
    assert "2 calls, 1 failed, 1 receipts, median 69 ms" in text
    assert "2026-11-22T13:00:00Z" in text


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (replace(NODE, refused="keyset-mismatch"), "refused: keyset-mismatch"),
        (replace(NODE, until=NOW - timedelta(seconds=1)), "expired"),
        (replace(NODE, until=None, keyset=None), "not asked"),
        (replace(NODE, changes=(Change(NOW, None),)), "rotated"),
        (replace(NODE, changes=(Change(NOW, Reason.KEYSET_MISMATCH),)), "other keys"),
    ],
)
def test_every_state_of_trust_has_a_word(node: NodeState, words: str) -> None:
    assert words in shown(ProxyView("http://127.0.0.1:8484"), node)
