"""Artefact-level records on the command line: what is shown, and that it is said to be coarser."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import log_world
import pytest
from image_trainings import IMAGE, MADE, ImageStory, committed_rows, made_manifest, train_image
from nodes import NOW, WEIGHTS
from runs import Story, infer, serving, tell, tell_at
from trainings import edited, sha, train

from confide.cli.training_style import STYLE
from confide.receipts.inference import ExchangeFacts
from confide.receipts.inference_file import InferenceFile
from confide.tlog.leaf import LeafOpening
from confide.training.limits import COARSER, IMAGE_LIMITS

if TYPE_CHECKING:
    from pathlib import Path

    from sessions import Cli, Session

    from confide.training.record_file import RecordFile

MADE_DIGEST = made_manifest(MADE).digest


class Desk:
    """A record in a folder, and the command line."""

    def __init__(self, cli: Cli, folder: Path) -> None:
        self.cli = cli
        self.folder = folder
        self.file = train_image().file
        self.write("record.json", self.file.encode())

    def write(self, name: str, raw: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(raw)
        return path

    @property
    def trust(self) -> tuple[str, str]:
        path = self.write("roots.json", self.file.roots)
        return "--simulated-roots", str(path)

    def __call__(self, *words: object) -> Session:
        return self.cli(*words, *self.trust)

    def verify(self, *words: object) -> Session:
        return self("verify", self.folder / "record.json", *words)

    def report(self, *words: object) -> tuple[Session, str]:
        page = self.folder / "report.html"
        seen = self("train", "report", self.folder / "record.json", "-o", page, *words)
        return seen, page.read_text("utf-8") if page.exists() else ""


@pytest.fixture
def desk(cli: Cli, tmp_path: Path) -> Desk:
    return Desk(cli, tmp_path)


def joined(text: str) -> str:
    """Text of a screen without its line breaks."""
    return " ".join(text.split())


# Verify


def test_the_verdict_says_at_once_that_the_record_is_coarser(desk: Desk) -> None:
    seen = desk.verify()
    assert seen.code == 0
    lines = seen.out.splitlines()
    assert lines[0].startswith("ACCEPTED (SIMULATED)  training record ")
    assert f"This training record is {COARSER}." in joined("\n".join(lines[:8]))
    for limit in IMAGE_LIMITS:
        assert limit in joined(seen.out)
    assert f"image sha256:{IMAGE}" in joined(seen.out)
    assert "steps not recorded: artefact-level" in joined(seen.out)
    assert len(lines) <= 60


def test_a_record_of_steps_is_not_said_to_be_coarser(desk: Desk) -> None:
    desk.write("record.json", train().file.encode())
    seen = desk.verify()
    assert seen.code == 0
    assert "artefact" not in seen.out
    assert desk.verify("--json").result["granularity"] == "step"


def test_programs_are_told_too(desk: Desk) -> None:
    result = desk.verify("--json", "--explain").result
    assert (result["verdict"], result["granularity"]) == ("accepted", "artefact")
    assert (result["image"], result["exit"]) == (IMAGE, {"end": "exited", "status": 0})
    assert "steps" not in result
    assert result["outputs"] == {"output": MADE_DIGEST.hex()}
    assert result["not_proven"] == list(IMAGE_LIMITS)
    kinds = [each["kind"] for each in result["lineage"]]
    assert kinds == ["weights", "training", "image", "base", "dataset", "dataset root"]
    assert {"image/1", "image/10"} <= {each["step"] for each in result["steps_run"]}


def test_a_refused_one_says_which_step_and_what_to_do(desk: Desk) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["predicate"]["runDetails"]["metadata"]["finishedOn"] = "2026-11-22T12:00:01Z"

    desk.write("record.json", edited(desk.file, edit).encode())
    seen = desk.verify()
    assert seen.code == 10
    assert "image/4 claim-mismatch" in seen.out
    assert "not believed" in seen.out


def test_a_directory_at_hand_is_measured_and_compared(desk: Desk) -> None:
    folder = desk.folder / "weights"
    folder.mkdir()
    for name, raw in MADE.items():
        (folder / name).write_bytes(raw)
    seen = desk.verify("--outputs", folder)
    assert seen.code == 0
    assert "output: measured and compared" in joined(seen.out)
    (folder / "config.json").write_bytes(b"[]")
    seen = desk.verify("--outputs", folder)
    assert seen.code == 10
    assert "image/9 output-mismatch" in seen.out


# Lineage


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


def test_it_walks_from_the_agent_run_to_the_root_and_names_the_weaker_link(desk: Desk) -> None:
    story = Story("served by what an image made")
    run = desk.write("run.json", tell_at(serving(MADE_DIGEST), story).encode())
    seen = desk.verify("--with", run)
    assert seen.code == 0, seen.out
    record = train_image().record
    walk = [
        ("weights", MADE_DIGEST),
        ("training", desk.file.record.digest),
        ("image", record.plan.image),
        ("base", WEIGHTS),
        ("dataset", record.plan.dataset),
        ("dataset root", record.dataset_root),
    ]
    found = [seen.out.index(f"{kind:<12}  {digest.hex()}") for kind, digest in walk]
    assert found == sorted(found)
    assert "artefact-level: no steps" in joined(seen.out)


def test_a_receipt_is_walked_with_it_and_says_so(desk: Desk) -> None:
    story = Story("served by what an image made")
    run = desk.write("run.json", tell_at(serving(MADE_DIGEST), story).encode())
    words = ("verify", run, "--with", desk.folder / "record.json")
    seen = desk(*words)
    assert seen.code == 0, seen.out
    assert f"This training record is {COARSER}." in joined(seen.out)
    assert IMAGE_LIMITS[0] in joined(seen.out)
    training = desk(*words, "--json").result["training"]
    assert (training["granularity"], training["not_proven"]) == ("artefact", list(IMAGE_LIMITS))


def test_an_answer_of_other_weights_is_no_link(desk: Desk) -> None:
    seen = desk.verify("--with", desk.write("answer.json", answer(MADE_DIGEST)))
    assert seen.code == 0, seen.out
    for other in (answer(WEIGHTS), tell().encode()):
        seen = desk.verify("--with", desk.write("answer.json", other))
        assert seen.code == 10
        assert "model-mismatch" in seen.out


def test_an_image_may_have_made_the_base_of_a_training_in_steps(desk: Desk) -> None:
    # The base of this story is what another image made.
    first = train_image()
    second = train_image(ImageStory("second", base=first.record.made, held=first.record.made))
    desk.write("record.json", second.file.encode())
    seen = desk.verify("--with", desk.write("first.json", first.file.encode()))
    assert seen.code == 0, seen.out
    assert joined(seen.out).count("artefact-level: no steps") == 2
    stranger = desk.write("other.json", train().file.encode())
    seen = desk.verify("--with", stranger)
    assert seen.code == 10
    assert "model-mismatch" in seen.out


# Nothing to audit, nothing to replay


def owner_files(desk: Desk) -> tuple[object, ...]:
    desk.write("log.json", b"{}")
    desk.write("salt", b"00" * 32 + b"\n").chmod(0o600)
    return "--owner-log", desk.folder / "log.json", "--salt", desk.folder / "salt"


def test_it_is_not_audited(desk: Desk) -> None:
    seen = desk("train", "audit", desk.folder / "record.json", *owner_files(desk))
    assert seen.code == 10
    assert "training-granularity" in seen.err
    assert "no steps to audit or to execute again" in joined(seen.err)
    assert "recipe.toml" in joined(seen.err)


def test_it_is_not_replayed(desk: Desk) -> None:
    files = (*owner_files(desk), "--data", desk.folder / "log.json", "--base", desk.folder)
    rest = ("--checkpoints", desk.folder, "--checkpoint-key", desk.folder / "salt")
    seen = desk("train", "replay", desk.folder / "record.json", *files, *rest)
    assert seen.code == 10
    assert "training-granularity" in seen.err


def test_no_log_makes_a_page_of_it(desk: Desk) -> None:
    seen, page = desk.report("--owner-log", desk.write("log.json", b"{}"))
    assert (seen.code, page) == (10, "")
    assert "training-granularity" in seen.err


# The transparency log


def logged(desk: Desk, file: RecordFile) -> Path:
    opening = LeafOpening(b"b" * 32, file.record.digest)
    keeper = log_world.open_log(log_world.MemoryDisk())
    keeper.append([log_world.entry(0), opening.entry])
    witness, now = log_world.WITNESSES[0], int(datetime.now(UTC).timestamp())
    head = log_world.signed(keeper.head.head, witness, seconds=now)
    proof = replace(keeper.prove(1, head), extra=opening.blinding)
    desk.write("record.json", replace(file, log=proof).encode())
    key, name = log_world.LOG.key.encode(), witness.key.encode()
    return desk.write("policy", f"log {key}\nwitness w {name}\nquorum w\n".encode())


def test_it_is_logged_like_any_other(desk: Desk) -> None:
    policy = logged(desk, desk.file)
    seen = desk.verify("--log-policy", policy, "--require-log")
    assert seen.code == 0, seen.out
    assert "there since" in seen.out
    desk.write("record.json", desk.file.encode())
    seen = desk.verify("--log-policy", policy, "--require-log")
    assert seen.code == 10
    assert "image/11 evidence-missing" in seen.out


# Report


def test_the_page_says_that_the_record_is_coarser_before_anything_else(desk: Desk) -> None:
    seen, page = desk.report()
    assert seen.code == 0
    assert page.index("<h2>A coarser record</h2>") < page.index("<h2>Lineage</h2>")
    assert COARSER in page
    for limit in IMAGE_LIMITS[1:3]:
        assert limit[1:] in page
    assert "<polyline" not in page
    assert "What a replay would show" not in page
    assert IMAGE in page
    assert f"<style>{STYLE}</style>" in page
    assert "src=" not in page


def test_a_refused_one_makes_a_page_that_says_so_and_draws_nothing(desk: Desk) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["predicate"]["runDetails"]["metadata"]["finishedOn"] = "2026-11-22T12:00:01Z"

    desk.write("record.json", edited(desk.file, edit).encode())
    seen, page = desk.report()
    assert seen.code == 10
    assert "REJECTED" in page
    assert "<h2>Lineage</h2>" not in page
    assert "artefact-level" in page


def test_validation_rows_are_on_the_page(desk: Desk) -> None:
    raw = b'{"prompt":"three","completion":"3"}\n'
    file = train_image(ImageStory("on a page", validation=raw)).file
    desk.write("record.json", file.encode())
    _, page = desk.report()
    assert committed_rows(raw, raw).commitment.digest.hex() in page
