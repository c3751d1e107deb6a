"""Which node a training goes to, and what that has to prove: decided before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.http_client import require_node_url
from confide.cli.data_files import require_rows_file
from confide.cli.expectation_files import read_expectation
from confide.cli.places import Places, read_bounded, read_roots
from confide.errors import ConfigurationError, FormatError, Reason
from confide.training.any_recipe import parse_any_toml
from confide.training.job_request import SUFFIX_RULE, is_suffix

if TYPE_CHECKING:
    from confide.expectation import Expectation
    from confide.training.any_recipe import AnyRecipe
    from confide.trust.roots import Roots

__all__ = [
    "Target",
    "default_folder",
    "find_folder",
    "read_recipe",
    "remember",
    "require_sendable",
    "target_of",
]


@dataclass(frozen=True, slots=True)
class Target:
    """A node at `url`, and what is accepted as that node."""

    url: str
    expectation: Expectation
    roots: Roots


def read_recipe(path: Path) -> AnyRecipe:
    """
    Read a recipe, or a `train.toml`, told apart by what it says.

    Raises `FormatError` that names the key, `ConfigurationError`.
    """
    raw = read_bounded(path, "recipe")
    if path.suffix.lower() in {".yaml", ".yml"}:
        raise ConfigurationError(
            f"{path}: a recipe is TOML; write `learning_rate = 1e-3` for YAML's "
            "`learning_rate: 1e-3`, into a file that ends in .toml"
        )
    try:
        return parse_any_toml(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        what, clause = "recipe: not UTF-8", "docs/protocols/training.md#1"
        raise FormatError(what, reason=Reason.RECIPE_FORMAT, clause=clause) from error


def require_sendable(data: Path, validation: Path | None, suffix: str) -> None:
    """Require files of rows that are there, and a name that a node takes. `ConfigurationError`."""
    for path in (data, validation):
        if path is not None:
            require_rows_file(path)
    if not is_suffix(suffix):
        raise ConfigurationError(f"--suffix: {SUFFIX_RULE}")


def target_of(
    places: Places,
    recipe: AnyRecipe,
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


def _local(
    places: Places, recipe: AnyRecipe, expectation: Path | None, base: Path | None
) -> Target:
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


def _read_wanted(path: Path, recipe: AnyRecipe) -> Expectation:
    wanted = read_expectation(path)
    if wanted.model.name != recipe.base_model:
        raise ConfigurationError(
            f"the recipe trains {recipe.base_model}, the Expectation is about a node with "
            f"{wanted.model.name}: change base_model, or name another --expectation"
        )
    return wanted


def default_folder(places: Places, named: Path) -> Path:
    """Return the folder of a new training: below the data directory, by time and a name."""
    now, token = places.clock.now(), places.entropy.token(2)
    return places.paths.trainings / f"{now:%Y%m%dT%H%M%SZ}-{named.stem[:40]}-{token.hex()}"


def remember(places: Places, folder: Path) -> None:
    """Let `confide train jobs` find a folder that stands elsewhere: by a link beside the others."""
    base = places.paths.trainings
    if folder.resolve().parent == base.resolve():
        return
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    default_folder(places, folder).symlink_to(folder.resolve(), target_is_directory=True)


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
