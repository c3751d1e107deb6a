"""Frames of a node that may lie: nothing becomes an output, a screen or a session unseen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from confide.client.receive import Progress, Received
from confide.client.staging import StagedOutputs
from confide.errors import FormatError, RemoteProtocolError, RunRefused, Unavailable
from confide.wire.frames import FrameKind
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from confide.wire.json import JsonValue


@pytest.fixture
def shown() -> list[Progress]:
    return []


@pytest.fixture
def received(tmp_path: Path, shown: list[Progress]) -> Iterator[Received]:
    with StagedOutputs(tmp_path / "out") as staged:
        yield Received(staged, 1, shown.append)


def take(received: Received, kind: FrameKind, value: dict[str, JsonValue]) -> None:
    received.take(kind, jcs(value))


def test_a_file_in_plaintext_counts_as_an_output(received: Received) -> None:
    take(received, FrameKind.FILE, {"path": "a", "bytes": 2})
    received.take(FrameKind.DATA, b"hi")
    assert received.outputs.names == ("a",)
    assert len(received.outputs.digests) == 1


def test_a_file_sealed_to_a_named_recipient_is_kept_apart(received: Received) -> None:
    take(received, FrameKind.FILE, {"path": "a.0.sealed", "bytes": 0, "recipient": 0})
    assert received.outputs.names == ()
    assert received.outputs.sealed_names == ("a.0.sealed",)


def test_a_file_sealed_to_nobody_the_expectation_names_is_refused(received: Received) -> None:
    with pytest.raises(FormatError):
        take(received, FrameKind.FILE, {"path": "a", "bytes": 0, "recipient": 1})


def test_a_member_nobody_understands_is_refused(received: Received) -> None:
    with pytest.raises(FormatError):
        take(received, FrameKind.FILE, {"path": "a", "bytes": 0, "verified": True})


def test_progress_is_made_printable(received: Received, shown: list[Progress]) -> None:
    take(received, FrameKind.PROGRESS, {"step": "inputs\x1b[2J", "detail": "x\ny"})
    assert shown == [Progress("inputs?[2J", "x?y")]


def test_nothing_follows_the_end(received: Received) -> None:
    received.take(FrameKind.END, b"")
    with pytest.raises(RemoteProtocolError):
        take(received, FrameKind.FILE, {"path": "a", "bytes": 0})


def test_a_frame_that_only_clients_send_is_refused(received: Received) -> None:
    with pytest.raises(RemoteProtocolError):
        take(received, FrameKind.HEADER, {})


def test_console_text_is_no_output(received: Received) -> None:
    take(received, FrameKind.CONSOLE, {"stream": "stdout", "bytes": 5})
    received.take(FrameKind.DATA, b"hello")
    assert received.console == {"stdout": b"hello"}
    assert received.outputs.names == ()


def test_a_refusal_becomes_findings(received: Received) -> None:
    refusal: dict[str, JsonValue] = {
        "reason": "node-busy",
        "step": "run/1",
        "detail": "4 runs at once",
        "findings": ["step run/1 fail", "step run/2 fail"],
    }
    with pytest.raises(RunRefused) as error:
        take(received, FrameKind.REFUSED, refusal)
    assert error.value.reason == "node-busy"
    assert len(error.value.failures) == 2


def test_a_refusal_for_an_unknown_reason_says_nothing_about_trust(received: Received) -> None:
    refusal: dict[str, JsonValue] = {
        "reason": "because",
        "step": "run/1",
        "detail": "x",
        "findings": [],
    }
    with pytest.raises(Unavailable):
        take(received, FrameKind.REFUSED, refusal)
