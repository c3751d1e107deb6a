"""`confide verify` as text: what a stranger reads, and what a program does."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from runs import OUTPUTS, VALUES, Story, edited, expectation_and_roots, predicate, tell

from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli

    from confide.expectation import Expectation


def digest() -> str:
    """SHA-256 of the roots that the receipts of these tests bring along."""
    return hashlib.sha256(tell().roots).hexdigest()


def trust() -> tuple[str, str]:
    """The words with which somebody accepts these SIMULATED receipts."""
    return "--simulated-roots", f"sha256:{digest()}"


def test_vendor_roots_refuse_a_simulated_receipt_and_say_so(cli: Cli, receipt: Path) -> None:
    seen = cli("verify", receipt)
    lines = seen.out.splitlines()
    assert seen.code == 10
    assert lines[0].startswith("REJECTED (SIMULATED)")
    assert lines[1].startswith(" SIMULATED ")
    assert "--simulated-roots FILE" in seen.out
    assert "root-mismatch" in seen.out
    assert "ACCEPTED" not in seen.out


def test_the_advice_never_offers_the_digest_that_the_receipt_brings(
    cli: Cli, receipt: Path
) -> None:
    assert f"sha256:{digest()}" not in cli("verify", receipt).out


def test_an_accepted_receipt_fits_one_screen_verdict_first(cli: Cli, receipt: Path) -> None:
    seen = cli("verify", receipt, *trust())
    assert seen.code == 0
    lines = seen.out.splitlines()
    assert lines[0].startswith("ACCEPTED (SIMULATED)  receipt ")
    assert lines[1].startswith(" SIMULATED ")
    sections = ["Proven", "What happened", "Not proven", "Digests", "Checked"]
    found = [line.split("  ")[0] for line in lines if line.split("  ")[0] in sections]
    assert found == sections
    assert "2, each with a receipt of the model node" in seen.out
    assert "0 allowed, 1 refused (collector.example:443)" in seen.out
    assert "gpu-colocation" in seen.out
    assert "the node's own clock, which no log proves" in seen.out


def test_the_digests_shown_are_those_of_the_run(cli: Cli, receipt: Path) -> None:
    expectation, _ = expectation_and_roots()
    seen = cli("verify", receipt, *trust()).out
    for expected in (
        expectation.digest.hex(),
        expectation.agent.image,
        expectation.model.weights,
        tell().run.digest.hex(),
    ):
        assert expected in seen


def test_roots_from_a_file(cli: Cli, receipt: Path, tmp_path: Path) -> None:
    roots = tmp_path / "roots.json"
    roots.write_bytes(encode_roots_file(expectation_and_roots()[1]))
    assert cli("verify", receipt, "--simulated-roots", roots).code == 0


def test_a_digest_that_the_embedded_roots_do_not_have_is_refused(cli: Cli, receipt: Path) -> None:
    seen = cli("verify", receipt, "--simulated-roots", f"sha256:{'0' * 64}")
    assert seen.code == 10
    assert "do not have the digest you named" in seen.err


@pytest.mark.parametrize("text", ["vendor", "sha256:", f"sha256:{'G' * 64}", "/nowhere"])
def test_roots_that_are_none_are_a_usage_error(cli: Cli, receipt: Path, text: str) -> None:
    assert cli("verify", receipt, "--simulated-roots", text).code == 2


def test_json_holds_everything_the_screen_says(cli: Cli, receipt: Path, outputs: Path) -> None:
    result = cli("verify", receipt, *trust(), "--outputs", outputs, "--json").result
    assert result["verdict"] == "accepted"
    assert result["exit"] == 0
    assert result["simulated"] is True
    assert result["roots"] == f"simulated:{digest()}"
    assert result["clock"] == "receipt"
    assert result["happened"]["model_calls"] == {"count": 2, "unanswered": 0}
    assert [item["file"] for item in result["happened"]["outputs"]] == list(OUTPUTS)
    proven = {(c["node"], c["name"]) for c in result["claims"] if c["status"] == "pass"}
    assert {("agent", "hardware"), ("model", "gpu"), ("model", "model-weights")} <= proven
    assert result["failures"] == []


ASKING = Story("shown", secrets=("db-password", "TOKEN=token"), state=True)


def test_secrets_are_shown_by_version_and_a_state_by_its_counters(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "asking.json"
    path.write_bytes(tell(ASKING).encode())
    seen = cli("verify", path, *trust())
    assert seen.code == 0
    versions = {name: hashlib.sha256(b"salt" + VALUES[name]).hexdigest() for name in VALUES}
    for name in ("db-password", "token"):
        assert f"{name} (version {versions[name][:12]}…)" in seen.out
        assert VALUES[name].decode() not in seen.out
    assert "a new one begun, saved as number 1" in seen.out
    happened = cli("verify", path, *trust(), "--json").result["happened"]
    assert happened["secrets"] == [
        {"name": name, "version": versions[name]} for name in ("db-password", "token")
    ]
    assert happened["state"] == {"opened": 0, "saved": 1, "kept": None, "left_out": 0}
    assert happened["scrubbed"] == 0


def test_a_state_that_was_not_saved_says_why(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "failed.json"
    path.write_bytes(tell(replace(ASKING, name="failed", status=1)).encode())
    seen = cli("verify", path, *trust())
    assert seen.code == 10
    assert "not saved: the agent did not end with status 0" in " ".join(seen.out.split())


def test_json_of_a_refusal_names_the_steps(cli: Cli, receipt: Path) -> None:
    seen = cli("verify", receipt, "--json")
    assert seen.code == 10
    assert seen.result["verdict"] == "rejected"
    assert seen.result["simulated"] is True
    assert {"receipt/4", "receipt/8", "node/1"} <= {f["step"] for f in seen.result["failures"]}
    assert all(f["reason"] and f["clause"] for f in seen.result["failures"])
    assert seen.result["claims"] == []


def test_output_files_are_named_when_they_are_equal(cli: Cli, receipt: Path, outputs: Path) -> None:
    seen = cli("verify", receipt, *trust(), "--outputs", outputs)
    assert seen.code == 0
    assert "tables/may.csv  4 B  equal" in seen.out


def test_a_renamed_output_is_told_apart(cli: Cli, receipt: Path, outputs: Path) -> None:
    (outputs / "labels.csv").rename(outputs / "other.csv")
    seen = cli("verify", receipt, *trust(), "--outputs", outputs)
    assert "other.csv (recorded under another name)" in seen.out


@pytest.mark.parametrize("change", ["edited", "added", "removed"])
def test_outputs_that_are_not_the_runs_are_refused(
    cli: Cli, receipt: Path, outputs: Path, change: str
) -> None:
    if change == "removed":
        (outputs / "labels.csv").unlink()
    else:
        name = "labels.csv" if change == "edited" else "new.csv"
        (outputs / name).write_text("1\n")
    seen = cli("verify", receipt, *trust(), "--outputs", outputs)
    assert seen.code == 10
    assert "output-mismatch" in seen.out
    assert "untouched output directory" in seen.out


def test_the_expectation_held_must_be_the_receipts(cli: Cli, receipt: Path, tmp_path: Path) -> None:
    own, _ = expectation_and_roots()
    path = tmp_path / "expectation.json"
    path.write_bytes(own.canonical())
    assert cli("verify", receipt, *trust(), "--expectation", path).code == 0
    path.write_bytes(_renamed(own).canonical())
    seen = cli("verify", receipt, *trust(), "--expectation", path)
    assert seen.code == 10
    assert "expectation-mismatch" in seen.out


def _renamed(expectation: Expectation) -> Expectation:
    return replace(expectation, name="another")


def test_a_transcript_that_was_edited_is_refused(cli: Cli, tmp_path: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        transcript = predicate(document)["transcript"]
        call = next(event for event in transcript if event["kind"] == "model-call")
        call["status"] = 500

    path = tmp_path / "edited.json"
    path.write_bytes(edited(tell(), edit).encode())
    seen = cli("verify", path, *trust())
    assert seen.code == 10
    assert "receipt/2 transcript-broken" in seen.out
    assert "What the receipt says  not believed" in seen.out


def test_peer_text_cannot_drive_the_terminal(cli: Cli, tmp_path: Path) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07\u202e[bold red]evil[/].example"

    def edit(document: dict[str, Any]) -> None:
        transcript = predicate(document)["transcript"]
        attempt = next(event for event in transcript if event["kind"] == "egress")
        attempt["destination"] = hostile

    path = tmp_path / "hostile.json"
    path.write_bytes(edited(tell(), edit).encode())
    human, machine = cli("verify", path, *trust()), cli("verify", path, *trust(), "--json")
    assert human.code == machine.code == 10
    for shown in (human.out + human.err, machine.out + machine.err):
        assert not set(shown) & {"\x1b", "\x07", "\u202e"}
    assert "[bold red]evil" in human.out


def test_a_failed_run_is_not_accepted_and_says_how_it_ended(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "failed.json"
    path.write_bytes(tell(Story("failed", status=3)).encode())
    seen = cli("verify", path, *trust())
    assert seen.code == 10
    assert "receipt/12 run-failed" in seen.out
    assert "exited with status 3" in seen.out


def test_the_time_can_be_given(cli: Cli, receipt: Path) -> None:
    good = cli("verify", receipt, *trust(), "--at", "2026-11-22T12:00:30Z", "--json")
    assert good.result["clock"] == "given"
    late = cli("verify", receipt, *trust(), "--at", "2036-01-01T00:00:00Z")
    assert late.code == 10
    assert "keyset-expired" in late.out
    assert cli("verify", receipt, *trust(), "--at", "tomorrow").code == 2


def test_explain_shows_every_step(cli: Cli, receipt: Path) -> None:
    seen = cli("verify", receipt, *trust(), "--explain")
    for number in range(1, 13):
        assert f"✓ receipt/{number}  " in seen.out
    assert "✓ tdx/" in seen.out
    assert "✓ nvidia/" in seen.out


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b'{"type":"confide/receipt/v1"}'])
def test_what_is_no_receipt_is_malformed(cli: Cli, tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "receipt.json"
    path.write_bytes(raw)
    seen = cli("verify", path)
    assert seen.code == 30
    assert seen.out == ""
    assert seen.err.startswith("malformed: ")


def test_a_missing_receipt_is_a_usage_error(cli: Cli, tmp_path: Path) -> None:
    seen = cli("verify", tmp_path / "none.json", "--json")
    assert seen.code == 2
    (event,) = seen.events
    assert event["event"] == "error"
    assert event["kind"] == "configuration"
    assert event["exit"] == 2
