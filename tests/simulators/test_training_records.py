"""Training records, whole: a genuine one is accepted, and every way of changing one is refused.

Two kinds of forger. A stranger edits the file and holds no key (`edited`). A dishonest training
node signs and quotes whatever it likes (`resealed`): what refuses it then is what its own boots
proved before, or what does not fit together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from nodes import NOW, WEIGHTS
from runs import expectation_and_roots
from trainings import (
    ADAPTER,
    MERGED,
    Happening,
    Job,
    byproduct,
    dependency,
    edited,
    manifest,
    refusals,
    resealed,
    sha,
    train,
    verify,
)

from confide.errors import FormatError, Reason
from confide.rats import Status
from confide.training.boots import read_turn, turns_head
from confide.training.predicates import (
    HardwareOfBoot,
    TestResult,
    encode_hardware,
    encode_test_result,
    encode_weights,
    parse_hardware,
)
from confide.training.record import MAX_CHECKPOINTS, listed_checkpoints
from confide.training.record_file import parse_record_file
from confide.training.record_verify import VerifiedRecord
from confide.trust.roots import VENDOR_ROOTS
from confide.wire.dsse import Envelope
from confide.wire.json import Members, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.training.record_file import RecordFile

OTHER = Job("other")
MOVED = Job(
    "moved",
    turns=(
        Happening("paused", 2),
        Happening("resumed", 2),
        Happening("restarted", 4),
        Happening("moved", 6, "other"),
    ),
)
HOLDS_NO_KEY = {"4": Reason.CLAIM_MISMATCH}


def internal(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["predicate"]["buildDefinition"]["internalParameters"]
    return found


def flip(text: str) -> str:
    return ("1" if text[0] == "0" else "0") + text[1:]


# What is accepted


def test_a_genuine_record_is_accepted_in_every_step() -> None:
    outputs = {"merged": MERGED.digest, "adapter": ADAPTER.digest}
    verified = verify(
        train().file,
        expectation=expectation_and_roots()[0],
        nonce=sha("first", "nonce"),
        outputs=outputs,
    )
    steps = [f.step for f in verified.findings if f.step.startswith("record/")]
    assert steps == [f"record/{number}" for number in range(1, 14)]
    assert {finding.status for finding in verified.findings} == {Status.PASS}
    assert verified.simulated
    assert verified.node.statement.claim == verified.digest
    assert verified.record == train().record
    assert verified.manifests == {"merged": MERGED, "adapter": ADAPTER}


def test_a_stranger_verifies_it_too() -> None:
    assert verify(train().file).record.plan.base == WEIGHTS


def test_pauses_restarts_and_another_machine_are_told_and_accepted() -> None:
    verified = verify(train(MOVED).file)
    kinds = [event.kind for event in verified.record.turns]
    assert kinds == ["started", "paused", "resumed", "restarted", "moved"]
    assert len({boot.keyset.digest for boot in verified.boots}) == 3
    (step,) = (f for f in verified.findings if f.step == "record/9")
    assert step.detail == "5 turns, 3 boots, 2 machines"


def test_a_job_that_was_not_evaluated_says_nothing_of_quality() -> None:
    verified = verify(train(Job("blind", evaluated=False)).file)
    assert verified.evaluation is None


def test_a_tuned_model_that_is_not_better_is_accepted_and_said_to_be_so() -> None:
    verified = verify(train(Job("worse", better=False)).file)
    assert verified.evaluation is not None
    assert verified.evaluation[1].better is False


def test_the_file_survives_its_encoding() -> None:
    raw = train(MOVED).file.encode()
    assert parse_record_file(raw).encode() == raw
    verify(parse_record_file(raw))


def test_nobody_else_makes_the_proof() -> None:
    verified = verify(train().file)
    with pytest.raises(TypeError):
        VerifiedRecord(
            verified.record,
            verified.digest,
            verified.expectation,
            verified.node,
            verified.boots,
            verified.machines,
            verified.seats,
            verified.manifests,
            None,
            (),
            seal=object(),
        )


def test_ten_thousand_steps_fit_into_a_hundred_kilobytes() -> None:
    big = Job("big", steps=10_000, planned=10_000, every=1)
    file = train(big).file
    verified = verify(file)
    assert MAX_CHECKPOINTS - 2 < len(verified.record.checkpoints) <= MAX_CHECKPOINTS
    assert len(jcs(file.signed())) <= 100 * 1000


def test_thinning_keeps_where_something_happened_and_the_end() -> None:
    many = Job("many", steps=1000, planned=1000, every=1, turns=(Happening("restarted", 777),))
    record = train(many).record
    listed = {each.step for each in record.checkpoints}
    assert {777, 1000} <= listed
    assert len(listed) <= MAX_CHECKPOINTS
    few = many.checkpoints[:MAX_CHECKPOINTS]
    assert listed_checkpoints(few, ()) == few


# A stranger who edits

FLIPS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    **dict.fromkeys(("nonce", "keyset", "expectation", "plan"), internal),
    "recipe": lambda document: document["predicate"]["buildDefinition"]["externalParameters"],
    "invocationId": lambda document: document["predicate"]["runDetails"]["metadata"],
}
DEPENDENCIES = ("base", "dataset", "dataset-root", "software", "template", "tokenizer")
BYPRODUCTS = (
    *(
        "step-chain",
        "event-chain",
        "turns",
        "owner-log",
        "sealed/adapter",
        "checkpoint/2",
        "checkpoint/8",
    ),
    *("statement/hardware", "statement/weights/merged", "statement/evaluation/tuned"),
)


@pytest.mark.parametrize("member", FLIPS)
def test_no_digest_of_the_record_can_be_edited(member: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        holder = FLIPS[member](document)
        holder[member] = flip(holder[member])

    assert refusals(edited(train().file, edit))


@pytest.mark.parametrize("name", DEPENDENCIES)
def test_no_dependency_can_be_edited(name: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        digest = dependency(document, name)["digest"]
        digest["sha256"] = flip(digest["sha256"])

    found = refusals(edited(train().file, edit))
    assert set(found.values()) & {Reason.TRAINING_PLAN, Reason.TRAINING_FORMAT} or (
        HOLDS_NO_KEY.items() <= found.items()
    )


@pytest.mark.parametrize("name", BYPRODUCTS)
def test_no_byproduct_can_be_edited(name: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        digest = byproduct(document, name)["digest"]
        digest["sha256"] = flip(digest["sha256"])

    assert HOLDS_NO_KEY.items() <= refusals(edited(train().file, edit)).items()


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("startedOn", "2026-11-22T11:59:59Z"),
        ("finishedOn", "2026-11-22T12:00:01Z"),
    ],
)
def test_no_time_can_be_edited(member: str, value: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["predicate"]["runDetails"]["metadata"][member] = value

    assert refusals(edited(train().file, edit)) == HOLDS_NO_KEY


def test_the_environment_cannot_be_edited() -> None:
    def edit(document: dict[str, Any]) -> None:
        internal(document)["environment"]["isa"] = "avx2"

    assert refusals(edited(train().file, edit)) == HOLDS_NO_KEY


def test_privacy_cannot_be_written_in() -> None:
    def edit(document: dict[str, Any]) -> None:
        names = ("noise_multiplier", "max_grad_norm", "delta", "epsilon")
        internal(document)["privacy"] = dict.fromkeys(names, "1.0")

    assert refusals(edited(train().file, edit)) == HOLDS_NO_KEY


# A dishonest node: what does not fit its own boots, or its own statements


@pytest.mark.parametrize("name", ["dataset", "tokenizer", "template", "base"])
def test_a_part_of_the_plan_cannot_be_swapped_even_when_signed(name: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        digest = dependency(document, name)["digest"]
        digest["sha256"] = flip(digest["sha256"])

    assert refusals(resealed(train(), edit))["1"] is Reason.TRAINING_PLAN


def test_another_plan_than_was_measured_is_refused_even_when_signed() -> None:
    job = replace(Job(), name="rewritten")
    theirs, ours = train(job), train()

    def edit(document: dict[str, Any]) -> None:
        mine = theirs.record.plan
        internal(document)["plan"] = mine.digest.hex()
        external = document["predicate"]["buildDefinition"]["externalParameters"]
        external["recipe"] = mine.recipe.hex()
        for name in ("dataset", "tokenizer", "template"):
            dependency(document, name)["digest"]["sha256"] = getattr(mine, name).hex()

    assert refusals(resealed(ours, edit))["6"] is Reason.CLAIM_MISMATCH


def test_a_base_model_that_the_node_did_not_measure_is_refused() -> None:
    swapped = Job("other base", base=sha("other base model"))
    assert refusals(train(swapped).file) == {"8": Reason.MODEL_MISMATCH}


def test_another_image_of_the_node_is_refused() -> None:
    def edit(document: dict[str, Any]) -> None:
        other = sha("another image").hex()
        dependency(document, "software")["digest"]["sha256"] = other
        document["predicate"]["runDetails"]["builder"]["id"] = f"confide:node/sha256:{other}"

    assert refusals(resealed(train(), edit)) == {"8": Reason.NODE_SOFTWARE_MISMATCH}


def test_a_builder_that_is_not_the_software_is_refused() -> None:
    def edit(document: dict[str, Any]) -> None:
        document["predicate"]["runDetails"]["builder"]["id"] = "confide:node/sha256:" + "0" * 64

    assert refusals(resealed(train(), edit))["1"] is Reason.TRAINING_FORMAT


@pytest.mark.parametrize("measured", ["nothing", "other"])
def test_a_job_that_was_not_measured_before_it_began_is_refused(measured: str) -> None:
    assert refusals(train(Job(f"not measured: {measured}", measured=measured)).file) == {
        "7": Reason.TRAINING_PLAN
    }


# Evidence


def test_evidence_of_another_job_is_refused() -> None:
    theirs = train(OTHER).file
    after = replace(train().file, after=theirs.after)
    assert refusals(after) == {"4": Reason.NONCE_MISMATCH}
    boots = replace(train().file, boots=theirs.boots)
    assert refusals(boots) == {"6": Reason.NONCE_MISMATCH}


def test_evidence_of_a_boot_does_not_stand_for_the_end() -> None:
    file = train().file
    assert refusals(replace(file, after=file.boots[0]))["4"] is Reason.NONCE_MISMATCH


def test_a_verifier_with_another_nonce_or_expectation_refuses() -> None:
    assert refusals(train().file, nonce=bytes(32)) == {"4": Reason.NONCE_MISMATCH}
    other = replace(expectation_and_roots()[0], name="another")
    assert refusals(train().file, expectation=other) == {"3": Reason.EXPECTATION_MISMATCH}
    file = replace(train().file, expectation=other.canonical())
    assert refusals(file) == {"3": Reason.EXPECTATION_MISMATCH}


def test_vendor_roots_refuse_a_simulated_record_whatever_the_file_says() -> None:
    assert refusals(train().file, roots=VENDOR_ROOTS)["4"] is Reason.ROOT_MISMATCH


def test_a_record_is_refused_when_its_evidence_expired() -> None:
    assert "4" in refusals(train().file, now=NOW.replace(year=2028))


# Machines, events, checkpoints


def rehash_turns(document: dict[str, Any], job: Job) -> None:
    """Make the head of the turns follow from them again."""
    entry = byproduct(document, "turns")
    turns = [
        read_turn(Members(item, what="turn", reason=Reason.TRAINING_FORMAT))
        for item in entry["annotations"]["turns"]
    ]
    entry["digest"]["sha256"] = turns_head(job.chain(0), turns).hex()


def rewritten(edit: Callable[[list[dict[str, Any]]], None], job: Job) -> RecordFile:
    """A record whose turns are edited and hash to their head, signed by the last boot."""

    def change(document: dict[str, Any]) -> None:
        edit(byproduct(document, "turns")["annotations"]["turns"])
        rehash_turns(document, job)

    return resealed(train(job), change)


def test_a_machine_cannot_be_swapped_silently() -> None:
    swapped = train(Job("swapped", turns=(Happening("restarted", 4, "other"),))).file
    assert refusals(swapped) == {"9": Reason.TRAINING_MACHINE}
    named = train(Job("not swapped", turns=(Happening("moved", 4),))).file
    assert refusals(named) == {"9": Reason.TRAINING_MACHINE}


def test_a_boot_cannot_be_left_out_of_the_turns() -> None:
    def drop(turns: list[dict[str, Any]]) -> None:
        del turns[-1]

    assert refusals(rewritten(drop, MOVED))["6"] is Reason.TRAINING_MACHINE


def test_a_boot_cannot_be_left_out_together_with_its_evidence() -> None:
    file = train(MOVED).file
    merged, boots = parse_hardware(file.statements["hardware"].payload, "merged")

    def drop(document: dict[str, Any]) -> None:
        del byproduct(document, "turns")["annotations"]["turns"][-1]
        rehash_turns(document, MOVED)

    statements = {"hardware": encode_hardware("merged", merged, boots[:-1])}
    forged = resealed(train(MOVED), drop, statements=statements)
    found = refusals(replace(forged, boots=file.boots[:-1]))
    assert found == {"6": Reason.TRAINING_MACHINE}


def test_a_boot_that_proved_other_turns_before_it_is_refused() -> None:
    def edit(turns: list[dict[str, Any]]) -> None:
        # The pause never happened.
        del turns[1:3]

    assert refusals(rewritten(edit, MOVED))["6"] is Reason.CLAIM_MISMATCH


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"machine": bytes(32)}, Reason.TRAINING_MACHINE),
        ({"keyset": bytes(32)}, Reason.TRAINING_MACHINE),
        ({"evidence": bytes(32)}, Reason.TRAINING_MACHINE),
        ({"gpus": 2}, Reason.TRAINING_MACHINE),
    ],
)
def test_hardware_that_was_not_proven_is_refused(changed: dict[str, Any], reason: Reason) -> None:
    merged, boots = parse_hardware(train().file.statements["hardware"].payload, "merged")
    other: tuple[HardwareOfBoot, ...] = (replace(boots[0], **changed),)
    statements = {"hardware": encode_hardware("merged", merged, other)}
    assert refusals(resealed(train(), statements=statements))["6"] is reason


def test_going_on_from_an_older_checkpoint_is_refused() -> None:
    back = Job(
        "back", turns=(Happening("paused", 6), Happening("resumed", 6), Happening("restarted", 2))
    )
    assert refusals(train(back).file) == {"9": Reason.CHECKPOINT_ROLLBACK}


def test_an_older_checkpoint_cannot_pass_for_the_end() -> None:
    def edit(document: dict[str, Any]) -> None:
        byproducts = document["predicate"]["runDetails"]["byproducts"]
        byproducts.remove(byproduct(document, "checkpoint/8"))

    assert refusals(resealed(train(), edit)) == {"10": Reason.CHECKPOINT_ROLLBACK}


def test_a_job_that_stopped_early_is_refused_and_the_rest_is_shown() -> None:
    assert refusals(train(Job("short", steps=6)).file) == {"13": Reason.RUN_FAILED}


def test_a_head_without_its_last_checkpoint_is_refused() -> None:
    def edit(document: dict[str, Any]) -> None:
        byproduct(document, "step-chain")["digest"]["sha256"] = sha("another head").hex()

    assert refusals(resealed(train(), edit)) == {"10": Reason.CHECKPOINT_MISMATCH}


@pytest.mark.parametrize("steps", [7, 9])
def test_a_step_too_many_or_too_few_is_refused(steps: int) -> None:
    def edit(document: dict[str, Any]) -> None:
        byproduct(document, "step-chain")["annotations"]["steps"] = steps

    found = refusals(resealed(train(), edit))
    assert {"10", "13"} <= found.keys()


def test_a_turn_that_stands_at_no_checkpoint_is_refused() -> None:
    def edit(document: dict[str, Any]) -> None:
        byproducts = document["predicate"]["runDetails"]["byproducts"]
        byproducts.remove(byproduct(document, "checkpoint/4"))

    assert refusals(resealed(train(MOVED), edit)) == {"9": Reason.CHECKPOINT_MISMATCH}


@pytest.mark.parametrize(
    "turns",
    [
        (Happening("resumed", 2),),
        (Happening("paused", 2), Happening("paused", 2)),
        (Happening("paused", 2),),
    ],
    ids=["resumed", "paused twice", "paused for good"],
)
def test_pause_and_resume_take_turns(turns: tuple[Happening, ...]) -> None:
    found = refusals(train(Job(f"turns {len(turns)} {turns[0].kind}", turns=turns)).file)
    assert found == {"9": Reason.CHECKPOINT_MISMATCH}


# Output, evaluation, statements


def test_directories_at_hand_must_be_what_came_out() -> None:
    outputs = {"merged": manifest("model.safetensors").digest}
    assert refusals(train().file, outputs=outputs) == {"11": Reason.OUTPUT_MISMATCH}
    assert refusals(train(Job("full", adapter=False)).file, outputs={"adapter": ADAPTER.digest})


def test_files_that_do_not_make_the_output_are_refused() -> None:
    statements = {"weights/merged": encode_weights("merged", manifest("model.safetensors"))}
    found = refusals(resealed(train(), statements=statements))
    assert found == {"11": Reason.OUTPUT_MISMATCH}


def _result(**changed: Any) -> TestResult:
    plan = Job().plan.digest
    tuned = TestResult(MERGED.digest, plan, sha("first", "tuned metrics"), better=True)
    return replace(tuned, **changed)


@pytest.mark.parametrize(
    "changed",
    [{"model": bytes(32)}, {"plan": bytes(32)}, {"better": None}],
    ids=["other model", "other rows", "says nothing"],
)
def test_an_evaluation_of_something_else_is_refused(changed: dict[str, Any]) -> None:
    statements = {"evaluation/tuned": encode_test_result("merged", _result(**changed))}
    found = refusals(resealed(train(), statements=statements))
    assert found == {"12": Reason.TRAINING_EVALUATION}


@pytest.mark.parametrize("name", sorted(train().file.statements))
def test_no_statement_can_be_left_out_changed_or_taken_from_another_job(name: str) -> None:
    file = train().file
    rest = {other: each for other, each in file.statements.items() if other != name}
    assert refusals(replace(file, statements=rest))["2"] is Reason.RECEIPT_MISSING
    foreign = {**file.statements, name: train(MOVED).file.statements[name]}
    if foreign[name].digest != file.statements[name].digest:
        found = refusals(replace(file, statements=foreign))
        assert found["2"] is Reason.RECEIPT_NOT_REFERENCED
    left_out = resealed(train(), statements={name: None})
    assert refusals(left_out)["2"] is Reason.RECEIPT_MISSING


def test_a_statement_without_its_signature_is_refused() -> None:
    file = train().file
    hardware = file.statements["hardware"]
    bare = {**file.statements, "hardware": Envelope(hardware.payload, ())}
    assert refusals(replace(file, statements=bare)) == {"5": Reason.RECEIPT_SIGNATURE}


def test_half_an_evaluation_cannot_be_added() -> None:
    blind = train(Job("blind", evaluated=False)).file
    more = {**blind.statements, "evaluation/base": train().file.statements["evaluation/base"]}
    found = refusals(replace(blind, statements=more))
    assert found["2"] is Reason.RECEIPT_NOT_REFERENCED


# The envelope and the file


def test_a_record_signed_by_another_boot_is_refused() -> None:
    file = train().file
    other = replace(file, record=Envelope(file.record.payload, train(OTHER).file.record.signatures))
    assert refusals(other) == {"5": Reason.RECEIPT_SIGNATURE}


def test_a_payload_that_is_not_canonical_is_refused_even_when_signed() -> None:
    def spaced(document: dict[str, Any]) -> bytes:
        return jcs(document).replace(b'":', b'": ', 1)

    assert refusals(resealed(train(), encode=spaced))["1"] is Reason.TRAINING_FORMAT


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document["subject"].reverse(),
        lambda document: document["predicate"]["runDetails"]["byproducts"].reverse(),
        lambda document: document["predicate"].update(verdict="accepted"),
        lambda document: internal(document).update(environment={"isa": "\x1b[2J"}),
        lambda document: internal(document).update(environment={"isa": 512}),
        lambda document: document["predicate"]["buildDefinition"].update(buildType="confide:x"),
        lambda document: byproduct(document, "checkpoint/2").update(name="checkpoint/02"),
        lambda document: byproduct(document, "checkpoint/2").update(name="checkpoint/two"),
        lambda document: byproduct(document, "owner-log").update(name="owner_log"),
        lambda document: dependency(document, "template").update(name="templates"),
    ],
)
def test_whatever_is_not_written_in_the_one_form_is_refused(
    edit: Callable[[dict[str, Any]], None],
) -> None:
    assert refusals(resealed(train(), edit))["1"] is Reason.TRAINING_FORMAT


@pytest.mark.parametrize(
    "member", ["type", "expectation", "record", "statements", "evidence", "blobs", "roots", "log"]
)
def test_a_file_without_one_of_its_members_is_no_record(member: str) -> None:
    document = parse_json(train().file.encode(), what="x", reason=Reason.TRAINING_FORMAT)
    assert isinstance(document, dict)
    del document[member]
    with pytest.raises(FormatError):
        parse_record_file(jcs(document))


# Time


def test_each_boot_is_judged_by_its_own_time_unless_a_time_is_named() -> None:
    verified = verify(train(MOVED).file, now=None)
    assert {boot.result.now for boot in verified.boots} == {NOW}
    assert verified.node.result.now == verified.record.finished


@pytest.mark.parametrize("at", ["2026-11-22T11:59:59Z", "2026-11-22T12:00:01Z"])
def test_a_turn_before_the_start_or_after_the_end_is_refused(at: str) -> None:
    def edit(turns: list[dict[str, Any]]) -> None:
        turns[-1]["at"] = at

    found = refusals(rewritten(edit, Job()))
    # The boot proved another time, and what it tells goes back in time.
    assert found["6"] is Reason.CLAIM_MISMATCH


def test_turns_that_go_back_in_time_are_refused() -> None:
    def edit(document: dict[str, Any]) -> None:
        document["predicate"]["runDetails"]["metadata"]["startedOn"] = "2026-11-22T12:00:01Z"

    assert refusals(resealed(train(), edit)) == {"9": Reason.TRAINING_CHAIN}
