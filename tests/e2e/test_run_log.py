"""Runs and the log: final by default, pending where it cannot be, and never silently unlogged."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from deployment import until

from confide.adapters.log_files import FileLog
from confide.receipts.file import parse_receipt_file

if TYPE_CHECKING:
    from newcomer import Newcomer
    from stub_openai import StubOpenAI

pytestmark = pytest.mark.container
ANALYST = Path(__file__).parents[2] / "examples" / "analyst"
SAMPLE = ANALYST / "sample" / "notes.csv"


def nodes(newcomer: Newcomer) -> dict[str, dict[str, Any]]:
    """The processes of the local stack by role, started where they are not running."""
    newcomer.confide("up", "--upstream", newcomer.upstream)
    status = [json.loads(line) for line in newcomer.confide("status", "--json")[1].splitlines()][-1]
    assert status["running"], status
    return {node["role"]: node for node in status["nodes"]}


def kill(newcomer: Newcomer, *roles: str) -> None:
    """As `kill -9`."""
    running = nodes(newcomer)
    for role in roles:
        os.kill(running[role]["pid"], signal.SIGKILL)


def as_named(newcomer: Newcomer, tmp_path: Path) -> tuple[object, ...]:
    """The words of a run on a node that is named, without a word about the log."""
    held = tmp_path / "held.json"
    words = ("--upstream", newcomer.upstream)
    assert newcomer.confide("expect", ANALYST, "-o", held, *words)[0] == 0
    roots = newcomer.home / ".config" / "confide" / "simulated-roots.json"
    url = nodes(newcomer)["agent"]["url"]
    return ("run", ANALYST, "--input", SAMPLE, "--expectation", held, "--node", url,
            "--roots", roots, "--json")  # fmt: skip


def events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def closed() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def policy_of(newcomer: Newcomer) -> Path:
    return newcomer.home / ".config" / "confide" / "local-log-policy"


@pytest.mark.slow
def test_the_local_log_is_started_again_where_it_died_during_the_run(
    newcomer: Newcomer, stub: StubOpenAI, tmp_path: Path
) -> None:
    code, seen = newcomer.run(ANALYST, "--input", SAMPLE)
    assert code == 0, seen
    size = seen[-1]["log"]["size"]
    gate = stub.gate("log-dies")
    notes = tmp_path / "notes.csv"
    notes.write_text("id,note\n1,hold:log-dies\n")
    words = ("run", ANALYST, "--input", notes, "--upstream", newcomer.upstream, "--json")
    process = newcomer.start(*words)
    gate.wait()
    kill(newcomer, "log", "witness")
    gate.opened.set()
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    log = events(out)[-1]["log"]
    assert (log["state"], log["index"], log["size"]) == ("final", size, size + 1)


def test_where_the_local_log_cannot_start_nothing_is_sent(newcomer: Newcomer) -> None:
    nodes(newcomer)
    newcomer.confide("down")
    lock = FileLog(newcomer.home / ".local/share/confide/log/entries")
    try:
        code, seen = newcomer.run(ANALYST, "--input", SAMPLE)
    finally:
        lock.close()
    assert code == 20
    assert "the log ended with status 2: configuration: " in seen[-1]["message"]
    assert seen[-1]["known"] == ["no input left this machine; nothing was executed"]


def test_a_run_that_failed_is_logged_too(newcomer: Newcomer, tmp_path: Path) -> None:
    notes = tmp_path / "notes.csv"
    notes.write_bytes(b"note\n\xff\xfe\n")
    code, seen = newcomer.run(ANALYST, "--input", notes)
    result = seen[-1]
    assert (code, result["verdict"], result["log"]["state"]) == (10, "rejected", "final")
    assert "run-failed" in {failure["reason"] for failure in result["failures"]}
    assert parse_receipt_file(Path(result["paths"]["receipt"]).read_bytes()).log is not None


def test_a_named_node_needs_a_log_or_the_word_that_there_is_none(
    newcomer: Newcomer, tmp_path: Path
) -> None:
    words = as_named(newcomer, tmp_path)
    before = set((newcomer.home / ".local/share/confide/runs").iterdir())
    code, out, _err = newcomer.confide(*words)
    assert code == 2
    assert "--log and --log-policy" in events(out)[-1]["message"]
    assert "--no-log" in events(out)[-1]["message"]
    assert set((newcomer.home / ".local/share/confide/runs").iterdir()) == before
    code, out, _err = newcomer.confide(*words, "--no-log")
    result = events(out)[-1]
    assert code == 0
    assert result["log"]["state"] == "off"
    assert "--log-policy" not in result["verify"]
    assert [e["state"] for e in events(out) if e.get("step") == "log"] == ["unfinished"]


def test_a_log_that_is_down_leaves_a_pending_receipt_which_the_next_run_settles(
    newcomer: Newcomer, tmp_path: Path
) -> None:
    words = as_named(newcomer, tmp_path)
    held = ("--log-policy", policy_of(newcomer))
    code, out, _err = newcomer.confide(*words, "--log", closed(), *held, "--log-wait", "0")
    result = events(out)[-1]
    # The verdict is that of the receipt; that it is not final is said beside it.
    assert (code, result["verdict"], result["log"]["state"]) == (0, "accepted", "pending")
    receipt, kept = Path(result["paths"]["receipt"]), Path(result["log"]["kept"])
    assert kept == receipt.with_name("receipt.json.tlog-pending")
    assert kept.exists()
    assert parse_receipt_file(receipt.read_bytes()).log is None
    assert result["log"]["finish"].startswith("confide log add ")

    url = nodes(newcomer)["log"]["url"]
    code, out, _err = newcomer.confide(*words, "--log", url, *held)
    log = events(out)[-1]["log"]
    assert (code, log["state"]) == (0, "final")
    assert log["earlier"] == [{"receipt": str(receipt), "pending": None}]
    assert parse_receipt_file(receipt.read_bytes()).log is not None
    assert not kept.exists()


def test_pending_is_said_in_words_and_finished_by_the_command_that_is_shown(
    newcomer: Newcomer, tmp_path: Path
) -> None:
    words = as_named(newcomer, tmp_path)[:-1]
    held = ("--log-policy", policy_of(newcomer))
    address = closed()
    code, out, _err = newcomer.confide(*words, "--log", address, *held, "--log-wait", "0")
    assert code == 0
    assert "after   … in the log          pending: the log does not take it now" in out
    assert "Pending  the receipt is not in the log yet" in out
    (command,) = [line for line in out.splitlines() if line.startswith("  confide log add ")]
    finish = command.replace(address, nodes(newcomer)["log"]["url"]).split()[1:]
    assert newcomer.confide(*finish)[0] == 0


@pytest.mark.slow
def test_witnesses_that_are_gone_leave_it_pending_until_they_are_back(
    newcomer: Newcomer, tmp_path: Path
) -> None:
    words = as_named(newcomer, tmp_path)
    url = nodes(newcomer)["log"]["url"]
    kill(newcomer, "witness")
    held = ("--log", url, "--log-policy", policy_of(newcomer))
    code, out, _err = newcomer.confide(*words, *held, "--log-wait", "7")
    log = events(out)[-1]["log"]
    assert (code, log["state"]) == (0, "pending")
    assert log["why"] == "too few witnesses have seen it yet"
    # The next local run starts the witness again, and settles what was left first.
    code, seen = newcomer.run(ANALYST, "--input", SAMPLE)
    assert code == 0, seen
    assert [each["pending"] for each in seen[-1]["log"]["earlier"]] == [None]


def test_a_log_whose_proof_does_not_hold_is_a_rejection_and_the_receipt_is_kept(
    newcomer: Newcomer, tmp_path: Path
) -> None:
    code, seen = newcomer.run(ANALYST, "--input", SAMPLE)
    assert code == 0, seen
    old = parse_receipt_file(Path(seen[-1]["paths"]["receipt"]).read_bytes()).log
    assert old is not None
    answer = old.encode()

    class Liar(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(32)
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_arguments: Any) -> None:
            pass

    words = as_named(newcomer, tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        named = ("--log", f"http://127.0.0.1:{server.server_port}")
        code, out, _err = newcomer.confide(*words, *named, "--log-policy", policy_of(newcomer))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    result = events(out)[-1]
    assert (code, result["verdict"], result["log"]["state"]) == (10, "rejected", "rejected")
    assert {failure["reason"] for failure in result["failures"]} == {"tlog-inclusion"}
    receipt = Path(result["paths"]["receipt"])
    assert parse_receipt_file(receipt.read_bytes()).log is None
    receipt.with_name("receipt.json.tlog-pending").unlink()


@pytest.mark.slow
def test_ctrl_c_while_the_log_is_waited_for_leaves_everything_to_go_on_with(
    newcomer: Newcomer, tmp_path: Path
) -> None:
    words = as_named(newcomer, tmp_path)
    receipt = tmp_path / "mine.json"
    kept = tmp_path / "mine.json.tlog-pending"
    held = ("--log-policy", policy_of(newcomer), "--receipt", receipt)
    process = newcomer.start(*words, "--log", closed(), *held, "--log-wait", "600",
                             start_new_session=True)  # fmt: skip
    until(kept.exists, "the pending entry is written")
    process.send_signal(signal.SIGINT)
    out, _err = process.communicate()
    assert process.returncode == 130
    assert str(receipt) in " ".join(events(out)[-1]["known"])
    assert kept.exists()
    url = nodes(newcomer)["log"]["url"]
    # A new run must not overwrite a receipt that is still on its way.
    assert newcomer.confide(*words, "--log", url, *held)[0] == 2
    finish = ("log", "add", receipt, "--log", url, "--policy", policy_of(newcomer))
    assert newcomer.confide(*finish)[0] == 0
    assert parse_receipt_file(receipt.read_bytes()).log is not None
