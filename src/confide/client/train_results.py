"""Results of a training, opened into a private folder, and believed only when everything holds.

docs/protocols/training-node.md §3 and §6. What comes is hostile: sealed bytes, archives, names. It
goes into a folder of its own beside the place of the results. One rename makes it the results,
after the record, the owner's log, the opened directories and what was asked for were held together;
whatever is wrong leaves nothing there.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Self

from confide.adapters.files import write_atomically
from confide.adapters.sealed_store import create_private
from confide.adapters.weights_dir import measure_weights
from confide.client.train_sinks import (
    Hashed,
    Opened,
    Stored,
    Unpacked,
    no_room,
    refuse_form,
)
from confide.crypto.sealed_file import open_file_for
from confide.errors import FormatError, Reason, TrainingRejected, Unavailable
from confide.rats import Finding, Status
from confide.training.audit import audit_log
from confide.training.image_recipe import ImagePlan, ImageRecipe
from confide.training.image_record import ImageRecord
from confide.training.image_verify import verify_image_record
from confide.training.record_file import parse_record_file
from confide.training.record_verify import VerifiedRecord, verify_record

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType
    from typing import BinaryIO

    from confide.client.train_folder import OwnerFolder
    from confide.client.train_sinks import ResultSink
    from confide.training.any_record import AnyVerified
    from confide.training.audit import AuditedLog
    from confide.training.record_file import RecordFile
    from confide.training.shares import Engine

__all__ = [
    "CONSOLE",
    "PRINTED",
    "RECORD",
    "REFUSED",
    "OpenedResults",
    "ReceivedResults",
    "missing_result",
    "printed_sink",
]

RECORD: Final = "record.json"
_OWNER_LOG: Final = "owner-log.json"
REFUSED: Final = "record.refused.json"
_ARCHIVES: Final = {
    "adapter.tar.sealed": "adapter",
    "merged.tar.sealed": "merged",
    "output.tar.sealed": "output",
}
_LOG: Final = "owner-log.sealed"
# What an image of the owner's printed: docs/protocols/training-image.md 3.2.
_CONSOLE: Final = {"stdout.sealed": "stdout.txt", "stderr.sealed": "stderr.txt"}
CONSOLE: Final = tuple(_CONSOLE)
PRINTED: Final = "printed"
_CHECKPOINT: Final = re.compile(r"checkpoint-(0|[1-9][0-9]{0,8})\.sealed\Z")
_CLAUSE: Final = "docs/protocols/training-node.md#6"


@dataclass(frozen=True, slots=True)
class OpenedResults:
    """
    Results that held: where they stand, the record, and the owner's log held to it.

    `audited` is None for an image of the owner's: its record is artefact-level, and has no log.
    """

    folder: Path
    record: AnyVerified
    audited: AuditedLog | None

    @property
    def adapter(self) -> Path | None:
        """The adapter, where the training made one."""
        place = self.folder / "adapter"
        return place if place.is_dir() else None

    @property
    def merged(self) -> Path:
        """The whole model, as it can be served; of an image the directory that it left."""
        return self.folder / self.record.record.main


def printed_sink(folder: OwnerFolder, name: str) -> ResultSink:
    """
    Return where goes what the image of a job printed that failed: `printed` in `folder`.

    Nothing binds it to a record: it is whatever the node sealed to the owner. Raises `Unavailable`.
    """
    place = folder.path / PRINTED / _CONSOLE[name]
    try:
        place.parent.mkdir(mode=0o700, exist_ok=True)
        place.unlink(missing_ok=True)
        file = create_private(place)
    except OSError as error:
        raise no_room(error) from error
    return Opened(open_file_for(folder.recipient, name=f"{folder.state.job}/{name}"), file)


class ReceivedResults:
    """
    The results of one job on their way in. Use as a context manager: what was not published goes.

    In this order: `take_record`, a `sink` for each of `wanted`, `publish`.
    """

    def __init__(self, folder: OwnerFolder) -> None:
        """Make room beside the place of the results. Raises `Unavailable`."""
        self._folder = folder
        try:
            for left in folder.path.glob(".receiving-*"):
                shutil.rmtree(left, ignore_errors=True)
            self._stage = Path(tempfile.mkdtemp(prefix=".receiving-", dir=folder.path))
        except OSError as error:
            raise no_room(error) from error
        self._raw = b""
        self._file: RecordFile | None = None
        self._record: AnyVerified | None = None
        self._sealed: dict[str, bytes] = {}
        self._open: list[BinaryIO] = []

    def take_record(self, raw: bytes) -> AnyVerified:
        """
        Verify the record before anything is fetched: it answers what was asked, or is refused.

        A refused one is kept as `record.refused.json`, which nothing reads: it shows what the node
        signed. Raises `TrainingRejected`, `FormatError`.
        """
        try:
            file = parse_record_file(raw)
            record = self._verified(file, {})
            self._require_asked(record)
        except (TrainingRejected, FormatError):
            # A witness, where there is room for one; the refusal counts either way.
            with suppress(Unavailable):
                write_atomically(self._folder.path / REFUSED, raw)
            raise
        self._raw, self._file, self._record = raw, file, record
        return record

    def wanted(self, *, checkpoints: bool) -> tuple[str, ...]:
        """
        Return the names of the results that have to be there, and of checkpoints if wanted.

        Those that a job had before it moved stay where they were made (training-node.md 7.7).
        """
        record = self._believed().record
        archives = [name for name, kind in _ARCHIVES.items() if kind in record.outputs]
        if isinstance(record, ImageRecord):
            return (*_CONSOLE, *archives)
        moved = max((t.step for t in record.turns if t.kind in {"restarted", "moved"}), default=0)
        steps = [each for each in record.checkpoints if checkpoints and each.step >= moved]
        return (_LOG, *archives, *(f"checkpoint-{each.step}.sealed" for each in steps))

    def earlier(self, there: Collection[str]) -> tuple[str, ...]:
        """Return those of `there` that are checkpoints of the record, and need not be there."""
        record = self._believed().record
        steps = () if isinstance(record, ImageRecord) else record.checkpoints
        listed = (f"checkpoint-{each.step}.sealed" for each in steps)
        needed = self.wanted(checkpoints=True)
        return tuple(name for name in listed if name in there and name not in needed)

    def require_room(self, size: int) -> None:
        """Require that the disk has room for `size` bytes. Raises `Unavailable`."""
        free = shutil.disk_usage(self._stage).free
        if free < size:
            raise Unavailable(
                f"the results need {size} bytes in {self._folder.path}, and {free} are free; "
                "make room and take the training up again"
            )

    def sink(self, name: str) -> ResultSink:
        """Return where the bytes of the result `name` go. Its calls raise what refuses them."""
        opener = open_file_for(self._folder.recipient, name=f"{self._folder.state.job}/{name}")
        if name in _ARCHIVES:
            inner: ResultSink = Unpacked(opener, self._stage / _ARCHIVES[name], self._created)
        elif name == _LOG:
            inner = Opened(opener, self._created(self._stage / _OWNER_LOG))
        elif name in _CONSOLE:
            inner = Opened(opener, self._created(self._stage / _CONSOLE[name]))
        else:
            place = self._stage / "checkpoints" / f"checkpoint-{_step_of(name):09}.sealed"
            inner = Stored(self._created(place))
        return Hashed(inner, lambda digest: self._sealed.__setitem__(name, digest))

    def publish(self) -> OpenedResults:
        """
        Hold everything together, and make it the results.

        The directories are those of the record, the log is the record's and follows from its
        recipe and the owner's salt. Raises `TrainingRejected`, `FormatError`, `Unavailable`.
        """
        folder, file = self._folder, self._file
        if file is None:
            raise RuntimeError("the record comes first")
        self._require_sealed()
        kinds = self._believed().record.outputs
        record = self._verified(
            file, {kind: measure_weights(self._stage / kind).digest for kind in kinds}
        )
        audited = self._audited(record) if isinstance(record, VerifiedRecord) else None
        write_atomically(self._stage / RECORD, self._raw)
        try:
            self._stage.replace(folder.result)
            _sync(folder.path)
        except OSError as error:
            raise no_room(error) from error
        return OpenedResults(folder.result, record, audited)

    def _audited(self, record: VerifiedRecord) -> AuditedLog:
        folder = self._folder
        log = (self._stage / _OWNER_LOG).read_bytes()
        # The rows were committed to before they were sent: owner/1 compared the digests.
        rows = None if folder.state.data is None else folder.state.data.commitment
        return audit_log(record, log, dataset_salt=folder.salt, rows=rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._open:
            with suppress(OSError):
                file.close()
        # Gone under this name where it was published.
        shutil.rmtree(self._stage, ignore_errors=True)

    def _believed(self) -> AnyVerified:
        if self._record is None:
            raise RuntimeError("the record comes first")
        return self._record

    def _created(self, place: Path) -> BinaryIO:
        try:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = create_private(place)
        except (FileExistsError, NotADirectoryError) as error:
            refuse_form("two results, or two files of one, have one name", error)
        except OSError as error:
            raise no_room(error) from error
        self._open.append(file)
        return file

    def _verified(self, file: RecordFile, outputs: dict[str, bytes]) -> AnyVerified:
        folder = self._folder
        # Of the kind that was asked for: a coarser one is no answer to a recipe.
        image = isinstance(folder.state.recipe, ImageRecipe)
        verify = verify_image_record if image else verify_record
        return verify(
            file,
            roots=folder.roots,
            now=None,
            expectation=folder.expectation,
            nonce=folder.nonce,
            outputs=outputs,
        )

    def _require_asked(self, record: AnyVerified) -> None:
        state, plan = self._folder.state, record.record.plan
        image = plan.image.hex() if isinstance(plan, ImagePlan) else None
        if isinstance(state.recipe, ImageRecipe) and image != state.recipe.image:
            _refuse("owner/1", "another image was run", Reason.AGENT_IMAGE_MISMATCH)
        if state.recipe is not None and plan.recipe != state.recipe.digest:
            _refuse("owner/1", "it was trained by another recipe", Reason.TRAINING_PLAN)
        linked = _engines(record)
        if linked - {state.engine} or (state.engine != "ring" and not linked):
            words = f"its nodes were not linked by {state.engine}"
            _refuse("owner/1", words, Reason.TRAINING_MACHINE)
        data = None if state.data is None else state.data.commitment
        if data is None or (plan.dataset, record.record.dataset_root) != (data.digest, data.root):
            _refuse("owner/1", "it was trained on other rows", Reason.DATASET_MISMATCH)
        apart = None if state.validation is None else state.validation.commitment.digest
        if plan.validation != apart:
            _refuse("owner/1", "it was evaluated on other rows", Reason.DATASET_MISMATCH)

    def _require_sealed(self) -> None:
        record = self._believed().record
        listed = () if isinstance(record, ImageRecord) else record.checkpoints
        checkpoints = {each.step: each.sealed for each in listed}
        for name, digest in self._sealed.items():
            if name in _ARCHIVES or name == _LOG or name in _CONSOLE:
                said = record.sealed.get(_ARCHIVES.get(name, name.removesuffix(".sealed")))
                reason = Reason.OUTPUT_MISMATCH
            else:
                said, reason = checkpoints.get(_step_of(name)), Reason.CHECKPOINT_MISMATCH
            if digest != said:
                _refuse("owner/2", f"{name} is not what the record names", reason)
        for name in self.wanted(checkpoints=False):
            if name not in self._sealed:
                raise missing_result(name)


def _engines(record: AnyVerified) -> set[Engine]:
    """Return what linked the nodes of a job, where there were several."""
    boots = record.seats if isinstance(record, VerifiedRecord) else ()
    return {seat.engine for boot in boots for seat in boot if len(boot) > 1}


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _step_of(name: str) -> int:
    found = _CHECKPOINT.match(name)
    if found is None:
        refuse_form("a result has an unknown name", None)
    return int(found[1])


def missing_result(name: str) -> TrainingRejected:
    """Return the refusal of a job that did not make what its record says."""
    return _refusal("owner/2", f"{name} is missing", Reason.OUTPUT_MISMATCH)


def _refusal(step: str, detail: str, reason: Reason) -> TrainingRejected:
    return TrainingRejected((Finding(Status.FAIL, step, _CLAUSE, "results", detail, reason),))


def _refuse(step: str, detail: str, reason: Reason) -> NoReturn:
    raise _refusal(step, detail, reason)
