"""What a node says about a training beside its steps: each claim is held to what it follows from.

The nodes here lie in one member each, and sign and quote the record: the record alone is accepted,
or could be. What the owner's log, a row or the record itself says of the same thing finds them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from arithmetic import RECIPE, SALT, ComputedJob, rows
from trainings import byproduct, dependency, refusals, resealed, train, verify

from confide.errors import Reason, TrainingRejected
from confide.training.audit import AuditedLog, audit_log
from confide.training.dataset import DatasetTree, RowSalts
from confide.training.inclusion import DatasetProof, Opening, PathRecorder
from confide.training.lineage import walk_lineage
from confide.training.recipe import Privacy

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.training.job import Evaluation
    from confide.training.owner_log import OwnerLog

    Edit = Callable[[dict[str, Any]], None]

PLAIN = ComputedJob("computed")
PRIVATE = ComputedJob("private", recipe=replace(RECIPE, privacy=Privacy(1.5, 0.5, 1e-5)))
SPENT = {
    "noise_multiplier": "1.5",
    "max_grad_norm": "0.5",
    "delta": "1e-05",
    "epsilon": "3.25",
}


def saying(privacy: dict[str, str] | None) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        internal = document["predicate"]["buildDefinition"]["internalParameters"]
        internal["privacy"] = privacy

    return edit


def audit(job: ComputedJob, edit: Edit = lambda _: None) -> AuditedLog:
    """Audit the log of `job` against the record that its node made, and then edited and signed."""
    record = verify(resealed(train(job), edit))
    return audit_log(record, job.log.encode(), dataset_salt=SALT, rows=job.commitment)


def refused(job: ComputedJob, edit: Edit = lambda _: None) -> dict[str, Reason]:
    with pytest.raises(TrainingRejected) as rejected:
        audit(job, edit)
    return {f.step: f.reason for f in rejected.value.findings if f.reason is not None}


# Privacy


@pytest.mark.parametrize("epsilon", ["3.25", "infinite", "0.0"])
def test_privacy_that_the_recipe_asks_for_is_accepted(epsilon: str) -> None:
    assert audit(PRIVATE, saying(SPENT | {"epsilon": epsilon})).log.recipe.privacy is not None


def test_privacy_that_nobody_asked_for_is_refused() -> None:
    assert refused(PLAIN, saying(SPENT)) == {"audit/2": Reason.TRAINING_PLAN}


def test_privacy_that_was_asked_for_cannot_be_left_out() -> None:
    assert refused(PRIVATE, saying(None)) == {"audit/2": Reason.TRAINING_PLAN}


@pytest.mark.parametrize("member", ["noise_multiplier", "max_grad_norm", "delta"])
def test_privacy_of_other_parameters_is_refused(member: str) -> None:
    edit = saying(SPENT | {member: "0.25"})
    assert refused(PRIVATE, edit) == {"audit/2": Reason.TRAINING_PLAN}


@pytest.mark.parametrize(
    "privacy",
    [
        {},
        {name: text for name, text in SPENT.items() if name != "epsilon"},
        SPENT | {"epsilon_per_user": "0.1"},
        SPENT | {"epsilon": "-1.0"},
        SPENT | {"epsilon": "nan"},
        SPENT | {"epsilon": "inf"},
        SPENT | {"epsilon": "3.250"},
        SPENT | {"epsilon": "none at all"},
    ],
)
def test_privacy_is_said_in_four_members_and_in_numbers(privacy: dict[str, str]) -> None:
    assert refusals(resealed(train(PRIVATE), saying(privacy)))["1"] is Reason.TRAINING_FORMAT


# Checkpoints


def test_a_checkpoint_cannot_be_kept_from_the_record() -> None:
    """Replays would begin further back, and its file would not be handed over."""

    def edit(document: dict[str, Any]) -> None:
        byproducts = document["predicate"]["runDetails"]["byproducts"]
        byproducts.remove(byproduct(document, "checkpoint/16"))

    assert refused(PLAIN, edit) == {"audit/5": Reason.CHECKPOINT_MISMATCH}


# Evaluation


def judged(name: str, **changed: Any) -> ComputedJob:
    """A job whose node evaluated the tuned model on something else than the base."""

    def alter(log: OwnerLog) -> OwnerLog:
        assert log.evaluations is not None
        base, tuned = log.evaluations
        metrics: Evaluation = replace(tuned.metrics, **changed)
        return replace(log, evaluations=(base, replace(tuned, metrics=metrics)))

    return ComputedJob(name, alter=alter)


@pytest.mark.parametrize(
    "changed", [{"rows": 3}, {"count": 39}, {"accuracy": 1.5}, {"accuracy": -0.1}, {"loss": -0.5}]
)
def test_both_models_are_judged_by_the_rows_of_the_plan(changed: dict[str, Any]) -> None:
    job = judged(f"judged by {changed}", **changed)
    assert refused(job) == {"audit/6": Reason.TRAINING_EVALUATION}


def test_a_share_that_holds_no_row_out_asks_for_no_evaluation() -> None:
    def silent(log: OwnerLog) -> OwnerLog:
        return replace(log, evaluations=None)

    # A hundredth of twenty rows is none of them.
    few = replace(RECIPE, val_set_size=0.01)
    job = ComputedJob("few rows", recipe=few, steps=40, planned=40, alter=silent, evaluated=False)
    assert audit(job).findings[-1].detail == "nothing was held out"


# Time


def test_a_job_did_not_start_before_its_first_boot_was_proven() -> None:
    def edit(document: dict[str, Any]) -> None:
        document["predicate"]["runDetails"]["metadata"]["startedOn"] = "2019-01-01T00:00:00Z"

    assert refusals(resealed(train(PLAIN), edit)) == {"9": Reason.TRAINING_CHAIN}


# Rows


def proof(index: int) -> DatasetProof:
    """The proof of a row, as its owner makes it."""
    salts, path = RowSalts(SALT), PathRecorder(index)
    tree = DatasetTree(salts, path=path)
    for row in rows():
        tree.add(row)
    opening = Opening(salts.at(index), rows()[index].value)
    return DatasetProof(tree.commitment(), index, path.leaf, path.path(), opening)


def test_a_row_is_in_the_data_set_whose_root_the_record_shows() -> None:
    honest = verify(train(PLAIN).file)
    links, _ = walk_lineage(honest, served=(), earlier=(), rows=(proof(3),))
    assert [each.kind for each in links][-2:] == ["dataset root", "row"]

    def edit(document: dict[str, Any]) -> None:
        dependency(document, "dataset-root")["digest"]["sha256"] = bytes(32).hex()

    lying = verify(resealed(train(PLAIN), edit))
    with pytest.raises(TrainingRejected) as rejected:
        walk_lineage(lying, served=(), earlier=(), rows=(proof(3),))
    assert rejected.value.reason is Reason.DATASET_MISMATCH
