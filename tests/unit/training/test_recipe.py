"""Recipes are read strictly, and have one digest."""

from __future__ import annotations

import pytest

from confide.errors import FormatError, Reason
from confide.training.recipe import ALL_LINEAR, Recipe
from confide.training.recipe_file import parse_recipe, parse_recipe_toml

SMALL = 'base_model = "tiny"\nlearning_rate = 2e-4\n'
# docs/protocols/training.md §1.3: what the two lines above mean, whoever reads them.
CANONICAL = (
    b'{"adapter":"lora","base_model":"tiny","checkpoint_every":100,'
    b'"excess_length_strategy":"raise","gradient_accumulation_steps":1,"learning_rate":0.0002,'
    b'"lora_alpha":16,"lora_dropout":0,"lora_r":8,"lora_target_modules":["all-linear"],'
    b'"lr_scheduler":"constant","max_grad_norm":1,"method":"sft","micro_batch_size":1,'
    b'"num_epochs":1,"optimizer":"adamw","precision":"fp32","sample_packing":false,"seed":42,'
    b'"sequence_len":2048,"state_every":10,"type":"confide/training-recipe/v1","val_set_size":0,'
    b'"warmup_steps":0,"weight_decay":0}'
)


def recipe(more: str = "") -> Recipe:
    return parse_recipe_toml(SMALL + more)


def test_the_smallest_recipe_means_what_the_clause_says() -> None:
    assert recipe().canonical() == CANONICAL
    assert recipe().digest.hex() == (
        "059751194d5af1d89b339549cbfb8b3e0bad21e0cc33bea32c48427278fc1977"
    )


def test_a_recipe_travels_as_it_is() -> None:
    full = recipe(
        'adapter = "full"\nmethod = "dpo"\ndpo_beta = 0.2\nmax_steps = 7\nval_set_size = 0.25\n'
    )
    private = recipe("[privacy]\nnoise_multiplier = 1.1\nmax_grad_norm = 1\ndelta = 1e-5\n")
    for made in (recipe(), full, private):
        assert parse_recipe(made.canonical()) == made
    assert full.lora is None
    assert full.num_epochs is None
    assert private.privacy is not None
    assert private.privacy.noise_multiplier == 1.1


def test_what_is_evaluated_on_the_way_are_multiples_and_the_end() -> None:
    made = recipe("eval_steps = 5")
    assert parse_recipe(made.canonical()) == made
    assert made.evaluated_after(12, planned=12) == [5, 10, 12]
    assert made.evaluated_after(11, planned=12) == [5, 10]
    assert made.evaluated_after(10, planned=10) == [5, 10]
    assert recipe().evaluated_after(12, planned=12) == []


def test_modules_are_a_set() -> None:
    one = recipe('lora_target_modules = ["q_proj", "v_proj"]')
    other = recipe('lora_target_modules = ["v_proj", "q_proj"]')
    assert one.digest == other.digest != recipe().digest


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("lora_rank = 4", "did you mean lora_r?"),
        ("learningrate = 1", "did you mean learning_rate?"),
        ("bf16 = true", 'write precision = "bf16"'),
        ("trust_remote_code = true", "code of a model folder is never run"),
        ('xyzzy = "unheard of"', "unknown key 'xyzzy'"),
        ('adapter = "qlora"', "adapter is not one of lora, full"),
        ('adapter = "full"\nlora_r = 8', "lora_r has no meaning"),
        ("dpo_beta = 0.1", "dpo_beta is there exactly with method dpo"),
        ("num_epochs = 1\nmax_steps = 5", "exactly one of num_epochs and max_steps"),
        ("num_epochs = 0", "num_epochs is not an integer from 1"),
        ("micro_batch_size = true", "micro_batch_size is not an integer"),
        ("lora_dropout = 0.95", "lora_dropout is not from 0 and at most 0.9"),
        ("weight_decay = nan", "weight_decay is not from 0"),
        ("max_grad_norm = inf", "max_grad_norm is not above 0"),
        ("val_set_size = 2.5", "a number of rows or a share below 1"),
        ("val_set_size = 1.0", "with a point it is a share"),
        ("seed = -1", "seed is not an integer from 0"),
        ("eval_steps = 0", "eval_steps is not an integer from 1"),
        ("evals_per_epoch = 4", "write eval_steps"),
        ("lora_target_modules = []", "lora_target_modules is empty"),
        (f'lora_target_modules = ["{ALL_LINEAR}", "q_proj"]', "stands alone"),
        ('method = "dpo"\nsample_packing = true', "no meaning with method dpo"),
        ("[privacy]\nnoise_multiplier = 1\ndelta = 1e-5", "max_grad_norm is missing"),
        (
            'adapter = "full"\n[privacy]\nnoise_multiplier = 1\nmax_grad_norm = 1\ndelta = 1e-5',
            "privacy needs method sft and adapter lora",
        ),
        (
            (
                "sample_packing = true\n"
                "[privacy]\nnoise_multiplier = 1\nmax_grad_norm = 1\ndelta = 1e-5"
            ),
            "sample_packing has to be false",
        ),
    ],
)
def test_what_means_nothing_is_refused_and_named(more: str, said: str) -> None:
    with pytest.raises(FormatError) as refused:
        recipe(more)
    assert said in str(refused.value)
    assert refused.value.reason is Reason.RECIPE_FORMAT
    assert (refused.value.clause or "").startswith("training.md §1")


def test_what_has_no_harmless_default_is_needed() -> None:
    with pytest.raises(FormatError, match="learning_rate is missing"):
        parse_recipe_toml('base_model = "tiny"')
    with pytest.raises(FormatError, match="base_model is missing"):
        parse_recipe_toml("learning_rate = 1e-4")


@pytest.mark.parametrize(
    "raw",
    [
        CANONICAL + b" ",
        CANONICAL.replace(b"0.0002", b"2e-4"),
        CANONICAL.replace(b'"seed":42,', b""),
        CANONICAL.replace(b'"seed":42', b'"seed":42,"seeds":1'),
        CANONICAL.replace(b'"lora_r":8,', b""),
        CANONICAL.replace(b"recipe/v1", b"recipe/v2"),
        b"[]",
    ],
)
def test_only_the_canonical_form_of_a_whole_recipe_travels(raw: bytes) -> None:
    with pytest.raises(FormatError) as refused:
        parse_recipe(raw)
    assert refused.value.reason is Reason.RECIPE_FORMAT
