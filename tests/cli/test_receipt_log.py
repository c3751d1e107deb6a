"""Receipts in a log, as a scripted session: final, pending, refused; every line tampered with."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import log_world as world
import pytest
from log_processes import ServedLog, free_port, impostor, start
from runs import Story, edited, predicate, tell

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.cli.log_choice import read_choice
from confide.client.finality import LeftOver, settle_left_over
from confide.receipts.file import parse_receipt_file
from confide.tlog.leaf import LeafOpening, PendingEntry, parse_pending

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

    from confide.receipts.file import ReceiptFile

WITNESS = world.WITNESSES[0]


def trust() -> tuple[str, str]:
    """The words with which somebody accepts the SIMULATED receipt of these tests."""
    return "--simulated-roots", f"sha256:{hashlib.sha256(tell().roots).hexdigest()}"


def pending_of(receipt: Path) -> Path:
    return receipt.with_name(f"{receipt.name}.tlog-pending")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """Whose word counts about the log of `logged`."""
    path = tmp_path / "believed"
    key, witness = world.LOG.key.encode(), WITNESS.key.encode()
    path.write_text(f"log {key}\nwitness w {witness}\nquorum w\n")
    return path


def logged(file: ReceiptFile, *, at: datetime | None = None) -> ReceiptFile:
    """`file` with a proof inside, in a log of three entries that `WITNESS` saw `at` or now."""
    opening = LeafOpening(b"b" * 32, file.run.digest)
    keeper = world.open_log(world.MemoryDisk())
    keeper.append([world.entry(0), opening.entry, world.entry(2)])
    seconds = int((at or datetime.now(UTC)).timestamp())
    head = world.signed(keeper.head.head, WITNESS, seconds=seconds)
    return replace(file, log=replace(keeper.prove(1, head), extra=opening.blinding))


@pytest.fixture
def final(tmp_path: Path) -> Path:
    """A receipt file with its proof inside."""
    path = tmp_path / "final.json"
    path.write_bytes(logged(tell()).encode())
    return path


# --- verify ---------------------------------------------------------------------------------------


def test_the_proof_inside_counts_once_the_verifier_says_whose_word_does(
    cli: Cli, final: Path, policy: Path
) -> None:
    seen = cli("verify", final, *trust(), "--log-policy", policy, "--explain")
    assert seen.code == 0
    assert f"{world.ORIGIN} #1 of 3, there since " in seen.out
    assert f" UTC by {WITNESS.key.name}" in seen.out
    assert "and it existed by " in seen.out
    assert "✓ log/7  " in seen.out
    result = cli("verify", final, *trust(), "--log-policy", policy, "--json").result
    assert result["log"]["state"] == "final"
    assert (result["log"]["index"], result["log"]["size"]) == (1, 3)
    unasked = cli("verify", final, *trust())
    assert unasked.code == 0
    assert "not checked: a proof is inside; say with --log-policy whose word counts" in unasked.out
    assert cli("verify", final, *trust(), "--json").result["log"] == {"state": "not-checked"}


def test_the_public_key_of_the_log_is_enough_and_proves_no_time(cli: Cli, final: Path) -> None:
    words = (*trust(), "--log-key", world.LOG.key.encode())
    seen = cli("verify", final, *words, "--require-log")
    assert seen.code == 0
    assert f"{world.ORIGIN} #1 of 3; no witness vouches for a time" in seen.out
    assert "which no log proves" in seen.out
    other = world.signer("log.example/other").key.encode()
    refused = cli("verify", final, *trust(), "--log-key", other)
    assert refused.code == 10
    assert "receipt/13 tlog-log-unknown" in refused.out
    for bad in ("x", WITNESS.key.encode()):
        assert cli("verify", final, *trust(), "--log-key", bad).code == 2


def test_absence_is_said_and_refused_where_it_is_required(
    cli: Cli, receipt: Path, policy: Path
) -> None:
    for words in ((), ("--log-policy", policy)):
        seen = cli("verify", receipt, *trust(), *words)
        assert seen.code == 0
        assert "no proof: a receipt that only its holder has can be denied" in seen.out
    assert cli("verify", receipt, *trust(), "--json").result["log"] is None
    refused = cli("verify", receipt, *trust(), "--log-policy", policy, "--require-log")
    assert refused.code == 10
    assert "receipt/13 evidence-missing" in refused.out
    assert "ACCEPTED" not in refused.out


def test_options_that_would_check_nothing_are_refused(
    cli: Cli, final: Path, policy: Path, tmp_path: Path
) -> None:
    key = world.LOG.key.encode()
    idle: tuple[tuple[object, ...], ...] = (
        ("--require-log",),
        ("--log-proof", policy),
        ("--log-policy", policy, "--log-key", key),
    )
    for words in idle:
        assert cli("verify", final, *trust(), *words).code == 2
    (tmp_path / "bad").write_bytes(b"no proof")
    bad = ("--log-policy", policy, "--log-proof", tmp_path / "bad")
    assert cli("verify", final, *trust(), *bad).code == 30


def test_a_proof_beside_the_receipt_goes_before_the_one_inside(
    cli: Cli, final: Path, receipt: Path, policy: Path, tmp_path: Path
) -> None:
    inside = parse_receipt_file(final.read_bytes()).log
    assert inside is not None
    (tmp_path / "proof").write_bytes(inside.encode())
    words = (*trust(), "--log-policy", policy, "--log-proof", tmp_path / "proof")
    assert cli("verify", receipt, *words).code == 0
    other = logged(tell(Story("another"))).log
    assert other is not None
    (tmp_path / "proof").write_bytes(other.encode())
    seen = cli("verify", final, *words)
    assert seen.code == 10
    assert "receipt/13 tlog-inclusion" in seen.out


def test_a_receipt_that_claims_to_end_after_the_log_saw_it_is_refused(
    cli: Cli, tmp_path: Path, policy: Path
) -> None:
    finished = datetime.fromisoformat(predicate(_document(tell()))["finished"])
    path = tmp_path / "receipt.json"
    words = ("verify", path, *trust(), "--log-policy", policy)
    path.write_bytes(logged(tell(), at=finished - timedelta(seconds=300)).encode())
    assert cli(*words).code == 0
    path.write_bytes(logged(tell(), at=finished - timedelta(seconds=301)).encode())
    seen = cli(*words)
    assert seen.code == 10
    assert "log/7 tlog-postdated" in seen.out
    assert cli(*words, "--json").result["log"] == {"state": "rejected"}


def _document(file: ReceiptFile) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    edited(file, kept.update)
    return kept


def test_every_line_of_the_proof_inside_carries_weight(cli: Cli, final: Path, policy: Path) -> None:
    file = parse_receipt_file(final.read_bytes())
    assert file.log is not None
    lines = file.log.encode().decode().splitlines()
    codes = []
    for number in range(len(lines)):
        for changed in ([], [_other(lines[number])], [lines[number]] * 2):
            text = "".join(
                f"{line}\n" for line in [*lines[:number], *changed, *lines[number + 1 :]]
            )
            final.write_bytes(_with_log(file, text))
            seen = cli("verify", final, *trust(), "--log-policy", policy)
            assert seen.code in (10, 30), (number, changed)
            assert "ACCEPTED" not in seen.out
            codes.append(seen.code)
    assert set(codes) == {10, 30}


def _other(line: str) -> str:
    """`line` with one character changed, to another of its kind where there is one."""
    if not line:
        return "x"
    at = len(line) // 2
    kind = "AB" if line[at].isalpha() else "78"
    return line[:at] + kind[line[at] == kind[0]] + line[at + 1 :]


def _with_log(file: ReceiptFile, text: str) -> bytes:
    whole, mark = replace(file, log=None).encode(), b'"log":null'
    assert whole.count(mark) == 1
    quoted = text.replace("\n", "\\n").encode()
    return whole.replace(mark, b'"log":"' + quoted + b'"')


# --- add ------------------------------------------------------------------------------------------


def test_a_receipt_becomes_final_and_whoever_has_the_public_keys_verifies_it_offline(
    cli: Cli, receipt: Path, served: ServedLog
) -> None:
    words = ("log", "add", receipt, "--log", served.url, "--policy", served.policy)
    added = cli(*words, "--json")
    assert added.code == 0
    assert [each["name"] for each in added.result["witnesses"]] == ["a.example", "b.example"]
    assert not pending_of(receipt).exists()
    # Killed at once: what was acknowledged is proven by the file alone.
    served.kill()
    seen = cli("verify", receipt, *trust(), "--log-policy", served.policy)
    assert seen.code == 0
    assert f"log.example #{added.result['index']} of " in seen.out
    # Nothing but the proof was added to what the node signed.
    kept = parse_receipt_file(receipt.read_bytes())
    assert replace(kept, log=None).encode() == tell().encode()
    # Once more would make a second entry, and lose this proof.
    assert cli(*words).code == 2
    served.start("a", "b", "log")
    checked = cli("log", "monitor", served.url, "--policy", served.policy,
                  "--state", receipt.with_name("seen"), "--json")  # fmt: skip
    assert checked.result["size"] == 1


def test_a_proof_may_be_kept_in_a_file_of_its_own(
    cli: Cli, receipt: Path, served: ServedLog, tmp_path: Path
) -> None:
    words = ("log", "add", receipt, "--log", served.url, "--policy", served.policy)
    assert cli(*words, "-o", tmp_path / "proof").code == 0
    assert receipt.read_bytes() == tell().encode()
    held = ("--log-policy", served.policy, "--log-proof", tmp_path / "proof", "--require-log")
    assert cli("verify", receipt, *trust(), *held).code == 0
    assert cli(*words, "-o", tmp_path / "proof").code == 2


def test_a_receipt_of_a_failed_run_is_not_deniable_either(
    cli: Cli, served: ServedLog, tmp_path: Path
) -> None:
    path = tmp_path / "failed.json"
    path.write_bytes(tell(Story("failed", status=3)).encode())
    assert cli("log", "add", path, "--log", served.url, "--policy", served.policy).code == 0
    assert parse_receipt_file(path.read_bytes()).log is not None
    seen = cli("verify", path, *trust(), "--log-policy", served.policy)
    assert seen.code == 10
    assert "receipt/12 run-failed" in seen.out
    assert "a proof is there, and shows nothing while a step above fails" in seen.out


def test_without_a_witness_it_is_pending_and_final_when_the_witness_is_back(
    cli: Cli, receipt: Path, served: ServedLog
) -> None:
    served.kill("b")
    words = ("log", "add", receipt, "--log", served.url, "--policy", served.policy)
    waiting = cli(*words, "--wait", 7)
    assert waiting.code == 20
    assert "pending: too few witnesses have seen it yet" in waiting.err
    kept = parse_pending(pending_of(receipt).read_bytes())
    assert kept.index == 0
    assert parse_receipt_file(receipt.read_bytes()).log is None
    served.start("b")
    assert cli(*words, "--json").result["index"] == 0
    assert not pending_of(receipt).exists()
    assert cli("verify", receipt, *trust(), "--log-policy", served.policy).code == 0


def test_a_log_that_is_killed_during_the_wait_has_the_entry_when_it_is_back(
    cli: Cli, receipt: Path, served: ServedLog
) -> None:
    served.kill("b")
    words = ("add", receipt, "--log", served.url, "--policy", served.policy)
    waiting = start(*words, "--wait", 15)
    # Acknowledged, and not final: the log said where it stands.
    while not pending_of(receipt).exists() or (
        parse_pending(pending_of(receipt).read_bytes()).index is None
    ):
        time.sleep(0.02)
    served.kill("log")
    assert waiting.wait() == 20
    served.start("b", "log")
    assert cli("log", *words, "--json").result["index"] == 0
    assert cli("verify", receipt, *trust(), "--log-policy", served.policy).code == 0


def test_a_log_that_is_down_leaves_a_pending_entry_which_is_settled_later(
    cli: Cli, receipt: Path, policy: Path
) -> None:
    pending = pending_of(receipt)
    words = ("log", "add", receipt, "--policy", policy, "--wait", "0")
    down = cli(*words, "--log", f"http://127.0.0.1:{free_port()}")
    assert down.code == 20
    assert down.err.startswith("unavailable: pending: the log does not take it now: no answer")
    assert len(down.err.splitlines()) == 1
    first = parse_pending(pending.read_bytes())
    assert pending.stat().st_mode & 0o077 == 0
    # The same opening again: whoever drew a new one each time would log a new entry each time.
    assert cli(*words, "--log", f"http://127.0.0.1:{free_port()}").code == 20
    assert parse_pending(pending.read_bytes()) == first
    for other in (
        replace(first, opening=LeafOpening(b"b" * 32, b"d" * 32)),
        replace(first, policy=b"q" * 32),
    ):
        pending.write_bytes(other.encode())
        assert cli(*words, "--log", "http://127.0.0.1:1").code == 2
        assert pending.read_bytes() == other.encode()
    assert cli("log", "add", receipt, "--policy", policy).code == 2


def test_what_opens_the_entry_is_on_the_disk_before_the_log_hears_of_it(
    cli: Cli, receipt: Path, policy: Path
) -> None:
    with impostor(0, b"", swallow=True) as url:
        words = ("log", "add", receipt, "--policy", policy, "--wait", "0", "--log", url)
        assert cli(*words).code == 20
    assert parse_pending(pending_of(receipt).read_bytes()).index is None


@pytest.mark.parametrize("lie", ["another entry", "an old checkpoint", "another key"])
def test_a_log_that_answers_with_a_proof_that_does_not_hold_is_refused(
    cli: Cli, receipt: Path, policy: Path, lie: str
) -> None:
    keeper = world.open_log(world.MemoryDisk())
    keeper.append([world.entry(n) for n in range(3)])
    by = world.signer(world.ORIGIN) if lie != "another key" else _namesake()
    now = int(datetime.now(UTC).timestamp())
    head = world.signed(keeper.head.head, WITNESS, by=by, seconds=now)
    proof = keeper.prove(2, head)
    if lie == "an old checkpoint":
        proof = replace(proof, index=3)
    with impostor(200, proof.encode()) as url:
        seen = cli("log", "add", receipt, "--policy", policy, "--log", url)
    assert seen.code == 10
    reason = "tlog-signature" if lie == "another key" else "tlog-inclusion"
    assert reason in seen.err.splitlines()[0]
    assert pending_of(receipt).exists()
    assert parse_receipt_file(receipt.read_bytes()).log is None


def _namesake() -> Any:
    return type(world.LOG)(world.ORIGIN, world.LOG.key.kind, b"z" * 32)


# --- what earlier runs left -----------------------------------------------------------------------


def test_a_later_run_settles_what_earlier_ones_left_and_is_disturbed_by_none(
    served: ServedLog, tmp_path: Path
) -> None:
    choice = read_choice(served.url, served.policy)
    runs = tmp_path / "runs"

    def leave(name: str, file: bytes, **changed: Any) -> Path:
        path = runs / name / "receipt.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(file)
        opening = LeafOpening(SystemEntropy().token(32), tell().run.digest)
        entry = replace(PendingEntry(opening, choice.policy_digest), **changed)
        pending_of(path).write_bytes(entry.encode())
        return path

    good = leave("1", tell().encode())
    broken = leave("2", b"half a rece")
    other = leave("3", tell(Story("another")).encode())
    elsewhere = leave("4", tell().encode(), policy=b"q" * 32)
    placed = leave("5", tell().encode(), index=10**6)
    (runs / "6").mkdir()
    (runs / "6" / "receipt.json.tlog-pending").write_bytes(b"no entry")
    left = asyncio.run(settle_left_over(runs, choice, clock=SystemClock(), entropy=SystemEntropy()))
    assert [each.receipt for each in left] == [placed, other, broken, good]
    assert left[-1] == LeftOver(good, "")
    assert all(each.trouble for each in left[:-1])
    assert parse_receipt_file(good.read_bytes()).log is not None
    assert not pending_of(good).exists()
    # What is for another log is not shown to this one.
    assert pending_of(elsewhere).exists()
    assert pending_of(broken).exists()
