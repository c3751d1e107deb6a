"""A training node in memory: simulated hardware, genuine jobs and records, arithmetic to train.

A `FakeProcess` speaks the frames of a training process and writes genuine sealed checkpoints; a
`Fate` says what happens to it. No torch, no clock that runs, no process.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import socket
import tarfile
import threading
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from arithmetic import RECIPE, SALT, Arithmetic
from arithmetic import rows as arithmetic_rows
from nodes import NOW, WEIGHTS, CountingEntropy, SimulatedNode
from runs import expectation_and_roots
from training_place import TOKEN, MovingClock, TrainingPlace

from confide.adapters.entropy import SystemEntropy
from confide.crypto.kem import load_private_key
from confide.crypto.sealed_file import open_file_for
from confide.errors import Unavailable
from confide.inference.models import ServedModel
from confide.node.identity import NodeIdentity
from confide.node.train_app import TrainApp
from confide.node.train_entry import TrainPorts
from confide.node.train_jobs import TrainJobs
from confide.node.train_proof import ProvenBase
from confide.node.train_replays import TrainReplays
from confide.trainer.checkpoint_files import CheckpointFiles
from confide.trainer.frames import Frame
from confide.trainer.reports import Progress, evaluation_value, step_value
from confide.training.batches import plan_batches
from confide.training.chain import chain_start, chain_step
from confide.training.plan import TrainingPlan
from confide.wire.json import b64encode, jcs
from confide.wire.ohttp import Kem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import TracebackType

    import openai
    from openai.types.fine_tuning import FineTuningJob

    from confide.expectation import Expectation
    from confide.node.seat_host import SeatHost
    from confide.node.seat_party import PartyPorts
    from confide.node.train_entry import JobEntry
    from confide.node.train_image import ImagePorts
    from confide.trainer.order_form import OrderForm
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.job import TrainingJob
    from confide.training.replay import Stretch
    from confide.wire.json import JsonValue

MODEL = "support-notes"
OWNER = load_private_key(Kem.X_WING, hashlib.sha256(b"the owner of these jobs").digest())
KEY = hashlib.sha256(b"the owner's key of checkpoints").digest()
ROWS = b"".join(row.record + b"\n" for row in arithmetic_rows())
OUTPUTS = {
    "adapter": {"adapter_config.json": b"{}\n", "adapter_model.safetensors": b"a" * 1000},
    "merged": {"config.json": b"{}", "model.safetensors": b"m" * 100_000},
}


def nothing(_process: FakeProcess, _what: object) -> None:
    """What usually happens after a step, and before a file."""


@dataclass
class Fate:
    """What happens to processes: `after` is called after each step, before it is told."""

    after: Callable[[FakeProcess, int], None] = nothing
    # Instead of steps: a last frame of FAILED.
    failure: dict[str, JsonValue] | None = None
    started: list[FakeProcess] = field(default_factory=list)
    environment: dict[str, JsonValue] = field(default_factory=lambda: {"isa": "none"})
    epsilon: float | None = None
    # A dishonest node: the number is changed at the end of these steps (arithmetic.py).
    wrong: dict[int, float] = field(default_factory=dict)
    # Another one: what it puts out is not of the state, and a tuned loss is better than it was.
    planted: bytes = b""
    praise: float = 0.0
    # Before a file of the result is told.
    giving: Callable[[FakeProcess, str], None] = nothing


class Gate:
    """Holds a process after a step until it is opened."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, process: FakeProcess, step: int) -> None:
        if step == self.step and not self.opened.is_set():
            self.reached.set()
            while not (process.killed.is_set() or self.opened.wait(0.01)):
                pass

    async def wait(self) -> None:
        """Wait until the process is there."""
        await asyncio.to_thread(self.reached.wait)


class FakeProcess:
    """Arithmetic in place of a model, behind the frames of a training process."""

    def __init__(self, form: OrderForm, fate: Fate, *, ranks: int = 1) -> None:
        self.form = form
        self.ranks = ranks
        self.fate = fate
        self.killed = threading.Event()
        self.pausing = self.gone = False
        self.asked: list[Stretch] = []
        self.job: TrainingJob | None = None
        self.files: CheckpointFiles | None = None
        fate.started.append(self)

    def begin(self, job: TrainingJob, *, key: bytes, session: bytes) -> None:
        self.job = job
        assert (job.recipe, job.base, job.data.root) == (
            self.form.recipe,
            self.form.base,
            self.form.data.root,
        )
        self.plan = TrainingPlan(
            recipe=job.recipe.digest,
            dataset=job.data.digest,
            validation=None if job.validation is None else job.validation.digest,
            base=job.base,
            tokenizer=bytes(32),
            template=None,
            world=job.world,
        )
        self.files = CheckpointFiles(
            self.form.checkpoints, plan=self.plan.digest, key=key, session=session
        )

    def go(self) -> None:
        self.gone = True

    def replay(self, stretch: Stretch) -> None:
        assert not self.gone, "a process trains or replays"
        assert not self.asked, "one stretch after the other"
        self.asked.append(stretch)

    def pause(self) -> None:
        assert self.gone, "a command while the job was on its way"
        self.pausing = True

    def kill(self) -> None:
        self.killed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def frames(self) -> Iterator[tuple[Frame, bytes]]:
        for kind, value in self._frames():
            if self.killed.is_set():
                raise Unavailable("the training process ended by itself (status -9)")
            yield kind, value if isinstance(value, bytes) else jcs(value)

    def _frames(self) -> Iterator[tuple[Frame, JsonValue | bytes]]:
        job, files = self.job, self.files
        assert job is not None
        assert files is not None
        if self.fate.failure is not None:
            yield Frame.FAILED, self.fate.failure
            return
        plan = self.plan.digest
        batches = plan_batches(
            job.recipe,
            seeding=self.plan.seeding,
            root=job.data.root,
            lengths=[5] * len(job.data.rows),
            dataset_salt=job.data.salt,
        )
        rows, salt = tuple(job.data.rows), job.data.salt
        trainer = Arithmetic(job.recipe, plan, rows, batches, self.fate.wrong, salt=salt)
        yield (
            Frame.PREPARED,
            {
                "plan": self.plan.value(),
                "steps": batches.steps,
                "held_out": len(batches.held_out),
                "environment": self.fate.environment,
            },
        )
        if self.asked:
            yield from self._replay(trainer, files)
            if not self.gone:
                yield Frame.ENDED, self._ended("cancelled", 0, chain_start(plan))
                return
        assert self.gone, "the first step begins when the boot is proven"
        link, resume = chain_start(plan), self.form.resume
        if resume is not None:
            trainer.load(files.read(resume))
            assert trainer.state_digest() == resume.state
            link = resume.chain
        saved = trainer.step
        while trainer.step < batches.steps:
            if self.pausing:
                if saved < trainer.step:
                    yield Frame.CHECKPOINT, self._save(trainer, link).value()
                yield Frame.ENDED, self._ended("paused", trainer.step, link)
                return
            record = trainer.run_step()
            link = chain_step(link, record)
            self.fate.after(self, record.step)
            progress = Progress(batches.steps, 100.0, float(batches.steps - record.step))
            yield Frame.STEP, step_value(record, trainer.batch(record.step), progress)
            if job.recipe.evaluation_is_due(record.step, planned=batches.steps):
                found = trainer.evaluate(base=False)
                yield (
                    Frame.EVALUATION,
                    evaluation_value(found, model="tuned", step=record.step),
                )
            if not record.step % job.recipe.checkpoint_every or record.step == batches.steps:
                yield Frame.CHECKPOINT, self._save(trainer, link).value()
                saved = record.step
        yield from self._results(trainer)
        yield Frame.ENDED, self._ended("finished", trainer.step, link)

    def _replay(
        self, trainer: Arithmetic, files: CheckpointFiles
    ) -> Iterator[tuple[Frame, JsonValue | bytes]]:
        beginning = b"".join(trainer.save())
        while self.asked:
            stretch = self.asked.pop()
            trainer.load(beginning if stretch.start is None else files.read(stretch.start))
            for _ in range(stretch.first, stretch.last + 1):
                record = trainer.run_step()
                self.fate.after(self, record.step)
                progress = Progress(stretch.last, 0.0, 0.0)
                yield Frame.STEP, step_value(record, trainer.batch(record.step), progress)
        trainer.load(beginning)

    def _ended(self, outcome: str, step: int, link: bytes) -> dict[str, JsonValue]:
        epsilon = self.fate.epsilon
        return {"outcome": outcome, "step": step, "chain": link.hex(), "epsilon": epsilon}

    def _save(self, trainer: Arithmetic, link: bytes) -> CheckpointEntry:
        assert self.files is not None
        state = trainer.state_digest()
        return self.files.write(trainer.step, trainer.save(), chain=link, state=state)

    def _results(self, trainer: Arithmetic) -> Iterator[tuple[Frame, JsonValue | bytes]]:
        if self.form.recipe.val_set_size or self.form.validation is not None:
            apart = self.job.validation if self.job is not None else None
            judged = len(trainer.batches.held_out) + (0 if apart is None else len(apart.rows))
            for model in ("base", "tuned"):
                found = trainer.evaluate(base=model == "base")
                yield (
                    Frame.EVALUATION,
                    evaluation_value(
                        replace(
                            found,
                            rows=judged,
                            loss=found.loss - (self.fate.praise if model == "tuned" else 0.0),
                        ),
                        model=model,
                    ),
                )
        for output in self.form.outputs:
            for name, data in self._files_of(output, trainer).items():
                self.fate.giving(self, name)
                yield Frame.FILE, {"output": output, "name": name, "bytes": len(data)}
                for at in range(0, len(data), 4096):
                    yield Frame.DATA, data[at : at + 4096]

    def _files_of(self, output: str, trainer: Arithmetic) -> dict[str, bytes]:
        """The result depends on the number that was trained."""
        trained = b"".join(trainer.save()) + self.fate.planted
        return OUTPUTS[output] | {"trained.safetensors": trained}


class FakeSeat(FakeProcess):
    """The ranks of one seat: steps go round over its links, a byte each."""

    def __init__(
        self, form: OrderForm, fate: Fate, ranks: range, outer: tuple[socket.socket, socket.socket]
    ) -> None:
        super().__init__(form, fate, ranks=len(ranks))
        self.first = ranks.start
        self._before, self._after = outer

    def begin(self, job: TrainingJob, *, key: bytes, session: bytes) -> None:
        if not self.first:
            super().begin(job, key=key, session=session)
            return
        self.job = job
        assert (key, session, job.data.salt) == (bytes(32),) * 3
        assert self.form.outputs == ()

    def frames(self) -> Iterator[tuple[Frame, bytes]]:
        return self._follow() if self.first else self._lead()

    def _lead(self) -> Iterator[tuple[Frame, bytes]]:
        for kind, value in super().frames():
            if kind is Frame.STEP:
                self._send(b"s")
                self._receive()
            elif kind is Frame.ENDED:
                with suppress(Unavailable):
                    self._send(b"e")
            yield kind, value

    def _follow(self) -> Iterator[tuple[Frame, bytes]]:
        step = 0
        while (heard := self._receive()) == b"s":
            step += 1
            self.fate.after(self, step)
            self._send(heard)
        yield Frame.ENDED, b'{"outcome":"followed"}'

    def _send(self, what: bytes) -> None:
        try:
            self._after.sendall(what)
        except OSError as error:
            raise Unavailable("one of the ranks is gone") from error

    def _receive(self) -> bytes:
        try:
            heard = self._before.recv(1)
        except OSError:
            heard = b""
        if not heard:
            raise Unavailable("one of the ranks is gone")
        return heard

    def kill(self) -> None:
        super().kill()
        for link in (self._before, self._after):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._before.close()
        self._after.close()


@dataclass
class TrainWorld(TrainingPlace):
    """One training node, up; `fate` rules its processes."""

    fate: Fate = field(default_factory=Fate)
    # What makes the node run images of owners too.
    images: Callable[[ProvenBase], ImagePorts] | None = None
    # How many processes a job may have.
    ranks: int = 1
    # Another label is another machine; another `keys` another boot.
    gpu: str = "model-node"
    keys: bytes = b"entropy"
    weights: bytes = WEIGHTS
    fault: str = ""
    # Whom it invites to jobs, and how it takes seats itself.
    party: PartyPorts | None = None
    host: Callable[[TrainPorts, TrainJobs], SeatHost] | None = None
    seats: SeatHost | None = None
    clock: MovingClock = field(default_factory=lambda: MovingClock(NOW))
    node: SimulatedNode = field(init=False)
    jobs: TrainJobs = field(init=False)
    replays: TrainReplays = field(init=False)
    app: TrainApp = field(init=False)
    _nonces: int = 0

    @property
    def inner(self) -> Any:
        return self.app

    @property
    def expectation(self) -> Expectation:
        """The Expectation that this node meets."""
        return expectation_and_roots()[0]

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Self]:
        """Boot the node, and end it."""
        self.node = SimulatedNode(
            "model",
            clock=self.clock,  # type: ignore[arg-type]
            entropy=CountingEntropy(self.keys),
            gpu=self.gpu,
            weights=self.weights,
            fault=self.fault,
        )
        await self.node.boot()
        self.identity = NodeIdentity(
            self.node.keys,
            self.node.attester,
            clock=self.clock,
            entropy=SystemEntropy(),
            simulated=True,
        )
        known = expectation_and_roots()[1]
        proven = ProvenBase(self.identity, self.node.guest, known, MODEL, self.weights)
        ports = TrainPorts(
            node=proven,
            files=self.files,
            start=lambda form: FakeProcess(form, self.fate),
            start_ranks=lambda form: FakeProcess(form, self.fate, ranks=form.world),
            start_seat=lambda form, ranks, outer: FakeSeat(form, self.fate, ranks, outer),
            folder=self.folder / "base",
            checkpoints=self.checkpoints,
            threads=1,
            device="cpu",
            clock=self.clock,
            entropy=SystemEntropy(),
            images=None if self.images is None else self.images(proven),
            ranks=self.ranks,
            party=self.party,
        )
        self.jobs = TrainJobs(ports)
        self.replays = TrainReplays(ports, self.jobs.pool)
        served = ServedModel(
            name=MODEL,
            weights_digest="11" * 32,
            manifest_digest=WEIGHTS.hex(),
            upstream_name=MODEL,
            created=1,
        )
        self.seats = None if self.host is None else self.host(ports, self.jobs)
        self.app = TrainApp(self.files, self.jobs, self.replays, served, seats=self.seats)
        self.jobs.start()
        self.replays.start()
        try:
            yield self
        finally:
            if self.seats is not None:
                await self.seats.close()
            await self.replays.close()
            await self.jobs.close()

    @property
    def checkpoints(self) -> Any:
        """Where checkpoints lie: beside the store's folder."""
        return self.folder.with_name("checkpoints")

    @property
    def stored(self) -> list[Any]:
        found = [path for path in self.folder.iterdir() if path.is_file()]
        if self.checkpoints.is_dir():
            found += [path for path in self.checkpoints.rglob("*") if path.is_file()]
        return sorted(found)

    def entry(self, job_id: str) -> JobEntry:
        """What the node holds of a job."""
        return self.jobs._entries[job_id]

    def asked(self, **changed: Any) -> dict[str, Any]:
        """The member `confide` of a request, with a nonce of its own."""
        self._nonces += 1
        usual: dict[str, Any] = {
            "recipe": RECIPE.value(),
            "nonce": hashlib.sha256(b"nonce%d" % self._nonces).hexdigest(),
            "expectation": self.expectation_value(),
            "recipient": b64encode(OWNER.public_key.raw),
            "checkpoint_key": KEY.hex(),
        }
        return {name: value for name, value in (usual | changed).items() if value is not None}

    def expectation_value(self, **changed: Any) -> Any:
        """The Expectation as JSON."""
        import json  # noqa: PLC0415 - for this one line

        return json.loads(self.expectation.canonical()) | changed

    async def upload(self, client: openai.AsyncOpenAI, rows: bytes = ROWS) -> str:
        """Upload rows under the salt of these tests; return the id of the file."""
        from dataset_rows import commit  # noqa: PLC0415 - for this one call

        said = {"dataset": commit(rows, SALT).digest.hex(), "dataset_salt": SALT.hex()}
        made = await client.files.create(
            file=("rows.jsonl", rows), purpose="fine-tune", extra_body=said
        )
        return made.id

    async def ask(
        self, client: openai.AsyncOpenAI, file: str | None = None, **changed: Any
    ) -> FineTuningJob:
        """Ask for a job."""
        return await client.fine_tuning.jobs.create(
            model=MODEL,
            training_file=file or await self.upload(client),
            extra_body={"confide": self.asked(**changed)},
        )

    async def until(self, client: openai.AsyncOpenAI, job_id: str, *statuses: str) -> FineTuningJob:
        """Wait until the job is in one of `statuses`."""
        while True:
            job = await client.fine_tuning.jobs.retrieve(job_id)
            if job.status in statuses:
                return job
            assert job.status not in ("failed", "succeeded", "cancelled"), job
            await asyncio.sleep(0.005)

    async def results(self, client: openai.AsyncOpenAI, job: FineTuningJob) -> dict[str, bytes]:
        """The result files of a job as they are stored, by their names."""
        found = {}
        for each in job.result_files:
            name = (await client.files.retrieve(each)).filename
            found[name] = (await client.files.content(each)).content
        return found


def opened(job_id: str, name: str, sealed: bytes) -> bytes:
    """Open a result with the owner's private key."""
    opener = open_file_for(OWNER, name=f"{job_id}/{name}")
    return opener.write(sealed) + opener.end()


def untar(raw: bytes) -> dict[str, bytes]:
    """The files of a tar that has to hold plain files and nothing of a machine."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
        for member in tar:
            assert member.isreg()
            assert (member.mtime, member.mode, member.uid, member.uname) == (0, 0o644, 0, "")
            file = tar.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    return found


__all__ = [
    "KEY",
    "MODEL",
    "OUTPUTS",
    "OWNER",
    "ROWS",
    "TOKEN",
    "FakeProcess",
    "Fate",
    "Gate",
    "TrainWorld",
    "nothing",
    "opened",
    "untar",
]
