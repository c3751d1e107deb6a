"""A fine-tuning request is read strictly: docs/protocols/training-node.md §2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import FormatError, Reason
from confide.training.job_request import HandedOver, JobRefused, JobRequest, parse_job_request
from confide.training.recipe_file import parse_recipe_toml
from confide.wire.json import b64encode, jcs
from confide.wire.ohttp import Kem

MODEL = "tiny"
RECIPE = parse_recipe_toml(
    'base_model = "tiny"\nlearning_rate = 1e-3\nmax_steps = 7\nmethod = "dpo"\n'
)
CONFIDE: dict[str, Any] = {
    "nonce": "11" * 32,
    "expectation": {"b": 1, "a": "kept as it is"},
    "recipient": b64encode(bytes(Kem.X_WING.public_bytes)),
    "checkpoint_key": "22" * 32,
}
ASKED: dict[str, Any] = {"model": MODEL, "training_file": "file-1", "confide": CONFIDE}


def read(**members: Any) -> JobRequest:
    return parse_job_request(jcs({**ASKED, **members}), model=MODEL)


def supervised(**hyper: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": hyper}}


def refusal(**members: Any) -> JobRefused:
    with pytest.raises(JobRefused) as refused:
        read(**members)
    assert refused.value.reason is Reason.REQUEST_FORMAT
    return refused.value


def test_the_smallest_request_has_every_auto_decided() -> None:
    request = read()
    assert (request.training_file, request.validation_file) == ("file-1", None)
    assert (request.mode, request.suffix, request.metadata) == ("supervised", "", {})
    recipe = request.steps
    assert (recipe.base_model, recipe.num_epochs, recipe.learning_rate) == (MODEL, 3, 2e-4)
    assert (recipe.sequences_per_step, recipe.val_set_size) == (1, 0)
    assert recipe.lora is not None
    assert recipe.lora.r == 8
    assert request.hyperparameters() == {
        "n_epochs": 3,
        "batch_size": 1,
        "learning_rate_multiplier": 1.0,
    }
    assert request.expectation == b'{"a":"kept as it is","b":1}'
    assert (request.nonce, request.checkpoint_key) == (b"\x11" * 32, b"\x22" * 32)


def test_no_secret_is_in_its_repr() -> None:
    said = repr(read())
    assert "22" * 32 not in said
    assert repr(b"\x22" * 32) not in said


@pytest.mark.parametrize("where", ["method", "hyperparameters"])
def test_hyperparameters_of_both_of_openais_places(where: str) -> None:
    hyper = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    said = supervised(**hyper) if where == "method" else hyper
    recipe = read(**{where: said}, seed=7).steps
    assert (recipe.num_epochs, recipe.sequences_per_step) == (2, 4)
    assert (recipe.learning_rate, recipe.seed) == (1e-4, 7)


def test_validation_rows_are_evaluated_on_at_every_checkpoint() -> None:
    recipe = read(validation_file="file-2").steps
    assert recipe.eval_steps == recipe.checkpoint_every == 100
    assert read().steps.eval_steps is None


def test_evaluating_on_the_way_needs_rows_that_are_held_out() -> None:
    recipe = replace(RECIPE, eval_steps=3, val_set_size=0)
    confide = {**CONFIDE, "recipe": recipe.value()}
    assert "eval_steps needs val_set_size" in refusal(confide=confide).message
    assert read(confide=confide, validation_file="file-2").recipe == recipe
    held_out = replace(recipe, val_set_size=0.25)
    assert read(confide={**CONFIDE, "recipe": held_out.value()}).recipe == held_out


def test_preferences() -> None:
    said = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.25, "n_epochs": "auto"}}}
    request = read(method=said)
    assert (request.mode, request.steps.dpo_beta, request.steps.num_epochs) == ("dpo", 0.25, 3)
    assert request.method()["dpo"] == {
        "hyperparameters": {**request.hyperparameters(), "beta": 0.25}
    }


def test_what_the_sdk_sends_for_left_out_is_left_out() -> None:
    empty = dict.fromkeys(
        ("validation_file", "method", "hyperparameters", "seed", "suffix", "metadata")
    )
    assert read(**empty, integrations=None) == read(integrations=[]) == read()


def test_a_whole_recipe() -> None:
    request = read(confide={**CONFIDE, "recipe": RECIPE.value()})
    assert request.recipe == RECIPE
    assert request.mode == "dpo"
    assert request.hyperparameters()["n_epochs"] == "auto"


def test_a_job_that_goes_on_names_its_two_files() -> None:
    handed = {"handover": "file-1", "checkpoint": "file-2"}
    request = read(confide={**CONFIDE, "continue": handed})
    assert request.handed == HandedOver("file-1", "file-2")
    assert read().handed is None


@pytest.mark.parametrize("name", ["method", "hyperparameters", "seed"])
def test_a_recipe_and_a_second_word_about_it(name: str) -> None:
    said = {"method": supervised(), "hyperparameters": {"n_epochs": 1}, "seed": 1}[name]
    assert refusal(confide={**CONFIDE, "recipe": RECIPE.value()}, **{name: said}).param == name


@pytest.mark.parametrize(
    ("members", "param", "code"),
    [
        ({"model": "another"}, "model", "model_not_found"),
        ({"confide": None}, "confide", "confide_required"),
        ({"extra": 1}, "extra", "unknown"),
        ({"integrations": [{"type": "wandb"}]}, "integrations", "invalid_value"),
        ({"method": {"type": "reinforcement"}}, "method.type", "invalid_value"),
        (
            {"method": supervised(), "hyperparameters": {"n_epochs": 1}},
            "hyperparameters",
            "invalid_value",
        ),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"batch_size": 1.5}}, "hyperparameters.batch_size", "invalid_value"),
        (
            {"hyperparameters": {"learning_rate_multiplier": -1}},
            "hyperparameters.learning_rate_multiplier",
            "invalid_value",
        ),
        ({"suffix": "a b"}, "suffix", "invalid_value"),
        ({"suffix": "ä"}, "suffix", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata", "invalid_value"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": {"a": "x" * 513}}, "metadata", "invalid_value"),
    ],
    ids=lambda value: value if isinstance(value, str) else "asked",
)
def test_what_a_node_would_not_do_is_refused_by_name(
    members: dict[str, Any], param: str, code: str
) -> None:
    refused = refusal(**members)
    assert (refused.param, refused.code) == (param, code)
    # The SDKs show the message and not the parameter.
    assert param.rpartition(".")[2] in refused.message


@pytest.mark.parametrize(
    "wrong",
    [
        {"nonce": "11" * 31},
        {"checkpoint_key": "22"},
        {"recipient": b64encode(b"short")},
        {"recipe": {"base_model": "tiny"}},
        {"recipe": {**RECIPE.value(), "base_model": "another"}},
        {"more": 1},
        {"continue": {"handover": "file-1"}},
        {"continue": {"handover": "file-1", "checkpoint": "file-2", "more": 1}},
    ],
    ids=[
        *("nonce", "checkpoint_key", "recipient", "recipe-members", "recipe-model", "unknown"),
        *("continue-half", "continue-unknown"),
    ],
)
def test_what_is_of_our_own_is_as_strict(wrong: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        read(confide={**CONFIDE, **wrong})


@pytest.mark.parametrize("name", sorted(CONFIDE))
def test_nothing_that_protects_the_result_has_a_default(name: str) -> None:
    with pytest.raises(FormatError, match=name):
        read(confide={key: value for key, value in CONFIDE.items() if key != name})


_TEXT = st.text(st.characters(codec="utf-8"))
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
)


@given(st.sampled_from(sorted({*ASKED, "method", "hyperparameters", "seed", "metadata"})), _JSON)
def test_any_value_at_any_place_is_read_or_refused(name: str, value: Any) -> None:
    try:
        request = read(**{name: value})
    except FormatError:
        return
    assert request.model == MODEL
