"""Training records on the command line: `verify`, `train audit`, `train report`."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import log_world
import pytest
from arithmetic import SALT, ComputedJob, rows
from nodes import NOW, WEIGHTS
from runs import Story, infer, serving, tell, tell_at
from trainings import MERGED, Happening, Job, Trained, dependency, edited, sha, train

from confide.cli.training_plots import Line, plot
from confide.cli.training_style import STYLE
from confide.receipts.inference import ExchangeFacts
from confide.receipts.inference_file import InferenceFile
from confide.tlog.leaf import LeafOpening
from confide.training.dataset import DatasetTree, RowSalts
from confide.training.inclusion import DatasetProof, Opening, PathRecorder
from confide.training.record_file import parse_record_file
from confide.wire.json import b64encode

if TYPE_CHECKING:
    from pathlib import Path

    from log_processes import ServedLog
    from sessions import Cli, Session

    from confide.receipts.file import ReceiptFile

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>"
JOB = ComputedJob("computed", turns=(Happening("moved", 16, "other"),))
SERVED = Story("served by the tuned model")


def served_run() -> ReceiptFile:
    return tell_at(serving(MERGED.digest), SERVED)


@dataclass
class Desk:
    """A record with everything beside it, in a folder, and the command line."""

    cli: Cli
    folder: Path
    trained: Trained = field(default_factory=lambda: train(JOB))

    def __post_init__(self) -> None:
        self.write("record.json", self.trained.file.encode())
        self.write("log.json", JOB.log.encode())
        self.write("data.jsonl", b"".join(row.record + b"\n" for row in rows()))
        self.write("salt", SALT.hex().encode() + b"\n").chmod(0o600)

    def write(self, name: str, raw: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(raw)
        return path

    def at(self, name: str) -> Path:
        return self.folder / name

    @property
    def trust(self) -> tuple[str, str]:
        digest = hashlib.sha256(self.trained.file.roots).hexdigest()
        return "--simulated-roots", f"sha256:{digest}"

    def verify(self, *words: object) -> Session:
        return self.cli("verify", self.at("record.json"), *self.trust, *words)

    def report(self, *words: object) -> tuple[Session, str]:
        page = self.at("report.html")
        seen = self.cli(
            *("train", "report", self.at("record.json"), *self.trust, "-o", page, *words)
        )
        return seen, page.read_text("utf-8") if page.exists() else ""


@pytest.fixture
def desk(cli: Cli, tmp_path: Path) -> Desk:
    return Desk(cli, tmp_path)


# Verify


def test_an_accepted_record_fits_one_screen_verdict_first(desk: Desk) -> None:
    seen = desk.verify()
    assert seen.code == 0
    lines = seen.out.splitlines()
    assert lines[0].startswith("ACCEPTED (SIMULATED)  training record ")
    assert lines[1].startswith(" SIMULATED ")
    sections = ["Proven", "What was made", "Lineage", "Not proven", "Checked"]
    assert [line for line in (x.split("  ")[0] for x in lines) if line in sections] == sections
    assert len(lines) <= 60
    assert "32 of 32" in seen.out
    assert "2 boots, on 2 machines" in seen.out
    assert "the tuned model is better than the base" in seen.out


def test_it_walks_from_the_agent_run_to_the_root_of_the_rows(desk: Desk) -> None:
    run = desk.write("run.json", served_run().encode())
    seen = desk.verify("--with", run)
    assert seen.code == 0
    record = desk.trained.record
    walk = [
        ("agent run", served_run().run.digest),
        ("weights", MERGED.digest),
        ("training", desk.trained.file.record.digest),
        ("base", record.plan.base),
        ("dataset", record.plan.dataset),
        ("dataset root", JOB.commitment.root),
    ]
    found = [seen.out.index(f"{kind:<12}  {digest.hex()}") for kind, digest in walk]
    assert found == sorted(found)


def answer(weights: bytes) -> bytes:
    """The receipt file of one answer by a node that serves `weights`."""
    place, nonce = serving(weights), sha("nonce of an answer")
    request, response = sha("question"), sha("answer")
    evidence = asyncio.run(place.model.attest("channel", nonce, place.expectation.digest))
    return InferenceFile(
        envelope=infer(place, request=request, response=response),
        facts=ExchangeFacts(
            "chat.completions", 200, False, request, response, sha("sealed", request.hex())
        ),
        expectation=place.expectation.canonical(),
        evidence=evidence,
        nonce=nonce,
        proven_at=NOW,
        roots=place.roots.name,
    ).encode()


def test_an_answer_of_the_tuned_model_is_a_link_and_one_of_the_base_is_not(desk: Desk) -> None:
    seen = desk.verify("--with", desk.write("answer.json", answer(MERGED.digest)))
    assert seen.code == 0, seen.out
    assert "answer  " in seen.out
    seen = desk.verify("--with", desk.write("answer.json", answer(WEIGHTS)))
    assert seen.code == 10
    assert "model-mismatch" in seen.out


def test_served_weights_that_are_not_the_trained_ones_are_refused(desk: Desk) -> None:
    # A genuine run, with answers of the base.
    seen = desk.verify("--with", desk.write("run.json", tell().encode()))
    assert seen.code == 10
    assert "REJECTED (SIMULATED)" in seen.out
    assert "lineage/1" in seen.out
    assert "model-mismatch" in seen.out


def proof_of_row(number: int, *, closed: bool = False) -> bytes:
    """What `confide data prove` writes about one row of the job."""
    salts, path, opening = RowSalts(SALT), PathRecorder(number - 1), None
    tree = DatasetTree(salts, path=path)
    for row in rows():
        tree.add(row)
        if row.index == number - 1 and not closed:
            opening = Opening(salts.at(row.index), row.value)
    return DatasetProof(tree.commitment(), number - 1, path.leaf, path.path(), opening).encode()


def from_run(desk: Desk, *beside: Path, run: ReceiptFile | None = None) -> Session:
    """`confide verify RUN --with …`."""
    words = [word for path in beside for word in ("--with", path)]
    target = desk.write("run.json", (run or served_run()).encode())
    return desk.cli("verify", target, *desk.trust, *words)


def test_a_run_is_walked_over_its_model_to_one_row(desk: Desk) -> None:
    proof = desk.write("row.proof", proof_of_row(7))
    seen = from_run(desk, desk.at("record.json"), proof)
    assert seen.code == 0, seen.out
    digest, record = served_run().run.digest.hex(), desk.trained.file.record.digest.hex()
    said = f"receipt {digest[:16]}… of a model with training record {record[:16]}…"
    assert seen.out.startswith(f"ACCEPTED (SIMULATED)  {said}")
    for part in ("  agent node", "  model node", "  training node", "What happened"):
        assert f"\n{part}" in seen.out
    walk = ["agent run", "weights", "training", "base", "dataset", "dataset root", "row"]
    lineage = seen.out.partition("\nLineage")[2].splitlines()[1:8]
    assert [line.split("  ")[1].strip() for line in lineage] == walk
    assert "7 of 20" in lineage[-1]
    assert json.dumps(rows()[6].value, ensure_ascii=False) in seen.out
    assert "of the training: the arithmetic of steps that nobody replayed" in seen.out
    assert f"the Expectation inside it, {desk.trained.record.expectation.hex()}" in seen.out


def test_a_row_that_was_not_opened_is_not_shown(desk: Desk) -> None:
    seen = from_run(desk, desk.at("record.json"), desk.write("p", proof_of_row(7, closed=True)))
    assert seen.code == 0
    assert "7 of 20, not opened" in seen.out
    assert "Row 7" not in seen.out


def test_programs_get_the_walk_from_a_run_too(desk: Desk) -> None:
    target = desk.write("run.json", served_run().encode())
    words = ("--with", desk.at("record.json"), "--json", "--explain")
    result = desk.cli("verify", target, *desk.trust, *words).result
    assert result["training"]["record"] == desk.trained.file.record.digest.hex()
    assert result["training"]["dataset_root"] == JOB.commitment.root.hex()
    assert result["training"]["lineage"][0]["kind"] == "agent run"
    assert {"receipt/1", "lineage/1"} <= {each["step"] for each in result["steps"]}


def test_a_run_of_another_model_has_another_training(desk: Desk) -> None:
    seen = from_run(desk, desk.at("record.json"), run=tell())
    assert seen.code == 10
    assert seen.out.startswith("REJECTED (SIMULATED)")
    assert "lineage/1 model-mismatch  agent run: served weights differ from trained" in seen.out
    assert "The receipt holds by itself" in seen.out
    assert "not believed" in seen.out


def test_an_edited_record_is_no_training_of_a_run(desk: Desk) -> None:
    def edit(document: dict[str, Any]) -> None:
        dependency(document, "dataset-root")["digest"]["sha256"] = "00" * 32

    desk.write("record.json", edited(desk.trained.file, edit).encode())
    seen = from_run(desk, desk.at("record.json"))
    assert seen.code == 10
    assert "record/4 claim-mismatch" in seen.out


def test_a_proof_of_another_data_set_is_refused(desk: Desk) -> None:
    raw = json.loads(proof_of_row(7))
    raw["commitment"]["rows"] += 1
    other = desk.write("row.proof", json.dumps(raw).encode())
    for seen in (from_run(desk, desk.at("record.json"), other), desk.verify("--with", other)):
        assert seen.code == 10
        assert "dataset-mismatch" in seen.out


def test_a_row_that_was_changed_is_refused(desk: Desk) -> None:
    raw = json.loads(proof_of_row(7))
    raw["opening"]["row"]["completion"] += "!"
    seen = from_run(desk, desk.at("record.json"), desk.write("p", json.dumps(raw).encode()))
    assert seen.code == 10
    assert "dataset-opening" in seen.out


def test_a_run_that_does_not_hold_is_not_said_to(desk: Desk) -> None:
    broken = served_run()
    payload = broken.run.payload.replace(b"completed", b"cancelled")
    broken = replace(broken, run=replace(broken.run, payload=payload))
    seen = from_run(desk, desk.at("record.json"), run=broken)
    assert seen.code == 10
    assert "The receipt holds by itself" not in seen.out


def test_a_run_is_walked_over_a_record_alone(desk: Desk) -> None:
    seen = from_run(desk, desk.write("row.proof", proof_of_row(7)))
    assert seen.code == 2
    assert "give that too" in seen.err


def test_the_record_of_a_run_is_held_to_the_log_as_well(desk: Desk) -> None:
    policy = logged(desk, at=datetime.now(UTC))
    run = desk.write("run.json", served_run().encode())
    words = ("verify", run, *desk.trust, "--with", desk.at("record.json"), "--log-policy", policy)
    seen = desk.cli(*words)
    assert seen.code == 0, seen.out
    assert "record log" in seen.out
    assert "there since" in seen.out.partition("record log")[2]
    policy = logged(desk, at=desk.trained.record.finished - timedelta(days=1))
    seen = desk.cli(*words)
    assert seen.code == 10
    assert "record/14 tlog-postdated" in seen.out


def test_a_run_that_does_not_hold_by_itself_is_no_link(desk: Desk) -> None:
    broken = served_run()
    payload = broken.run.payload.replace(b"completed", b"cancelled")
    broken = replace(broken, run=replace(broken.run, payload=payload))
    seen = desk.verify("--with", desk.write("run.json", broken.encode()))
    assert seen.code == 10


def test_the_record_of_the_base_is_walked_too(desk: Desk) -> None:
    # The base of this job is not what the other job made.
    other = desk.write("other.json", train(Job("other")).file.encode())
    seen = desk.verify("--with", other)
    assert seen.code == 10
    assert "lineage/1 model-mismatch  base model: the base is " in seen.out


def test_vendor_roots_refuse_a_simulated_record_and_say_so(desk: Desk) -> None:
    seen = desk.cli("verify", desk.at("record.json"))
    assert seen.code == 10
    assert seen.out.startswith("REJECTED (SIMULATED)")
    assert "--simulated-roots" in seen.out
    assert "ACCEPTED" not in seen.out


def test_a_refused_record_says_which_step_and_what_to_do(desk: Desk) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["predicate"]["runDetails"]["metadata"]["finishedOn"] = "2026-11-22T12:00:01Z"

    desk.write("record.json", edited(desk.trained.file, edit).encode())
    seen = desk.verify()
    assert seen.code == 10
    assert "record/4 claim-mismatch" in seen.out
    assert "What to do" in seen.out
    assert "not believed" in seen.out


def test_programs_get_one_object(desk: Desk) -> None:
    result = desk.verify("--json", "--explain").result
    assert (result["verdict"], result["simulated"], result["exit"]) == ("accepted", True, 0)
    assert result["dataset"]["root"] == JOB.commitment.root.hex()
    assert result["outputs"]["merged"] == MERGED.digest.hex()
    assert result["better"] is True
    assert [each["kind"] for each in result["lineage"]][-1] == "dataset root"
    assert {"record/1", "record/13"} <= {each["step"] for each in result["steps_run"]}


def test_a_directory_at_hand_is_measured_and_compared(desk: Desk) -> None:
    folder = desk.at("weights")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"something else")
    seen = desk.verify("--outputs", folder)
    assert seen.code == 10
    assert "record/11 output-mismatch" in seen.out


def test_what_is_for_evidence_alone_is_refused(desk: Desk) -> None:
    seen = desk.verify("--nonce", "00" * 32)
    assert seen.code == 2
    assert "--nonce" in seen.err


def logged(desk: Desk, *, at: datetime) -> Path:
    """Put a log proof into the record, seen by a witness at `at`; return whose word counts."""
    file = desk.trained.file
    opening = LeafOpening(b"b" * 32, file.record.digest)
    keeper = log_world.open_log(log_world.MemoryDisk())
    keeper.append([log_world.entry(0), opening.entry, log_world.entry(2)])
    witness = log_world.WITNESSES[0]
    head = log_world.signed(keeper.head.head, witness, seconds=int(at.timestamp()))
    proof = replace(keeper.prove(1, head), extra=opening.blinding)
    desk.write("record.json", replace(file, log=proof).encode())
    key, name = log_world.LOG.key.encode(), witness.key.encode()
    return desk.write("policy", f"log {key}\nwitness w {name}\nquorum w\n".encode())


def test_a_record_in_a_log_is_said_to_be_there(desk: Desk) -> None:
    policy = logged(desk, at=datetime.now(UTC))
    seen = desk.verify("--log-policy", policy, "--require-log")
    assert seen.code == 0
    assert "there since" in seen.out


def test_a_record_that_is_newer_than_its_log_entry_is_refused(desk: Desk) -> None:
    policy = logged(desk, at=desk.trained.record.finished - timedelta(days=1))
    seen = desk.verify("--log-policy", policy)
    assert seen.code == 10
    assert "record/14 tlog-postdated" in seen.out


def test_a_record_without_a_proof_is_refused_where_one_is_asked_for(desk: Desk) -> None:
    policy = logged(desk, at=datetime.now(UTC))
    desk.write("record.json", desk.trained.file.encode())
    assert desk.verify("--log-policy", policy).code == 0
    seen = desk.verify("--log-policy", policy, "--require-log")
    assert seen.code == 10
    assert "record/14 evidence-missing" in seen.out


def test_a_record_goes_into_a_log_and_its_proof_into_the_record(
    desk: Desk, served: ServedLog
) -> None:
    record = desk.at("record.json")
    seen = desk.cli("log", "add", record, "--log", served.url, "--policy", served.policy)
    assert seen.code == 0, seen.err
    # The simulated node ended before any log of today; nobody postdates anything.
    seen = desk.verify("--log-policy", served.policy, "--require-log")
    assert seen.code == 0, seen.out
    assert "there since" in seen.out
    assert not desk.at("record.json.tlog-pending").exists()
    assert parse_record_file(record.read_bytes()).signed() == desk.trained.file.signed()


# Audit


def audit(desk: Desk, *words: object) -> Session:
    given = ("--owner-log", desk.at("log.json"), "--salt", desk.at("salt"), *words)
    return desk.cli("train", "audit", desk.at("record.json"), *desk.trust, *given)


def test_an_owner_audits_the_log_with_the_rows(desk: Desk) -> None:
    seen = audit(desk, "--data", desk.at("data.jsonl"))
    assert seen.code == 0
    assert "SIMULATED" in seen.out
    assert "20 rows at hand are those" in seen.out
    assert audit(desk, "--json").result["verdict"] == "accepted"


def test_other_rows_or_another_log_are_refused(desk: Desk) -> None:
    fewer = b"".join(row.record + b"\n" for row in rows()[1:])
    seen = audit(desk, "--data", desk.write("fewer.jsonl", fewer))
    assert seen.code == 10
    assert "dataset-mismatch" in seen.err
    desk.write("log.json", ComputedJob("another").log.encode())
    seen = audit(desk)
    assert seen.code == 10
    assert "training-log" in seen.err


# Report


class Seen(HTMLParser):
    """What a browser would make of a page: tags, and where it would go for anything."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.fetched: list[str] = []
        self.handlers: list[str] = []
        self.policy = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset", "poster"):
                self.fetched.append(f"{name}={value}")
            if name.startswith("on") or name == "style":
                self.handlers.append(f"{name}={value}")
            if tag == "meta" and ("http-equiv", "Content-Security-Policy") in attrs:
                self.policy = dict(attrs).get("content") or ""

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_page_shows_curves_lineage_what_is_proven_and_what_is_not(desk: Desk) -> None:
    run = desk.write("run.json", served_run().encode())
    seen, page = desk.report("--owner-log", desk.at("log.json"), "--with", run)
    assert seen.code == 0
    for heading in ("Lineage", "Loss", "Evaluation", "Proven", "Not proven", "Every step"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<polyline") >= 3
    assert "Agent run" in page
    assert "SIMULATED" in page
    assert "gpu-colocation" in page
    last = JOB.log.steps[-1].record.loss
    assert f"{last:.4g} at step 32" in page


def test_a_page_shows_what_was_found_on_the_way(desk: Desk) -> None:
    _, before = desk.report("--owner-log", desk.at("log.json"))
    assert "on the way" not in before
    judged = ComputedJob("judged", recipe=replace(JOB.recipe, eval_steps=6))
    desk.trained = train(judged)
    desk.write("record.json", desk.trained.file.encode())
    desk.write("log.json", judged.log.encode())
    seen, page = desk.report("--owner-log", desk.at("log.json"))
    assert seen.code == 0, seen.err
    assert "From 2.5 at step 0 to 0.5 at step 32; lowest 0.5, highest 2.5." in page
    assert "<tr><th scope=row>24</th><td>0.58</td></tr>" in page
    assert page.count("<polyline") == before.count("<polyline") + 2


def test_a_page_shows_a_row_that_was_proven_and_not_what_is_in_it(desk: Desk) -> None:
    seen, page = desk.report("--with", desk.write("row.proof", proof_of_row(7)))
    assert seen.code == 0
    assert "7 of 20: proven" in page
    assert str(rows()[6].value["completion"]) not in page


def test_a_page_fetches_nothing_and_runs_nothing(desk: Desk) -> None:
    _, page = desk.report("--owner-log", desk.at("log.json"))
    found = Seen(page)
    assert found.fetched == []
    assert found.handlers == []
    assert not found.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    digest = b64encode(hashlib.sha256(STYLE.encode()).digest())
    assert found.policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
    assert f"<style>{STYLE}</style>" in page


def test_every_picture_says_in_words_what_it_shows(desk: Desk) -> None:
    _, page = desk.report("--owner-log", desk.at("log.json"))
    pictures = page.count("<svg")
    assert pictures == page.count('role="img" aria-label="') + page.count(
        'preserveAspectRatio="none" aria-hidden="true"'
    )
    assert '<html lang="en">' in page
    assert "<details><summary>Numbers</summary><table>" in page


def test_a_stranger_gets_a_page_that_says_what_it_cannot_show(desk: Desk) -> None:
    seen, page = desk.report()
    assert seen.code == 0
    assert "sealed to the owner" in page
    assert desk.trained.record.owner_log.hex() in page
    assert "<polyline" not in page
    assert "By how much, the owner's log says." in page
    assert "the owner's log was not at hand" in page


def test_an_audited_log_is_said_to_be_audited(desk: Desk) -> None:
    _, page = desk.report("--owner-log", desk.at("log.json"), "--salt", desk.at("salt"))
    assert "audited against the owner" in page
    assert "for want of the salt" not in page


def test_a_log_of_another_job_makes_no_page(desk: Desk) -> None:
    desk.write("log.json", ComputedJob("another").log.encode())
    seen, page = desk.report("--owner-log", desk.at("log.json"))
    assert (seen.code, page) == (10, "")


def test_a_refused_record_makes_a_page_that_says_so_and_draws_nothing(desk: Desk) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["predicate"]["runDetails"]["metadata"]["finishedOn"] = "2026-11-22T12:00:01Z"

    desk.write("record.json", edited(desk.trained.file, edit).encode())
    seen, page = desk.report("--owner-log", desk.at("log.json"))
    assert seen.code == 10
    assert "REJECTED" in page
    assert "SIMULATED" in page
    assert "ACCEPTED" not in page
    assert "<polyline" not in page
    assert "record/4" in page


@dataclass(frozen=True)
class HostileJob(Job):
    """A job of a node that writes markup wherever a text may stand."""

    environment: tuple[tuple[str, str], ...] = ((HOSTILE, HOSTILE), ("isa", "\"' & <b>"))


def test_hostile_names_stay_text(desk: Desk) -> None:
    desk.trained = train(HostileJob("hostile"))
    desk.write("record.json", desk.trained.file.encode())
    seen, page = desk.report()
    assert seen.code == 0
    found = Seen(page)
    assert not found.tags & {"script", "img"}
    assert found.handlers == []
    assert any("<script>alert(1)</script>" in text for text in found.text)


def test_a_rate_that_never_changes_is_one_line_in_the_middle_with_one_number() -> None:
    drawn = plot("Learning rate", "", [Line("rate", [1e-3] * 3, "one")])
    assert 'points="0.0,150.0 500.0,150.0 1000.0,150.0"' in drawn
    assert '<div class="y" aria-hidden="true"><span></span><span>0.001</span><span></span>' in drawn
