"""What a training process is told before its rows: the job, without anything secret in it.

docs/protocols/training.md §10. Written by whoever starts the process, read by the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from confide.errors import Reason
from confide.training.checkpoints import parse_checkpoint_entry
from confide.training.recipe_file import parse_recipe
from confide.training.row_shapes import KINDS
from confide.training.shares import MAX_WORLD
from confide.wire.json import JsonValue, Members

if TYPE_CHECKING:
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.job import OutputKind, TrainingData
    from confide.training.recipe import Recipe
    from confide.training.row_shapes import Kind

__all__ = [
    "DataName",
    "Device",
    "OrderForm",
    "Place",
    "Via",
    "data_name",
    "data_value",
    "read_data_name",
    "read_order_form",
]

Device = Literal["cpu", "cuda"]
Via = Literal["sockets", "gloo", "nccl"]
_OUTPUTS: tuple[OutputKind, ...] = ("adapter", "merged")
_MAX_RECIPE_CHARS = 1024 * 1024


@dataclass(frozen=True, slots=True)
class DataName:
    """A data set by its digest and root; its rows follow in frames of their own."""

    kind: Kind
    digest: bytes
    root: bytes


def data_name(data: TrainingData) -> DataName:
    """Return the name of `data`."""
    return DataName(data.kind, data.digest, data.root)


@dataclass(frozen=True, slots=True)
class Place:
    """
    Which rank a process is, how it is linked (training-ranks.md §3), which GPU it has if any.

    `meeting` is the private folder in which ranks meet that are not linked by `sockets`.
    """

    rank: int
    via: Via
    gpu: int
    meeting: Path | None


@dataclass(frozen=True, slots=True)
class OrderForm:
    """
    One run: recipe and data, the measured model `folder`, where sealed checkpoints lie, what to do.

    `resume` names the checkpoint to go on from, None for the beginning. `outputs` are yielded at
    the end, in plain, through the pipe. `world` is that of the plan; without a `place` this process
    does the work of all its ranks.
    """

    recipe: Recipe
    data: DataName
    validation: DataName | None
    base: bytes
    folder: Path
    checkpoints: Path
    resume: CheckpointEntry | None
    outputs: tuple[OutputKind, ...]
    threads: int
    device: Device
    world: int = 1
    place: Place | None = None

    def value(self) -> dict[str, JsonValue]:
        """Return the JSON value."""
        return {
            "recipe": self.recipe.canonical().decode(),
            "data": data_value(self.data),
            "validation": None if self.validation is None else data_value(self.validation),
            "base": self.base.hex(),
            "folder": str(self.folder),
            "checkpoints": str(self.checkpoints),
            "resume": None if self.resume is None else self.resume.value(),
            "outputs": list(self.outputs),
            "threads": self.threads,
            "device": self.device,
            "world": self.world,
            "place": None if self.place is None else _place_value(self.place),
        }


def read_order_form(value: JsonValue) -> OrderForm:
    """Read what `OrderForm.value` gave. Raises `FormatError`."""
    members = Members(value, what="training order", reason=Reason.TRAINING_FORMAT)
    named = members.texts("outputs")
    outputs = tuple(kind for kind in _OUTPUTS if kind in named)
    if len(outputs) != len(named):
        members.refuse("outputs holds something that is none")
    form = OrderForm(
        recipe=parse_recipe(members.text("recipe", max_chars=_MAX_RECIPE_CHARS).encode()),
        data=read_data_name(members.members("data")),
        validation=None
        if members.null("validation")
        else read_data_name(members.members("validation")),
        base=members.hexes("base", 32),
        folder=Path(members.text("folder")),
        checkpoints=Path(members.text("checkpoints")),
        resume=None if members.null("resume") else parse_checkpoint_entry(members.value("resume")),
        outputs=outputs,
        threads=members.integer("threads", low=1, high=1024),
        device=members.choice("device", ("cpu", "cuda")),
        world=members.integer("world", low=1, high=MAX_WORLD),
        place=None if members.null("place") else _read_place(members.members("place")),
    )
    members.end()
    return form


def _place_value(place: Place) -> dict[str, JsonValue]:
    return {
        "rank": place.rank,
        "via": place.via,
        "gpu": place.gpu,
        "meeting": None if place.meeting is None else str(place.meeting),
    }


def _read_place(members: Members) -> Place:
    place = Place(
        rank=members.integer("rank", high=MAX_WORLD - 1),
        via=members.choice("via", ("sockets", "gloo", "nccl")),
        gpu=members.integer("gpu", high=MAX_WORLD - 1),
        meeting=None if members.null("meeting") else Path(members.text("meeting")),
    )
    members.end()
    return place


def data_value(data: DataName) -> dict[str, JsonValue]:
    """Return the JSON value of a name."""
    return {"kind": data.kind, "digest": data.digest.hex(), "root": data.root.hex()}


def read_data_name(members: Members) -> DataName:
    """Read what `data_value` gave. Raises the `FormatError` of `members`."""
    name = DataName(
        kind=members.choice("kind", KINDS),
        digest=members.hexes("digest", 32),
        root=members.hexes("root", 32),
    )
    members.end()
    return name
