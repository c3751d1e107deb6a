"""Which node a training goes to, and what that has to prove: decided before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.http_client import require_node_url
from confide.cli.expectation_files import read_expectation
from confide.cli.places import Places, read_bounded, read_roots
from confide.errors import ConfigurationError, FormatError, Reason
from confide.training.recipe_file import parse_recipe_toml

if TYPE_CHECKING:
    from confide.expectation import Expectation
    from confide.training.recipe import Recipe
    from confide.trust.roots import Roots

__all__ = ["Target", "default_folder", "find_folder", "read_recipe", "target_of"]


@dataclass(frozen=True, slots=True)
class Target:
    """A node at `url`, and what is accepted as that node."""

    url: str
    expectation: Expectation
    roots: Roots


def read_recipe(path: Path) -> Recipe:
    """Read a recipe in TOML. Raises `FormatError` that names the key, `ConfigurationError`."""
    raw = read_bounded(path, "recipe")
    try:
        return parse_recipe_toml(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        what, clause = "recipe: not UTF-8", "docs/protocols/training.md#1"
        raise FormatError(what, reason=Reason.RECIPE_FORMAT, clause=clause) from error


def target_of(
    recipe: Recipe, *, node: str | None, expectation: Path | None, roots: str | None
) -> Target:
    """
    Return the node that options name, with what it has to prove for this recipe.

    Raises `ConfigurationError`, `FormatError`.
    """
    if node is None:
        raise ConfigurationError(
            "name a training node: --node URL --expectation FILE --roots vendor (or the file of a "
            "simulated platform's roots)"
        )
    if expectation is None:
        raise ConfigurationError("--node needs --expectation: what must run there is yours to say")
    if roots is None:
        raise ConfigurationError("--node needs --roots: vendor, or a simulated roots file")
    require_node_url(node)
    wanted = read_expectation(expectation)
    if wanted.model.name != recipe.base_model:
        raise ConfigurationError(
            f"the recipe trains {recipe.base_model}, the Expectation is about a node with "
            f"{wanted.model.name}: change base_model, or name another --expectation"
        )
    return Target(node.rstrip("/").removesuffix("/v1"), wanted, read_roots(roots))


def default_folder(places: Places, recipe: Path) -> Path:
    """Return the folder of a new training: below the data directory, by time and recipe."""
    now, token = places.clock.now(), places.entropy.token(2)
    return places.paths.trainings / f"{now:%Y%m%dT%H%M%SZ}-{recipe.stem[:40]}-{token.hex()}"


def find_folder(places: Places, name: str) -> Path:
    """
    Return the folder that `name` means: a path, the name of one below the data directory.

    Raises `ConfigurationError`.
    """
    for path in (Path(name), places.paths.trainings / name):
        if (path / "job.json").is_file():
            return path
    raise ConfigurationError(
        f"{name} is no folder of a training; confide train jobs lists those of this user"
    )
