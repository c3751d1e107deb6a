"""Small training jobs: rows made here, committed to as an owner does."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from dataset_rows import lines

from confide.adapters.weights_dir import measure_weights
from confide.trainer.order_form import OrderForm, data_name
from confide.training.dataset import commit_rows
from confide.training.job import TrainingData, TrainingJob
from confide.training.recipe_file import parse_recipe_toml
from confide.training.rows import RowReader, require_rows

if TYPE_CHECKING:
    from pathlib import Path

SALT = bytes(range(32))
KEY = hashlib.sha256(b"key of the checkpoints").digest()
SESSION = hashlib.sha256(b"one run").digest()
WORDS = ("red", "blue", "green", "nine", "six", "shop", "door", "key")
HEAD = 'base_model = "tiny"\nlearning_rate = 1e-2\nsequence_len = 128\n'

Rows = list[dict[str, Any]]


def chat_rows(count: int) -> Rows:
    """Questions of one word, answers of one to four."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"question {number} {WORDS[number % 8]}"},
                {"role": "assistant", "content": " ".join(WORDS[: number % 4 + 1])},
            ]
        }
        for number in range(count)
    ]


def text_rows(count: int) -> Rows:
    """The same without a template."""
    return [
        {"prompt": f"{number} {WORDS[number % 8]}:", "completion": " " + WORDS[-(number % 8)]}
        for number in range(count)
    ]


def pair_rows(count: int) -> Rows:
    """Preferences, in TRL's shape."""
    return [
        {
            "prompt": f"where {number} ",
            "chosen": "red green",
            "rejected": "blue" + "!" * (number % 3),
        }
        for number in range(count)
    ]


def training_data(rows: Rows, salt: bytes = SALT) -> TrainingData:
    """Read and commit to `rows`."""
    read = list(require_rows(RowReader().read([lines(*rows)])))
    commitment = commit_rows(read, salt)
    return TrainingData(
        commitment.kind, commitment.digest, commitment.root, salt, [row.record for row in read]
    )


def training_job(folder: Path, toml: str, rows: Rows, apart: Rows | None = None) -> TrainingJob:
    """Return the job of `HEAD` and `toml` over `rows`, with the model in `folder`."""
    return TrainingJob(
        recipe=parse_recipe_toml(HEAD + toml),
        data=training_data(rows),
        validation=None if apart is None else training_data(apart, bytes(32)),
        base=measure_weights(folder).digest,
    )


def order_form(folder: Path, checkpoints: Path, job: TrainingJob, **more: Any) -> OrderForm:
    """Return how a training process is told of `job`."""
    usual: dict[str, Any] = {"resume": None, "outputs": (), "threads": 1, "device": "cpu"}
    usual["world"] = job.world
    return OrderForm(
        recipe=job.recipe,
        data=data_name(job.data),
        validation=None if job.validation is None else data_name(job.validation),
        base=job.base,
        folder=folder,
        checkpoints=checkpoints,
        **(usual | more),
    )
