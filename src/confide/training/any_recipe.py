"""What an owner asks a training node to do: a recipe for its loop, or an image of their own. Pure.

docs/protocols/training.md §1, docs/protocols/training-image.md §1. Told apart by what they say: a
`train.toml` names an image, a recipe never does.
"""

from __future__ import annotations

from typing import TypeAlias

from confide.training.image_recipe import ImageRecipe
from confide.training.image_recipe_file import (
    is_train_toml,
    parse_train_toml,
    read_image_recipe,
)
from confide.training.recipe import Recipe
from confide.training.recipe_file import parse_recipe, parse_recipe_toml
from confide.wire.json import JsonValue, jcs

__all__ = ["AnyRecipe", "parse_any_toml", "read_any_recipe"]

AnyRecipe: TypeAlias = Recipe | ImageRecipe


def parse_any_toml(text: str) -> AnyRecipe:
    """
    Parse what a person wrote: a `train.toml` where it names an image, a recipe otherwise.

    Raises `FormatError` that names the key.
    """
    return parse_train_toml(text)[0] if is_train_toml(text) else parse_recipe_toml(text)


def read_any_recipe(value: JsonValue) -> AnyRecipe:
    """Read what `value()` of either gave. Raises `FormatError` with RECIPE_FORMAT."""
    if isinstance(value, dict) and "image" in value:
        return read_image_recipe(value)
    return parse_recipe(jcs(value))
