"""Reading `train.toml`, and the canonical JSON that travels instead of it. Pure.

docs/protocols/training-image.md §1. Nothing is guessed: an unknown key is refused with the one that
was probably meant. The text is its owner's, so that errors may name what stands in it.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import fields
from itertools import permutations
from typing import TYPE_CHECKING, Final, NoReturn

from confide.agents.reference import PinnedReference, parse_reference
from confide.errors import FormatError, Reason
from confide.training.image_recipe import ImageLimits, ImagePaths, ImageRecipe
from confide.wire.json import Members, is_hex, parse_json
from confide.wire.toml import parse_toml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from confide.wire.json import JsonValue

__all__ = ["is_train_toml", "parse_image_recipe", "parse_train_toml", "read_image_recipe"]

_REASON: Final = Reason.RECIPE_FORMAT
_WHAT: Final = "train.toml"
_TYPE: Final = "confide/training-image-recipe/v1"
_MAX_TOML_CHARS: Final = 64 * 1024
_MAX_WORDS: Final = 256
_MAX_VARIABLES: Final = 64
_MAX_VARIABLE_BYTES: Final = 32 * 1024
_MAX_PATH_CHARS: Final = 255
# From: docs/protocols/training-image.md 2.6: within the overlap of two keysets, binding.md 1.6.
_MAX_WALL_SECONDS: Final = 39_600
_MIN_MEMORY_BYTES: Final = 16 * 1024 * 1024
_OURS: Final = "CONFIDE_"
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9][A-Za-z0-9._-]*)+\Z")
# What the sandbox mounts itself, or a system cannot do without.
_TAKEN: Final = frozenset({"dev", "etc", "proc", "run", "sys", "tmp"})
_KEYS: Final = (
    *("base_model", "image", "command", "gpu", "network"),
    *("environment", "paths", "limits"),
)
_TABLES: Final[Mapping[str, type[ImagePaths | ImageLimits]]] = {
    "paths": ImagePaths,
    "limits": ImageLimits,
}
# What people write who come from containers, and what belongs to the image.
_OTHERWISE: Final = {
    "env": "environment",
    "entry": "command",
    "entrypoint": "command",
    "args": "command",
    "arguments": "command",
    "gpus": "gpu = true",
    "egress": "nothing: a training image has no network",
    "secrets": "nothing: a training image gets none",
    "volumes": "paths",
    "mounts": "paths",
    "datasets": "the rows beside train.toml",
    "data": "the rows beside train.toml",
    "memory": "limits.memory_bytes",
    "timeout": "limits.wall_seconds",
    **dict.fromkeys(
        ("learning_rate", "num_epochs", "seed", "lora_r", "micro_batch_size"),
        "it into command or environment, as the image takes it (a recipe.toml has no image)",
    ),
}


def is_train_toml(text: str) -> bool:
    """
    Whether `text` is meant as a `train.toml`, and not as a recipe: it names an image.

    Raises `FormatError` where it is no TOML.
    """
    return "image" in parse_toml(text, what="recipe", reason=_REASON, max_chars=_MAX_TOML_CHARS)


def parse_train_toml(text: str) -> tuple[ImageRecipe, PinnedReference]:
    """
    Parse what a person wrote: the recipe, and where its image is said to be found.

    What is left out takes the default of §1. Raises `FormatError` that names the key.
    """
    named = parse_toml(text, what=_WHAT, reason=_REASON, max_chars=_MAX_TOML_CHARS)
    _require_known(named, _KEYS, "")
    for name, shape in _TABLES.items():
        table = named.get(name)
        if isinstance(table, dict):
            _require_known(table, [each.name for each in fields(shape)], f"{name}.")
    top = Members(named, what=_WHAT, reason=_REASON)
    reference = parse_reference(top.text("image", max_chars=512))
    value: dict[str, JsonValue] = {
        **ImageRecipe("", reference.digest).value(),
        **{name: item for name, item in named.items() if name not in (*_TABLES, "image")},
        "base_model": top.value("base_model"),
        "paths": _filled(named, "paths", ImagePaths()),
        "limits": _filled(named, "limits", ImageLimits()),
    }
    return read_image_recipe(value), reference


def _filled(
    named: Mapping[str, JsonValue], name: str, defaults: ImagePaths | ImageLimits
) -> JsonValue:
    table = named.get(name, {})
    if not isinstance(table, dict):
        return table
    return {each.name: getattr(defaults, each.name) for each in fields(defaults)} | table


def parse_image_recipe(raw: bytes) -> ImageRecipe:
    """
    Parse canonical JSON bytes; anything but the canonical form of a whole recipe is refused.

    Raises `FormatError` with RECIPE_FORMAT.
    """
    recipe = read_image_recipe(parse_json(raw, what=_WHAT, reason=_REASON))
    if recipe.canonical() != raw:
        raise FormatError(f"{_WHAT}: not in canonical form", reason=_REASON, clause="RFC 8785 §3")
    return recipe


def read_image_recipe(value: JsonValue) -> ImageRecipe:
    """Read a whole recipe, every key there. Raises `FormatError` with RECIPE_FORMAT."""
    top = Members(value, what=_WHAT, reason=_REASON)
    top.choice("type", (_TYPE,))
    top.choice("network", ("none",))
    recipe = ImageRecipe(
        base_model=_base_model(top),
        image=_image(top),
        command=_command(top),
        gpu=top.boolean("gpu"),
        environment=_environment(top),
        paths=_paths(top.members("paths")),
        limits=_limits(top.members("limits")),
    )
    top.end()
    return recipe


def _require_known(table: Mapping[str, JsonValue], known: Iterable[str], where: str) -> None:
    for name in table:
        if name not in known:
            _refuse_unknown(name, list(known), where)


def _refuse_unknown(name: str, known: list[str], where: str) -> NoReturn:
    near = difflib.get_close_matches(name, known, n=1)
    if not where and name in _OTHERWISE:
        hint = f"; write {_OTHERWISE[name]}"
    else:
        hint = f"; did you mean {where}{near[0]}?" if near else ""
    raise FormatError(
        f"{_WHAT}: unknown key {where + name[:64]!r}{hint}",
        reason=_REASON,
        clause="training-image.md §1.1",
    )


def _base_model(top: Members) -> str:
    name = top.text("base_model", max_chars=256)
    if not name or not name.isprintable():
        top.refuse("base_model is empty or holds control characters")
    return name


def _image(top: Members) -> str:
    digest = top.text("image", max_chars=64)
    if not is_hex(digest, 32):
        top.refuse("image is not the SHA-256 of a manifest")
    return digest


def _command(top: Members) -> tuple[str, ...]:
    words = top.texts("command", max_items=_MAX_WORDS)
    if any("\0" in word for word in words) or words[:1] == ("",):
        top.refuse("command holds a NUL, or begins with nothing")
    return words


def _environment(top: Members) -> tuple[tuple[str, str], ...]:
    value = top.value("environment")
    if not isinstance(value, dict) or len(value) > _MAX_VARIABLES:
        top.refuse(f"environment is not a table of at most {_MAX_VARIABLES} variables")
    found: dict[str, str] = {}
    for name, text in value.items():
        if not _VARIABLE.match(name) or name.startswith(_OURS):
            top.refuse(f"environment: {name[:64]!r} is no name of a variable, or one of the node's")
        if not isinstance(text, str):
            top.refuse(f"environment.{name} is not a text: write it in quotes")
        if len(text.encode()) > _MAX_VARIABLE_BYTES or any(char in text for char in "\0\r\n"):
            top.refuse(f"environment.{name} holds a line break or a NUL, or is too long")
        found[name] = text
    return tuple(sorted(found.items()))


def _paths(members: Members) -> ImagePaths:
    paths = ImagePaths(*(_path(members, each.name) for each in fields(ImagePaths)))
    members.end()
    if paths.rows == paths.validation or paths.data != paths.validation.rpartition("/")[0]:
        members.refuse("paths: rows and validation are two files of one folder")
    folders = (paths.data, paths.base, paths.output)
    if not all(folders):
        members.refuse("paths: the rows stand in a folder, not at the root")
    for one in folders:
        if one.split("/")[1] in _TAKEN:
            members.refuse(f"paths: {one} lies where the system or the sandbox has its own")
    for one, other in permutations(folders, 2):
        if f"{other}/".startswith(f"{one}/"):
            members.refuse(f"paths: {one} is another of the folders, or holds one")
    return paths


def _path(members: Members, name: str) -> str:
    path = members.text(name, max_chars=_MAX_PATH_CHARS)
    if not _PATH.match(path):
        members.refuse(f"paths.{name} is not an absolute path of letters, digits, '.', '_', '-'")
    return path


def _limits(members: Members) -> ImageLimits:
    limits = ImageLimits(*(members.integer(each.name, low=1) for each in fields(ImageLimits)))
    members.end()
    if limits.memory_bytes < _MIN_MEMORY_BYTES or limits.pids < 2:
        members.refuse("limits: an image needs at least 16 MiB of memory and 2 processes")
    if limits.wall_seconds > _MAX_WALL_SECONDS:
        members.refuse(f"limits.wall_seconds is at most {_MAX_WALL_SECONDS}")
    return limits
