"""Artefact-level records, whole: a genuine one is accepted, every way of changing one is refused.

Two kinds of forger, as in test_training_records.py: a stranger edits the file and holds no key; a
dishonest node signs and quotes whatever it likes.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from image_trainings import (
    HELD_OUT,
    MADE,
    ImageStory,
    forge_image,
    image_refusals,
    made_manifest,
    train_image,
    verify_image,
)
from nodes import NOW, SOFTWARE, WEIGHTS
from runs import expectation_and_roots
from trainings import byproduct, dependency, edited, manifest, refusals, resealed, sha, train

from confide.agents.sandbox import ExitKind
from confide.errors import FormatError, Reason
from confide.rats import Status
from confide.training.any_record import parse_any_record, verify_any_record
from confide.training.image_parse import parse_image_record
from confide.training.image_recipe import ImageRecipe
from confide.training.image_record import ImageRecord
from confide.training.image_verify import VerifiedImageRecord
from confide.training.predicates import encode_hardware, encode_weights, parse_hardware
from confide.training.record import TrainingRecord
from confide.training.record_file import parse_record_file
from confide.training.record_parse import parse_training_record
from confide.training.record_verify import VerifiedRecord
from confide.wire.dsse import Envelope
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Callable

OTHER = ImageStory("another job")
VALIDATED = ImageStory("validated", validation=HELD_OUT)
HOLDS_NO_KEY = {"4": Reason.CLAIM_MISMATCH}


def definition(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["predicate"]["buildDefinition"]
    return found


def internal(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = definition(document)["internalParameters"]
    return found


def flip(text: str) -> str:
    return ("1" if text[0] == "0" else "0") + text[1:]


# What is accepted


def test_a_genuine_record_is_accepted_in_every_step() -> None:
    made = train_image()
    verified = verify_image(
        made.file,
        expectation=expectation_and_roots()[0],
        nonce=sha("own recipe", "nonce"),
        outputs={"output": made_manifest(MADE).digest},
    )
    steps = [f.step for f in verified.findings if f.step.startswith("image/")]
    assert steps == [f"image/{number}" for number in range(1, 11)]
    assert {finding.status for finding in verified.findings} == {Status.PASS}
    assert verified.simulated
    assert verified.node.statement.claim == verified.digest
    assert verified.record.plan.base == WEIGHTS
    assert verified.record.software == SOFTWARE
    assert verified.record.outputs == {"output": made_manifest(MADE).digest}


def test_the_record_itself_says_that_it_is_the_coarser_one() -> None:
    payload = train_image().file.record.payload
    assert b'"granularity":"artefact"' in payload
    for word in (b"chain", b"checkpoint", b"turns", b"owner-log", b"steps", b"environment"):
        assert word not in payload


def test_validation_rows_are_part_of_the_plan() -> None:
    verified = verify_image(train_image(VALIDATED).file)
    assert verified.record.plan.validation is not None
    assert train_image().record.plan.validation is None


def test_the_file_survives_its_encoding() -> None:
    raw = train_image().file.encode()
    assert parse_record_file(raw).encode() == raw
    verify_image(parse_record_file(raw))


def test_nobody_else_makes_the_proof() -> None:
    verified = verify_image(train_image().file)
    with pytest.raises(TypeError):
        VerifiedImageRecord(
            verified.record,
            verified.digest,
            verified.expectation,
            verified.node,
            verified.boots,
            verified.machines,
            verified.manifests,
            (),
            seal=object(),
        )


def test_without_a_named_time_each_evidence_is_judged_by_its_own() -> None:
    verified = verify_image(train_image().file, now=None)
    assert verified.boots[0].result.now == verified.record.started
    assert verified.node.result.now == verified.record.finished


# One kind is not the other


def test_a_coarse_record_is_not_taken_for_a_step_level_one() -> None:
    file = train_image().file
    assert refusals(file) == {"1": Reason.TRAINING_GRANULARITY}
    with pytest.raises(FormatError, match="artefact-level") as refused:
        parse_training_record(file.record.payload)
    assert "can be audited or replayed" in refused.value.what


def test_a_step_level_record_is_not_taken_for_a_coarse_one() -> None:
    file = train().file
    assert image_refusals(file) == {"1": Reason.TRAINING_GRANULARITY}
    with pytest.raises(FormatError, match="step-level"):
        parse_image_record(file.record.payload)


def test_whoever_takes_either_is_told_which() -> None:
    facts: dict[str, Any] = {
        "roots": expectation_and_roots()[1], "now": NOW, "expectation": None,
        "nonce": None, "outputs": {},
    }  # fmt: skip
    assert isinstance(verify_any_record(train_image().file, **facts), VerifiedImageRecord)
    assert isinstance(verify_any_record(train().file, **facts), VerifiedRecord)
    assert isinstance(parse_any_record(train_image().file.record.payload), ImageRecord)
    assert isinstance(parse_any_record(train().file.record.payload), TrainingRecord)
    with pytest.raises(FormatError):
        parse_any_record(b"{}")


def test_renaming_the_kind_does_not_change_it() -> None:
    def finer(document: dict[str, Any]) -> None:
        definition(document)["buildType"] = "confide:training/v1"

    def coarser(document: dict[str, Any]) -> None:
        definition(document)["buildType"] = "confide:training-image/v1"

    assert refusals(resealed(train_image(), finer))["1"] is Reason.TRAINING_FORMAT
    assert image_refusals(resealed(train(), coarser))["1"] is Reason.TRAINING_FORMAT


def _byproducts(document: dict[str, Any]) -> list[Any]:
    found: list[Any] = document["predicate"]["runDetails"]["byproducts"]
    return found


def _take(name: str) -> Callable[[dict[str, Any]], None]:
    """Take a byproduct of a genuine step-level record, where it stands there."""
    from runs import payload_of  # noqa: PLC0415 - one use

    def edit(document: dict[str, Any]) -> None:
        taken = byproduct(payload_of(train().file.record), name)
        _byproducts(document).append(taken)

    return edit


SMUGGLED: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{
        name: _take(name)
        for name in ("step-chain", "event-chain", "turns", "owner-log", "checkpoint/2")
    },
    "world": lambda document: internal(document).update(world=1),
    "environment": lambda document: internal(document).update(environment={"isa": "avx512"}),
    "privacy": lambda document: internal(document).update(privacy={"epsilon": "1.0"}),
    "tokenizer": lambda document: definition(document)["resolvedDependencies"].append(
        {"name": "tokenizer", "digest": {"sha256": "0" * 64}}
    ),
    "granularity": lambda document: internal(document).update(granularity="step"),
    "no granularity": lambda document: internal(document).pop("granularity"),
}


@pytest.mark.parametrize("claim", SMUGGLED)
def test_no_claim_of_a_step_level_record_is_smuggled_in(claim: str) -> None:
    forged = resealed(train_image(), SMUGGLED[claim])
    assert image_refusals(forged)["1"] is Reason.TRAINING_FORMAT


def test_no_evaluation_is_smuggled_in() -> None:
    trained = train_image()
    evaluation = trained.node.keys.signer.seal(train().file.statements["evaluation/tuned"].payload)

    def edit(document: dict[str, Any]) -> None:
        entry = {
            "name": "statement/evaluation/tuned",
            "digest": {"sha256": evaluation.digest.hex()},
        }
        _byproducts(document).insert(-2, entry)

    forged = resealed(trained, edit)
    held = {**forged.statements, "evaluation/tuned": evaluation}
    assert image_refusals(replace(forged, statements=held)) == {"2": Reason.RECEIPT_NOT_REFERENCED}


# A stranger who edits


@pytest.mark.parametrize("member", ["nonce", "keyset", "expectation", "plan"])
def test_no_digest_of_the_record_can_be_edited(member: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        internal(document)[member] = flip(internal(document)[member])

    assert image_refusals(edited(train_image().file, edit))


@pytest.mark.parametrize("name", ["base", "dataset", "dataset-root", "image", "software"])
def test_no_dependency_can_be_edited(name: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        digest = dependency(document, name)["digest"]
        digest["sha256"] = flip(digest["sha256"])

    found = image_refusals(edited(train_image().file, edit))
    expected = {
        "dataset-root": HOLDS_NO_KEY,
        "software": {"1": Reason.TRAINING_FORMAT},
    }.get(name, {"1": Reason.TRAINING_PLAN})
    assert found == expected


@pytest.mark.parametrize(
    "name",
    ["sealed/output", "sealed/stderr", "statement/hardware", "statement/weights/output"],
)
def test_no_byproduct_can_be_edited(name: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        digest = byproduct(document, name)["digest"]
        digest["sha256"] = flip(digest["sha256"])

    assert HOLDS_NO_KEY.items() <= image_refusals(edited(train_image().file, edit)).items()


def test_the_exit_is_what_its_digest_says() -> None:
    def edit(document: dict[str, Any]) -> None:
        byproduct(document, "exit")["annotations"]["status"] = 1

    assert image_refusals(resealed(train_image(), edit)) == {"1": Reason.TRAINING_FORMAT}


@pytest.mark.parametrize("member", ["startedOn", "finishedOn"])
def test_no_time_can_be_edited(member: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["predicate"]["runDetails"]["metadata"][member] = "2026-11-22T12:00:01Z"

    assert HOLDS_NO_KEY.items() <= image_refusals(edited(train_image().file, edit)).items()


# A dishonest node


@pytest.mark.parametrize("name", ["image", "base", "dataset"])
def test_a_part_of_the_plan_cannot_be_swapped_even_when_signed(name: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        digest = dependency(document, name)["digest"]
        digest["sha256"] = flip(digest["sha256"])

    assert image_refusals(resealed(train_image(), edit)) == {"1": Reason.TRAINING_PLAN}


@pytest.mark.parametrize("name", ["image", "dataset", "recipe"])
def test_another_plan_than_was_proven_before_the_start_is_refused(name: str) -> None:
    trained = train_image()
    plan = replace(trained.record.plan, **{name: sha("swapped", name)})

    def edit(document: dict[str, Any]) -> None:
        internal(document)["plan"] = plan.digest.hex()
        definition(document)["externalParameters"]["recipe"] = plan.recipe.hex()
        for part in ("image", "dataset"):
            dependency(document, part)["digest"]["sha256"] = getattr(plan, part).hex()

    assert image_refusals(resealed(trained, edit))["6"] is Reason.CLAIM_MISMATCH


def test_a_base_that_the_node_did_not_measure_is_refused() -> None:
    swapped = ImageStory("other base", base=sha("another base"))
    assert image_refusals(forge_image(swapped).file) == {"8": Reason.MODEL_MISMATCH}


def test_other_software_of_the_node_is_refused() -> None:
    def edit(document: dict[str, Any]) -> None:
        other = sha("other software").hex()
        dependency(document, "software")["digest"]["sha256"] = other
        document["predicate"]["runDetails"]["builder"]["id"] = f"confide:node/sha256:{other}"

    assert image_refusals(resealed(train_image(), edit)) == {"8": Reason.NODE_SOFTWARE_MISMATCH}


@pytest.mark.parametrize("measured", ["nothing", "other"])
def test_a_job_that_was_not_measured_before_the_start_is_refused(measured: str) -> None:
    story = ImageStory(f"measured: {measured}", measured=measured)
    assert image_refusals(forge_image(story).file) == {"7": Reason.TRAINING_PLAN}


@pytest.mark.parametrize(("end", "status"), [(ExitKind.EXITED, 1), (ExitKind.KILLED_MEMORY, None)])
def test_an_image_that_did_not_end_well_made_nothing(end: ExitKind, status: int | None) -> None:
    story = ImageStory(f"ended {end} {status}", end=end, status=status)
    assert image_refusals(forge_image(story).file) == {"10": Reason.RUN_FAILED}


def test_an_end_before_the_start_is_refused() -> None:
    def edit(document: dict[str, Any]) -> None:
        document["predicate"]["runDetails"]["metadata"]["finishedOn"] = "2026-11-22T11:59:59Z"

    assert image_refusals(resealed(train_image(), edit)) == {"10": Reason.RUN_FAILED}


def test_a_start_that_was_not_proven_is_refused() -> None:
    def edit(document: dict[str, Any]) -> None:
        document["predicate"]["runDetails"]["metadata"]["startedOn"] = "2026-11-22T11:00:00Z"

    assert image_refusals(resealed(train_image(), edit))["6"] is Reason.CLAIM_MISMATCH


# Evidence


def test_evidence_of_another_job_is_refused() -> None:
    ours, theirs = train_image().file, train_image(OTHER).file
    found = image_refusals(replace(ours, after=theirs.after))
    assert found["4"] in {Reason.CLAIM_MISMATCH, Reason.NONCE_MISMATCH}
    found = image_refusals(replace(ours, boots=theirs.boots))
    assert found["6"] in {Reason.CLAIM_MISMATCH, Reason.NONCE_MISMATCH}


def test_evidence_of_a_step_level_job_is_refused() -> None:
    # Same owner's nonce or not: a boot of one kind claims what the other never does.
    found = image_refusals(replace(train_image().file, boots=train().file.boots))
    assert found["6"] in {Reason.CLAIM_MISMATCH, Reason.NONCE_MISMATCH}


@pytest.mark.parametrize("boots", [0, 2])
def test_there_is_one_boot(boots: int) -> None:
    file = train_image().file
    found = image_refusals(replace(file, boots=file.boots * boots))
    assert found["6"] is Reason.TRAINING_MACHINE


def test_an_image_has_no_ranks() -> None:
    file = train_image().file
    assert image_refusals(replace(file, seats=(file.boots,)))["6"] is Reason.TRAINING_MACHINE


@pytest.mark.parametrize(
    "changed", [{"machine": bytes(32)}, {"keyset": bytes(32)}, {"evidence": bytes(32)}, {"gpus": 2}]
)
def test_hardware_that_was_not_proven_is_refused(changed: dict[str, Any]) -> None:
    trained = train_image()
    made, (boot,) = parse_hardware(trained.file.statements["hardware"].payload, "output")
    payload = encode_hardware("output", made, (replace(boot, **changed),))
    found = image_refusals(resealed(trained, statements={"hardware": payload}))
    assert found["6"] is Reason.TRAINING_MACHINE


def test_another_machine_at_the_end_is_refused() -> None:
    # The keys moved to another machine meanwhile, and that one quoted the record.
    elsewhere = forge_image(ImageStory("own recipe", gpu="other"))
    ours = forge_image(ImageStory("own recipe"))
    moved = replace(ours.file, boots=elsewhere.file.boots)
    hardware = elsewhere.file.statements["hardware"].payload
    forged = resealed(replace(ours, file=moved), statements={"hardware": hardware})
    assert image_refusals(forged)["6"] is Reason.TRAINING_MACHINE


def test_a_nonce_that_the_owner_did_not_draw_is_refused() -> None:
    assert image_refusals(train_image().file, nonce=bytes(32))["4"] is Reason.NONCE_MISMATCH


def test_another_expectation_is_refused() -> None:
    other = replace(expectation_and_roots()[0], name="another")
    found = image_refusals(train_image().file, expectation=other)
    assert found["3"] is Reason.EXPECTATION_MISMATCH


# Output and statements


def test_a_directory_at_hand_must_be_what_came_out() -> None:
    other = {"output": manifest("model.safetensors").digest}
    assert image_refusals(train_image().file, outputs=other) == {"9": Reason.OUTPUT_MISMATCH}


def test_files_that_do_not_make_the_output_are_refused() -> None:
    payload = encode_weights("output", manifest("model.safetensors"))
    forged = resealed(train_image(), statements={"weights/output": payload})
    assert image_refusals(forged) == {"9": Reason.OUTPUT_MISMATCH}


def test_an_output_cannot_be_swapped_even_when_signed() -> None:
    def edit(document: dict[str, Any]) -> None:
        document["subject"][0]["digest"]["sha256"] = manifest("x").digest.hex()

    assert image_refusals(resealed(train_image(), edit))["2"] is Reason.CLAIM_MISMATCH


def test_an_output_has_one_name() -> None:
    def edit(document: dict[str, Any]) -> None:
        document["subject"][0]["name"] = "merged"

    assert image_refusals(resealed(train_image(), edit))["2"] is Reason.TRAINING_FORMAT


@pytest.mark.parametrize("name", ["hardware", "weights/output"])
def test_no_statement_can_be_left_out_or_taken_from_another_job(name: str) -> None:
    file = train_image().file
    rest = {other: each for other, each in file.statements.items() if other != name}
    assert image_refusals(replace(file, statements=rest))["2"] is Reason.RECEIPT_MISSING
    left_out = resealed(train_image(), statements={name: None})
    assert image_refusals(left_out)["2"] is Reason.RECEIPT_MISSING
    foreign = {**file.statements, name: train().file.statements["hardware"]}
    assert image_refusals(replace(file, statements=foreign))["2"] is Reason.RECEIPT_NOT_REFERENCED


def test_a_signature_of_another_job_is_refused() -> None:
    file = train_image().file
    signatures = train_image(OTHER).file.record.signatures
    other = replace(file, record=Envelope(file.record.payload, signatures))
    assert image_refusals(other) == {"5": Reason.RECEIPT_SIGNATURE}


# Form


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document["predicate"].update(verdict="accepted"),
        lambda document: _byproducts(document).reverse(),
        lambda document: _byproducts(document).pop(0),
        lambda document: byproduct(document, "exit").update(name="exit/0"),
        lambda document: byproduct(document, "exit")["annotations"].update(end="finished"),
        lambda document: byproduct(document, "exit")["annotations"].update(more=1),
        lambda document: byproduct(document, "sealed/output").update(annotations={"a": 1}),
        lambda document: definition(document)["externalParameters"].update(command=["x"]),
        lambda document: definition(document).update(buildType="confide:training-image/v2"),
        lambda document: dependency(document, "image").update(name="images"),
    ],
)
def test_whatever_is_not_written_in_the_one_form_is_refused(
    edit: Callable[[dict[str, Any]], None],
) -> None:
    assert image_refusals(resealed(train_image(), edit))["1"] is Reason.TRAINING_FORMAT


def test_a_payload_that_is_not_canonical_is_refused_even_when_signed() -> None:
    def spaced(document: dict[str, Any]) -> bytes:
        return jcs(document).replace(b'":', b'": ', 1)

    assert image_refusals(resealed(train_image(), encode=spaced))["1"] is Reason.TRAINING_FORMAT


def test_evidence_that_is_too_old_today_is_refused_today() -> None:
    found = image_refusals(train_image().file, now=NOW + timedelta(days=400))
    assert "4" in found


def test_two_jobs_with_the_same_recipe_have_the_same_plan() -> None:
    assert train_image().record.plan == train_image(OTHER).record.plan
    other = ImageStory("other command", recipe=ImageRecipe("support-notes", "ab" * 32, ("x",)))
    assert other.job().plan(WEIGHTS).digest != train_image().record.plan.digest
