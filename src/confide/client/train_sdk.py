"""A private training through the unmodified `openai` SDK: what it adds, and opens at the end.

docs/protocols/training-node.md §6. Requests go through `confide.openai_client`, or through another
client and `confide proxy`. Keys stay in a folder of the owner's; results are believed for their
record, whoever carried them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confide.adapters.entropy import SystemEntropy
from confide.client.openai import read_policy
from confide.client.train_folder import OwnedFile, OwnerFolder
from confide.client.train_job import confide_member
from confide.client.train_results import RECORD, ReceivedResults, missing_result
from confide.client.train_upload import claim_of, commit_file
from confide.errors import ConfigurationError
from confide.training.any_recipe import parse_any_toml
from confide.training.recipe_file import recipe_with
from confide.trust.roots import VENDOR_ROOTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import openai

    from confide.client.train_results import OpenedResults
    from confide.expectation import Expectation
    from confide.ports import Entropy
    from confide.training.any_recipe import AnyRecipe
    from confide.trust.roots import Roots
    from confide.wire.json import JsonValue

__all__ = ["TrainingRequest", "open_results", "training_request"]

_PIECE = 256 * 1024
_GOING_ON = ("validating_files", "queued", "running", "pausing", "paused")


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """
    What an SDK sends beside its own members; keys are kept in `folder`.

    `rows` and `validation` are the `extra_body` of `files.create` (or `uploads.create`), `job` that
    of `fine_tuning.jobs.create`. `token` can be the client's `api_key`: drawn for this training.
    """

    folder: Path
    token: str
    rows: dict[str, Any]
    validation: dict[str, Any] | None
    job: dict[str, Any]


def training_request(
    rows: str | Path,
    *,
    policy: Expectation | str | Path,
    output: str | Path,
    validation: str | Path | None = None,
    recipe: Mapping[str, JsonValue] | str | Path | None = None,
    roots: Roots = VENDOR_ROOTS,
    entropy: Entropy | None = None,
) -> TrainingRequest:
    """
    Read and commit to `rows`, draw the keys of a training, and keep them in the folder `output`.

    `policy` is the Expectation that the record will name, or its file. `recipe` (a mapping, or a
    TOML file: a recipe or a `train.toml`) takes the place of the SDK's `method`, `hyperparameters`
    and `seed`. Without it those decide, and results are not held to a recipe: none was written down
    here. Nothing is sent.
    Raises `RowError`, `FormatError`, `ConfigurationError`; nothing is left then.
    """
    folder = OwnerFolder.create(
        Path(output),
        node="",
        expectation=read_policy(policy),
        roots=roots,
        recipe=_recipe(recipe),
        entropy=entropy or SystemEntropy(),
    )
    try:
        data = _commit(Path(rows), folder.salt)
        apart = None if validation is None else _commit(Path(validation), folder.validation_salt)
        folder = folder.now_at(replace(folder.state, data=data, validation=apart))
    except BaseException:
        folder.remove()
        raise
    return TrainingRequest(
        folder.path,
        folder.token,
        dict(claim_of(data.commitment, folder.salt)),
        None if apart is None else dict(claim_of(apart.commitment, folder.validation_salt)),
        {"confide": confide_member(folder)},
    )


def _recipe(recipe: Mapping[str, JsonValue] | str | Path | None) -> AnyRecipe | None:
    if recipe is None:
        return None
    if not isinstance(recipe, str | Path):
        return recipe_with(recipe)
    try:
        return parse_any_toml(Path(recipe).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"recipe {recipe} cannot be read") from error


def _commit(path: Path, salt: bytes) -> OwnedFile:
    size, commitment = commit_file(path, salt, lambda _bytes, _rows: None)
    return OwnedFile(path.absolute(), size, commitment)


def open_results(
    client: openai.OpenAI, job: str, output: str | Path, *, checkpoints: bool = False
) -> OpenedResults:
    """
    Fetch what the job with the id `job` made, open and verify it; then it is in `output`/tuned.

    `output` is the folder of `training_request`, `client` any client that reaches the node: what it
    carries is not trusted. The record has to hold before anything else is fetched; record, log,
    directories and what was asked for are held together. Raises `TrainingRejected`,
    `SealedFileRejected`, `FormatError`, `Unavailable`, and what the client raises; nothing that
    looks like a result is there then.
    """
    folder = OwnerFolder.open(Path(output))
    if folder.done:
        raise ConfigurationError(f"{folder.path} is done: its results are in {folder.result}")
    if folder.state.job not in {None, job}:
        raise ConfigurationError(f"{folder.path} holds the keys of another job")
    found = client.fine_tuning.jobs.retrieve(job)
    if found.status != "succeeded":
        yet = " yet" if found.status in _GOING_ON else ""
        raise ConfigurationError(f"the job is {found.status}: there are no results{yet}")
    folder = folder.now_at(replace(folder.state, job=job))
    files = {each.filename: each for each in map(client.files.retrieve, found.result_files)}
    with ReceivedResults(folder) as received:
        if RECORD not in files:
            raise missing_result(RECORD)
        received.take_record(b"".join(_content(client, files[RECORD].id)))
        for name in received.wanted(checkpoints=checkpoints):
            if name not in files:
                raise missing_result(name)
            received.require_room(files[name].bytes)
            sink = received.sink(name)
            for piece in _content(client, files[name].id):
                sink.write(piece)
            sink.finish()
        return received.publish()


def _content(client: openai.OpenAI, file: str) -> Iterator[bytes]:
    with client.files.with_streaming_response.content(file) as answer:
        yield from answer.iter_bytes(_PIECE)
