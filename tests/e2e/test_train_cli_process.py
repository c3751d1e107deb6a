"""`confide train` as a person types it, against a training node that is a process of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch", reason="NO TRAINING IS RUN: no torch")
pytest.importorskip("peft", reason="NO TRAINING IS RUN: no peft")

from dataset_rows import lines
from deployment import Installation, Node, until
from training_desk import (
    LONG,
    RECIPE,
    Desk,
    node_words,
    record_in,
    training_installation,
    undisturbed,
)
from training_jobs import chat_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.model

CANARY = "canary-7d21"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, Node]]:
    installation = training_installation(tmp_path_factory.mktemp("train"))
    node = installation.start("train", *node_words(installation))
    try:
        yield installation, node
    finally:
        node.stop()


@pytest.fixture
def desk(running: tuple[Installation, Node], tmp_path: Path) -> Desk:
    return Desk(*running, tmp_path)


# --- from one command to what comes next ----------------------------------------------------------


def test_a_node_in_the_foreground_says_where_it_is_and_that_it_is_simulated(desk: Desk) -> None:
    first, second = desk.node.log.read_text().splitlines()[:2]
    assert first == f"training node of tiny at {desk.node.url}; Ctrl-C ends it"
    assert second.startswith("SIMULATED: ")


def test_one_command_and_then_the_commands_that_it_names(desk: Desk) -> None:
    seen = desk.train("-o", "mine")
    assert seen.code == 0, seen.err
    stages = re.findall(r"^(before|during|after) +✓ (.*?)  ", seen.out, re.MULTILINE)
    assert [stage for stage, _ in stages] == ["before"] * 3 + ["during"] * 2 + ["after"] * 2
    assert " SIMULATED " in seen.out.splitlines()[1]
    assert re.search(r"step 8 of 8  loss [0-9.]+  lr 0.01", seen.out)
    assert "ACCEPTED (SIMULATED)" in seen.out
    assert re.search(r"held out +loss [0-9.]+ → [0-9.]+, accuracy", seen.out)
    # One screen.
    assert len(seen.out.split("ACCEPTED")[1].splitlines()) < 40
    place = desk.folder / "mine" / "tuned"
    assert (place / "adapter" / "adapter_model.safetensors").is_file()
    assert stat.S_IMODE((desk.folder / "mine").stat().st_mode) == 0o700
    commands = re.findall(r"^  (confide .*)$", seen.out, re.MULTILINE)
    assert len(commands) == 3
    for command in commands[:2]:
        done = desk.confide(*shlex.split(command)[1:])
        assert done.code == 0, done.err
    assert (
        "adapter, merged: measured and compared" in desk.confide(*shlex.split(commands[0])[1:]).out
    )
    assert "<html" in (desk.folder / "report.html").read_text()


def test_what_privacy_was_kept_is_on_the_screen_of_the_result(desk: Desk) -> None:
    pytest.importorskip("dp_accounting", reason="NO PRIVACY IS ACCOUNTED FOR: no dp-accounting")
    more = "privacy = { noise_multiplier = 1.0, max_grad_norm = 1.0, delta = 1e-3 }\n"
    desk.write("private.toml", RECIPE.encode() + more.encode())
    seen = desk.train("-o", "private", recipe="private.toml")
    assert seen.code == 0, seen.err
    assert re.search(
        r"privacy +noise_multiplier 1.0, max_grad_norm 1.0, delta 0.001, epsilon [0-9.]+", seen.out
    ), seen.out


def test_detached_listed_and_taken_up_with_the_checkpoints(desk: Desk) -> None:
    left = desk.train("-o", desk.installation.paths.trainings / "one", "--detach", "--json")
    assert left.code == 0, left.err
    job = left.result["job"]
    assert left.result["simulated"] is True
    found = desk.confide("train", "jobs", "--json").result["trainings"]
    assert job in [each["job"] for each in found]
    seen = desk.confide("train", "resume", "one", "--checkpoints", "--json")
    assert seen.code == 0, seen.err
    result = seen.result
    assert (result["verdict"], result["job"], result["steps"]) == ("accepted", job, 8)
    losses = [event["data"]["train_loss"] for event in seen.events if "train_loss" in str(event)]
    assert len(losses) == 8
    assert result["evaluation"].keys() == {"base", "tuned"}
    checkpoints = desk.installation.paths.trainings / "one" / "tuned" / "checkpoints"
    assert len(list(checkpoints.iterdir())) == 2
    [replay] = [command for command in result["next"] if " replay " in command]
    again = desk.confide(*shlex.split(replay)[1:])
    assert (again.code, "every executed step is what was recorded" in again.out) == (0, True), again
    assert "done" in desk.confide("train", "jobs").out
    again = desk.confide("train", "resume", "one")
    assert again.code == 2
    assert "its results are in" in again.err


def test_ctrl_c_leaves_the_job_which_is_paused_resumed_and_cancelled(desk: Desk) -> None:
    desk.write("long.toml", LONG.encode())
    words = ("train", "long.toml", "--data", "rows.jsonl", *desk.at, "-o", "long")
    process = subprocess.Popen(
        desk.command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=desk.folder,
        env=desk.installation.environment,
    )
    assert process.stdout is not None
    assert any("step 1 of" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    # Nothing failed: it is the watching that ended.
    assert re.search(r"during +… trained +goes on in the node", out), out
    assert "does not need this program to go on" in err
    assert f"take it up: confide train resume {'long'}" in err
    assert "Traceback" not in err
    listed = desk.confide("train", "jobs", "--json").result["trainings"]
    assert str(desk.folder / "long") in [each["folder"] for each in listed], "begun elsewhere"
    assert desk.confide("train", "pause", "long").code == 0

    def paused() -> bool:
        early = desk.confide("train", "open", "long")
        assert early.code == 2
        return "the job is paused: there are no results yet; confide train resume" in early.err

    until(paused, "the job is paused")
    process = subprocess.Popen(
        desk.command("train", "resume", "long", "--cancel-on-interrupt"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=desk.folder,
        env=desk.installation.environment,
    )
    assert process.stdout is not None
    assert any("step" in line and "loss" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "was cancelled in the node" in err
    ended = desk.confide("train", "resume", "long")
    assert (ended.code, "the job was cancelled" in ended.err) == (2, True), ended.err
    assert not (desk.folder / "long" / "tuned").exists()


def test_on_a_terminal_it_is_one_view(desk: Desk) -> None:
    master, slave = pty.openpty()
    environment = {**desk.installation.environment, "TERM": "xterm-256color", "COLUMNS": "100"}
    words = ("train", "recipe.toml", "--data", "rows.jsonl", *desk.at, "-o", "tty")
    process = subprocess.Popen(
        desk.command(*words),
        stdout=slave,
        stderr=subprocess.PIPE,
        cwd=desk.folder,
        env=environment,
    )
    os.close(slave)
    shown = bytearray()
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            # Linux says so when the last writer of a terminal is gone.
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    _, err = process.communicate()
    assert process.returncode == 0, err
    text = shown.decode()
    assert any("\u2801" <= character <= "\u28ff" for character in text), "a curve"
    assert "━" in text
    assert "2 checkpoints, sealed to your key" in text


# --- what is wrong, on one screen -----------------------------------------------------------------

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file: there is no row"),
    "one broken": (
        lines(*chat_rows(5)) + b'{"messages": [{"role": "user"' + b"\n" + lines(*chat_rows(3)),
        "line 6",
    ),
    "unknown field": (
        lines({"prompt": CANARY, "completion": CANARY, CANARY: 1}),
        "line 1: 1 unknown member",
    ),
    "utf-16": (lines(*chat_rows(2)).decode().encode("utf-16"), "save the file as UTF-8"),
    "latin-1": (b'{"prompt": "caf\xe9", "completion": "x"}\n', "line 1"),
    "10 MB row": (lines({"prompt": CANARY * 1_000_000, "completion": "b"}), "line 1: longer than"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rows_that_are_none(desk: Desk, name: str) -> None:
    raw, words = BROKEN[name]
    desk.write("bad.jsonl", raw)
    seen = desk.train("-o", "bad", rows="bad.jsonl")
    assert seen.code == 30
    assert words in seen.err
    assert "nothing left this machine" in seen.err
    assert CANARY not in seen.out + seen.err
    assert len(seen.err.splitlines()) < 12
    assert not (desk.folder / "bad").exists()


def test_tokens_beyond_the_context_name_the_line(desk: Desk) -> None:
    rows = chat_rows(6)
    rows[3]["messages"][0]["content"] = f"{CANARY} red blue " * 40
    desk.write("long.jsonl", lines(*rows))
    seen = desk.train("-o", "bad", rows="long.jsonl")
    assert seen.code == 30, seen.err
    assert re.search(r"line 4: \d+ tokens, at most 128", seen.err)
    assert CANARY not in seen.out + seen.err
    assert not (desk.folder / "bad" / "tuned").exists()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("learning_rate = 1e-2", 30, "base_model is missing"),
        ('learn_rate = 1e-2\nbase_model = "tiny"', 30, "learning_rate"),
        (RECIPE + "bf16 = true\n", 30, 'precision = "bf16"'),
        (RECIPE.replace("tiny", "other"), 2, "the recipe trains other"),
        (
            RECIPE.replace("size = 2\ncheck", "size = 18\ncheck"),
            2,
            "18 of 18 rows: nothing is left",
        ),
        (RECIPE + 'method = "dpo"\n', 2, "method dpo trains on preference rows"),
        (RECIPE.replace("val_set_size", "eval_steps"), 2, "eval_steps: nothing is held out"),
        ("\ufeffbase", 30, "recipe"),
    ],
)
def test_recipes_that_are_none(desk: Desk, change: str, code: int, words: str) -> None:
    desk.write("bad.toml", change.encode())
    seen = desk.train("-o", "bad", recipe="bad.toml")
    assert (seen.code, words in seen.err) == (code, True), seen.err
    assert not (desk.folder / "bad").exists()


def test_a_node_of_another_base_is_sent_nothing(desk: Desk) -> None:
    path = desk.installation.root / "expectation.json"
    document = json.loads(path.read_bytes())
    document["model"]["weights"] = "ab" * 32
    other = desk.write("other.json", json.dumps(document, sort_keys=True).encode())
    other.write_bytes(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
    words = ["--node", desk.node.url, "--expectation", other, "--roots"]
    roots = desk.installation.root / "roots.json"
    seen = desk.confide("train", "recipe.toml", "--data", "rows.jsonl", *words, roots, "-o", "bad")
    assert seen.code == 10, seen.err
    assert "model-mismatch" in seen.err
    assert "nothing left this machine" in seen.err
    assert not (desk.folder / "bad").exists()


def test_vendor_roots_do_not_take_a_simulated_node(desk: Desk) -> None:
    words = desk.at[:-1]
    seen = desk.confide("train", "recipe.toml", "--data", "rows.jsonl", *words, "vendor", "-o", "x")
    assert seen.code == 10
    assert not (desk.folder / "x").exists()


def test_nobody_answers(desk: Desk) -> None:
    words = ["--node", "http://127.0.0.1:9", *desk.at[2:]]
    seen = desk.confide("train", "recipe.toml", "--data", "rows.jsonl", *words, "-o", "x")
    assert seen.code == 20, seen.err
    assert not (desk.folder / "x").exists()


def test_a_place_that_holds_something_is_not_written_to(desk: Desk) -> None:
    (desk.folder / "full").mkdir()
    (desk.folder / "full" / "mine").write_text("mine")
    seen = desk.train("-o", "full")
    assert (seen.code, "not an empty directory" in seen.err) == (2, True)
    assert [path.name for path in (desk.folder / "full").iterdir()] == ["mine"]


def test_a_folder_of_no_training_is_named(desk: Desk) -> None:
    for verb in ("resume", "open", "pause", "cancel"):
        seen = desk.confide("train", verb, "nowhere")
        assert (seen.code, "no folder of a training" in seen.err) == (2, True)


def test_help_is_about_the_word_that_was_typed(desk: Desk) -> None:
    assert "--cancel-on-interrupt" in desk.confide("train", "run", "--help").out
    everything = desk.confide("train", "--help").out
    assert re.search(r"run .*resume .*jobs .*report .*audit .*replay ", everything, re.DOTALL)


# --- elsewhere ------------------------------------------------------------------------------------


def test_a_node_that_is_killed_and_another_that_goes_on_with_the_same_bits(
    running: tuple[Installation, Node], tmp_path: Path
) -> None:
    installation, node = running
    lost = installation.start("train", *node_words(installation))
    desk = Desk(installation, lost, tmp_path)
    desk.write("long.toml", LONG.replace("num_epochs = 60", "num_epochs = 30").encode())
    words = ("train", "long.toml", "--data", "rows.jsonl", *desk.at, "-o", "moved")
    process = subprocess.Popen(
        desk.command(*words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=desk.folder,
        env=desk.installation.environment,
    )
    moved = tmp_path / "moved"
    try:
        until((moved / "handover" / "handover.json").is_file, "something of the job is kept")
        early = desk.confide("train", "resume", "moved", "--node", node.url)
        assert (early.code, "it would go on twice" in early.err) == (2, True), early.err
    finally:
        lost.process.kill()
        lost.process.wait()
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    desk.node = node
    straight = undisturbed(desk, moved)
    seen = desk.confide("train", "resume", "moved", "--node", node.url, "--json")
    assert seen.code == 0, seen.err
    record = record_in(moved)
    # Simulated nodes of one installation are one machine.
    assert [turn.kind for turn in record.turns] == ["started", "restarted"]
    assert 0 < record.turns[1].step < record.steps
    done = desk.confide("train", "resume", straight)
    assert done.code == 0, done.err
    other = record_in(straight)
    assert [turn.kind for turn in other.turns] == ["started"]
    assert (record.outputs, record.head) == (other.outputs, other.head)
