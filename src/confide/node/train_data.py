"""What a training process is given: rows out of the sealed store, and the form that names them.

docs/protocols/training-node.md 1.2, training-files.md §4. Rows are read and committed to again each
time: what is trained on is what the owner committed to, whatever the disk did meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.node.train_store import rows_name
from confide.trainer.order_form import DataName, OrderForm
from confide.training.dataset import DatasetTree, RowSalts, require_commitment
from confide.training.job import TrainingData, TrainingJob
from confide.training.rows import RowReader, require_rows

if TYPE_CHECKING:
    from pathlib import Path

    from confide.adapters.sealed_store import SealedStore
    from confide.node.seat_messages import SeatInvitation, SeatOrder
    from confide.node.train_entry import TrainPorts
    from confide.node.train_store import FileTable, StoredFile
    from confide.trainer.order_form import Device
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.dataset import Commitment
    from confide.training.job import OutputKind
    from confide.training.job_request import JobRequest
    from confide.training.recipe import Recipe

__all__ = ["data_files", "make_form", "outputs_of", "read_data", "read_job", "seat_form"]


def data_files(
    table: FileTable, owner: str, request: JobRequest
) -> tuple[StoredFile, StoredFile | None]:
    """Return the rows of a job, and those only evaluated on. Raises `RequestRefused`."""
    data = table.find_data(owner, request.training_file, param="training_file")
    if request.validation_file is None:
        return data, None
    return data, table.find_data(owner, request.validation_file, param="validation_file")


def read_data(store: SealedStore, file: StoredFile) -> TrainingData:
    """
    Read the rows of `file`. Blocks.

    Raises `DatasetRejected` where they are not those committed to, `Unavailable` where the store
    fails or was changed.
    """
    tree = DatasetTree(RowSalts(file.claim.salt))
    rows: list[bytes] = []
    for row in require_rows(RowReader().read(store.read(rows_name(file.id)))):
        tree.add(row)
        rows.append(row.record)
    commitment = tree.commitment()
    require_commitment(commitment, file.commitment.digest)
    return TrainingData(commitment.kind, commitment.digest, commitment.root, file.claim.salt, rows)


def read_job(
    store: SealedStore,
    recipe: Recipe,
    data: StoredFile,
    validation: StoredFile | None,
    *,
    base: bytes,
    world: int,
) -> TrainingJob:
    """Read everything that a process is handed. Blocks; raises what `read_data` raises."""
    apart = None if validation is None else read_data(store, validation)
    return TrainingJob(recipe, read_data(store, data), apart, base, world)


def outputs_of(recipe: Recipe) -> tuple[OutputKind, ...]:
    """Return what a job by `recipe` gives."""
    return ("merged",) if recipe.lora is None else ("adapter", "merged")


def make_form(
    recipe: Recipe,
    data: Commitment,
    validation: Commitment | None,
    *,
    base: bytes,
    folder: Path,
    checkpoints: Path,
    resume: CheckpointEntry | None,
    threads: int,
    device: Device,
    world: int,
) -> OrderForm:
    """Return the form of one attempt."""
    return OrderForm(
        recipe=recipe,
        data=_name(data),
        validation=None if validation is None else _name(validation),
        base=base,
        folder=folder,
        checkpoints=checkpoints,
        resume=resume,
        outputs=outputs_of(recipe),
        threads=threads,
        device=device,
        world=world,
    )


def seat_form(ports: TrainPorts, order: SeatOrder, invitation: SeatInvitation) -> OrderForm:
    """Return the form of ranks in another node's job: they put nothing out and keep nothing."""
    return OrderForm(
        recipe=order.recipe,
        data=order.data,
        validation=order.validation,
        base=ports.node.weights,
        folder=ports.folder,
        checkpoints=ports.checkpoints,
        resume=None,
        outputs=(),
        threads=invitation.threads,
        device=ports.device,
        world=invitation.plan.world,
    )


def _name(commitment: Commitment) -> DataName:
    return DataName(commitment.kind, commitment.digest, commitment.root)
