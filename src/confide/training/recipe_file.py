"""Reading recipes: canonical JSON as it travels, TOML as people write it. Pure.

docs/protocols/training.md §1. Nothing is guessed: an unknown key is refused with the one that was
probably meant, a choice that has no meaning for the job is refused and not ignored. The text is
its owner's, so that errors may name what stands in it.
"""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, NoReturn

from confide.errors import FormatError, Reason
from confide.training.recipe import ALL_LINEAR, Lora, Privacy, Recipe
from confide.wire.json import Members, parse_json
from confide.wire.toml import parse_toml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.wire.json import JsonValue

__all__ = ["parse_recipe", "parse_recipe_toml", "recipe_with"]

_REASON = Reason.RECIPE_FORMAT
_WHAT = "recipe"
_CLAUSE = "training.md §1.2"
_TYPE = "confide/training-recipe/v1"
_MAX_TOML_CHARS = 64 * 1024
_MAX_COUNT = 2**31 - 1
# None: has to be written. A default is chosen to be harmless, not to be good.
_DEFAULTS: dict[str, JsonValue] = {
    "type": _TYPE,
    "base_model": None,
    "method": "sft",
    "adapter": "lora",
    "sequence_len": 2048,
    "excess_length_strategy": "raise",
    "sample_packing": False,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "learning_rate": None,
    "lr_scheduler": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 1.0,
    "precision": "fp32",
    "val_set_size": 0,
    "seed": 42,
    "checkpoint_every": 100,
    "state_every": 10,
}
_LORA_DEFAULTS: dict[str, JsonValue] = {
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_target_modules": [ALL_LINEAR],
}
_SOMETIMES = ("num_epochs", "max_steps", "eval_steps", "dpo_beta", "privacy")
_KNOWN = (*_DEFAULTS, *_LORA_DEFAULTS, *_SOMETIMES)
# Keys of Axolotl and TRL that are said differently here, or elsewhere.
_OTHERWISE = {
    "bf16": 'precision = "bf16"',
    "fp16": 'precision = "bf16"',
    "tf32": "nothing: it is never used",
    "datasets": "the rows beside the recipe",
    "rl": 'method = "dpo"',
    "rl_beta": "dpo_beta",
    "beta": "dpo_beta",
    "epochs": "num_epochs",
    "n_epochs": "num_epochs",
    "batch_size": "micro_batch_size and gradient_accumulation_steps",
    "load_in_8bit": "nothing: base weights are trained as they are stored",
    "load_in_4bit": "nothing: base weights are trained as they are stored",
    "lora_target_linear": f'lora_target_modules = ["{ALL_LINEAR}"]',
    "gradient_clipping": "max_grad_norm",
    "save_steps": "checkpoint_every",
    "evals_per_epoch": "eval_steps",
    "eval_strategy": "eval_steps",
    "evaluation_strategy": "eval_steps",
    "pad_to_sequence_len": "nothing: padding is never more than a micro batch needs",
    "flash_attention": "nothing: the node chooses what is deterministic",
    "trust_remote_code": "nothing: code of a model folder is never run",
}


def parse_recipe_toml(text: str) -> Recipe:
    """
    Parse what a person wrote; what is left out takes the default of §1.2.

    Raises `FormatError` with RECIPE_FORMAT that names the key, and for an unknown one its likely
    meaning.
    """
    named = parse_toml(text, what=_WHAT, reason=_REASON, max_chars=_MAX_TOML_CHARS)
    held_out = named.get("val_set_size")
    if isinstance(held_out, float) and held_out >= 1:
        # 1.0 is all rows to one reader and one row to another.
        what = "val_set_size is a number of rows or a share below 1; with a point it is a share"
        raise FormatError(f"{_WHAT}: {what}", reason=_REASON, clause=_CLAUSE)
    return recipe_with(named)


def recipe_with(named: Mapping[str, JsonValue]) -> Recipe:
    """
    Return the recipe that says `named`; what is left out takes the default of §1.2.

    Raises `FormatError` as `parse_recipe_toml` does.
    """
    value = dict(named)
    for name in value:
        if name not in _KNOWN:
            _refuse_unknown(name)
    defaults = dict(_DEFAULTS)
    if value.get("adapter", "lora") == "lora":
        defaults |= _LORA_DEFAULTS
    if "max_steps" not in value:
        defaults["num_epochs"] = 1
    if value.get("method") == "dpo":
        defaults["dpo_beta"] = 0.1
    for name, default in defaults.items():
        if default is not None:
            value.setdefault(name, default)
    return _read(value)


def parse_recipe(raw: bytes) -> Recipe:
    """
    Parse canonical JSON bytes; anything but the canonical form of a whole recipe is refused.

    Raises `FormatError` with RECIPE_FORMAT.
    """
    recipe = _read(parse_json(raw, what=_WHAT, reason=_REASON))
    if recipe.canonical() != raw:
        raise FormatError(f"{_WHAT}: not in canonical form", reason=_REASON, clause="RFC 8785 §3")
    return recipe


def _refuse_unknown(name: str) -> NoReturn:
    if name in _OTHERWISE:
        hint = f"; write {_OTHERWISE[name]}"
    else:
        near = difflib.get_close_matches(name, _KNOWN, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
    raise FormatError(
        f"{_WHAT}: unknown key {name[:64]!r}{hint}", reason=_REASON, clause="training.md §1.1"
    )


def _read(value: JsonValue) -> Recipe:
    top = Members(value, what=_WHAT, reason=_REASON, clause=_CLAUSE)
    top.choice("type", (_TYPE,))
    adapter = top.choice("adapter", ("lora", "full"))
    recipe = Recipe(
        base_model=_name(top),
        method=top.choice("method", ("sft", "dpo")),
        lora=_read_lora(top) if adapter == "lora" else None,
        sequence_len=top.integer("sequence_len", low=8, high=1 << 20),
        excess_length_strategy=top.choice("excess_length_strategy", ("raise", "truncate")),
        sample_packing=top.boolean("sample_packing"),
        micro_batch_size=top.integer("micro_batch_size", low=1, high=65536),
        gradient_accumulation_steps=top.integer("gradient_accumulation_steps", low=1, high=65536),
        num_epochs=_optional_count(top, "num_epochs"),
        max_steps=_optional_count(top, "max_steps"),
        optimizer=top.choice("optimizer", ("adamw", "sgd")),
        weight_decay=_number(top, "weight_decay", low=0.0, high=1.0),
        learning_rate=_number(top, "learning_rate", low=0.0, high=10.0, above=True),
        lr_scheduler=top.choice("lr_scheduler", ("constant", "linear", "cosine")),
        warmup_steps=top.integer("warmup_steps", high=_MAX_COUNT),
        max_grad_norm=_number(top, "max_grad_norm", low=0.0, high=1e6, above=True),
        precision=top.choice("precision", ("fp32", "bf16")),
        val_set_size=_read_held_out(top),
        seed=top.integer("seed"),
        checkpoint_every=top.integer("checkpoint_every", low=1, high=_MAX_COUNT),
        state_every=top.integer("state_every", low=1, high=_MAX_COUNT),
        eval_steps=_optional_count(top, "eval_steps"),
        dpo_beta=_number(top, "dpo_beta", low=0.0, high=100.0, above=True)
        if top.has("dpo_beta")
        else None,
        privacy=_read_privacy(top.members("privacy")) if top.has("privacy") else None,
    )
    _require_sense(top, recipe)
    _end(top)
    return recipe


def _end(top: Members) -> None:
    """Refuse what is known and has no meaning in this job, by name; then everything else."""
    for name in _LORA_DEFAULTS:
        if top.has(name):
            top.refuse(f"{name} has no meaning with adapter full")
    top.end()


def _require_sense(top: Members, recipe: Recipe) -> None:
    if (recipe.num_epochs is None) == (recipe.max_steps is None):
        top.refuse("exactly one of num_epochs and max_steps is needed")
    if (recipe.method == "dpo") != (recipe.dpo_beta is not None):
        top.refuse("dpo_beta is there exactly with method dpo")
    if recipe.sample_packing and recipe.method == "dpo":
        top.refuse("sample_packing has no meaning with method dpo")
    if recipe.privacy is None:
        return
    # §8.1: the guarantee is about the rows of one adapter, each clipped alone.
    if recipe.method != "sft" or recipe.lora is None:
        top.refuse("privacy needs method sft and adapter lora")
    if recipe.sample_packing:
        top.refuse("privacy clips each row alone: sample_packing has to be false")


def _name(top: Members) -> str:
    name = top.text("base_model", max_chars=256)
    if not name or not name.isprintable():
        top.refuse("base_model is empty or holds control characters")
    return name


def _read_lora(top: Members) -> Lora:
    modules = top.texts("lora_target_modules")
    if not modules or len(set(modules)) != len(modules) or any(not m for m in modules):
        top.refuse("lora_target_modules is empty or names a module twice")
    if ALL_LINEAR in modules and len(modules) > 1:
        top.refuse(f"lora_target_modules: {ALL_LINEAR} stands alone")
    return Lora(
        r=top.integer("lora_r", low=1, high=4096),
        alpha=_number(top, "lora_alpha", low=0.0, high=65536.0, above=True),
        dropout=_number(top, "lora_dropout", low=0.0, high=0.9),
        target_modules=tuple(sorted(modules)),
    )


def _read_privacy(members: Members) -> Privacy:
    privacy = Privacy(
        noise_multiplier=_number(members, "noise_multiplier", low=0.0, high=1000.0, above=True),
        max_grad_norm=_number(members, "max_grad_norm", low=0.0, high=1e6, above=True),
        delta=_number(members, "delta", low=0.0, high=0.5, above=True),
    )
    members.end()
    return privacy


def _read_held_out(top: Members) -> float:
    value = _number(top, "val_set_size", low=0.0, high=float(_MAX_COUNT))
    if value >= 1 and value != math.floor(value):
        top.refuse("val_set_size is a number of rows or a share below 1")
    return value


def _optional_count(top: Members, name: str) -> int | None:
    return top.integer(name, low=1, high=_MAX_COUNT) if top.has(name) else None


def _number(members: Members, name: str, *, low: float, high: float, above: bool = False) -> float:
    """Return a finite number in [`low`, `high`], without `low` itself where `above`."""
    value = members.value(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        members.refuse(f"{name} is not a number")
    # NaN, which TOML can write, is in no range.
    if not low <= value <= high or (above and value == low):
        members.refuse(f"{name} is not {'above' if above else 'from'} {low:g} and at most {high:g}")
    return float(value)
