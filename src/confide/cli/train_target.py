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
    places: Places,
    recipe: Recipe,
    *,
    node: str | None,
    expectation: Path | None,
    roots: str | None,
    base: Path | None,
) -> Target:
    """
    Return the node that options name, with what it has to prove for this recipe.

    Without `node` it is a local, SIMULATED one, which is started for `base`. Raises
    `ConfigurationError`, `FormatError`, `Unavailable` where it does not come up.
    """
    if node is None:
        if roots is not None:
            raise ConfigurationError("--roots goes with --node: local nodes have their own")
        return _local(places, recipe, expectation, base)
    if base is not None:
        raise ConfigurationError("--base is for a local node: the one that you name has its own")
    if expectation is None:
        raise ConfigurationError("--node needs --expectation: what must run there is yours to say")
    if roots is None:
        raise ConfigurationError("--node needs --roots: vendor, or a simulated roots file")
    require_node_url(node)
    wanted = _read_wanted(expectation, recipe)
    return Target(node.rstrip("/").removesuffix("/v1"), wanted, read_roots(roots))


def _local(places: Places, recipe: Recipe, expectation: Path | None, base: Path | None) -> Target:
    # Nodes, and what starts them: not needed for one that is named.
    from confide.cli.localnodes import (  # noqa: PLC0415
        IDLE_SECONDS,
        local_engine,
        reference_for,
        training_base,
    )
    from confide.client.expect import inference_expectation_for  # noqa: PLC0415

    engine = local_engine(places)
    choice = training_base(recipe.base_model, base)
    wanted = None if expectation is None else _read_wanted(expectation, recipe)
    if wanted is None:
        wanted = inference_expectation_for(reference_for(places, engine, choice))
    found = engine.up_train(choice, idle_seconds=IDLE_SECONDS)
    return Target(found.url, wanted, engine.roots())


def _read_wanted(path: Path, recipe: Recipe) -> Expectation:
    wanted = read_expectation(path)
    if wanted.model.name != recipe.base_model:
        raise ConfigurationError(
            f"the recipe trains {recipe.base_model}, the Expectation is about a node with "
            f"{wanted.model.name}: change base_model, or name another --expectation"
        )
    return wanted


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
