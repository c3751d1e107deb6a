"""One training with an image of the owner's: the order of things, and the record of it.

docs/protocols/training-image.md. `run_image_job` drives the ports in the one order that §2 allows.
Plaintext of rows, weights and console is in the sandbox's memory and on its way into sealed files,
nowhere else. What the image does with it, nobody here looks at: the record is artefact-level.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from confide.agents.egress import EgressPolicy
from confide.agents.environment import training_environment
from confide.agents.sandbox import ExitKind, Places, SandboxSpec
from confide.errors import Unavailable
from confide.expectation import Limits
from confide.inference.weights import IGNORED_PATHS
from confide.node.image_proof import ImageProof
from confide.training.dataset import DatasetTree, RowSalts, require_commitment
from confide.training.image_recipe import ImageLimits, ImagePlan
from confide.training.job_request import JobRefused
from confide.training.rows import RowReader, require_rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from confide.agents.sandbox import AgentImage, OutputFile, SandboxExit
    from confide.expectation import Expectation
    from confide.inference.weights import WeightsManifest
    from confide.node.image_proof import ProvenNode
    from confide.ports import Sandbox, SandboxSession
    from confide.training.dataset import Commitment
    from confide.training.image_recipe import ImageRecipe
    from confide.training.record_file import RecordFile
    from confide.training.rows import Row, RowError
    from confide.wire.json import JsonValue

__all__ = [
    "BaseFolder",
    "CommittedRows",
    "ImageFailed",
    "ImageJob",
    "ImagePorts",
    "ImageResults",
    "require_runnable",
    "run_image_job",
]

_OUTPUT: Final = "output"
_PARAM: Final = "confide.image"


class ImageFailed(Unavailable):
    """The image made no weights: `code` says why, in a word; nothing of its console is told."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class ImageResults(Protocol):
    """
    What a job leaves for its owner, sealed as it comes. Every method blocks.

    `manifests` and `sealed` are what is whole so far: outputs by name, SHA-256 of sealed files.
    """

    manifests: dict[str, WeightsManifest]
    sealed: dict[str, bytes]

    def file(self, value: JsonValue) -> None:
        """Begin the file `{output, name, bytes}` of an output."""
        ...

    def data(self, payload: bytes) -> None:
        """Take bytes of that file."""
        ...

    def end_outputs(self) -> None:
        """End the output: its tar is whole, its folder measured."""
        ...

    def seal(self, name: str, data: bytes) -> None:
        """Seal `data` to the owner as the file `<name>.sealed`."""
        ...


@dataclass(frozen=True, slots=True)
class BaseFolder:
    """The base as this node measured it: where it lies, and whether it was touched since."""

    path: str
    unchanged: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePorts:
    """
    What such jobs need of the node. `limits` and `max_input_bytes` are the node's own.

    `devices` are the CDI names of the GPUs that a container may get; empty where it cannot.
    """

    node: ProvenNode
    sandbox: Sandbox
    find_image: Callable[[str], Awaitable[AgentImage | None]]
    base: BaseFolder
    limits: ImageLimits
    max_input_bytes: int
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CommittedRows:
    """Rows that were committed to: `read` gives the bytes of their file, and may block."""

    commitment: Commitment
    salt: bytes = field(repr=False)
    read: Callable[[], Iterator[bytes]] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageJob:
    """One job: the secret id and nonce that its record will name, what is run, on what."""

    training_id: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    expectation: Expectation
    recipe: ImageRecipe
    data: CommittedRows
    validation: CommittedRows | None = None

    def plan(self, base: bytes) -> ImagePlan:
        """Return the plan of this job on `base`."""
        return ImagePlan(
            recipe=self.recipe.digest,
            image=bytes.fromhex(self.recipe.image),
            dataset=self.data.commitment.digest,
            validation=None if self.validation is None else self.validation.commitment.digest,
            base=base,
        )


async def require_runnable(recipe: ImageRecipe, ports: ImagePorts) -> AgentImage:
    """
    Return the image of `recipe`, which this node has and can run as it says.

    Raises `JobRefused` saying what to do. It is measured again when it is run.
    """
    for name, most in (
        ("memory_bytes", ports.limits.memory_bytes),
        ("cpus_milli", ports.limits.cpus_milli),
        ("pids", ports.limits.pids),
        ("wall_seconds", ports.limits.wall_seconds),
        ("output_bytes", ports.limits.output_bytes),
        ("output_files", ports.limits.output_files),
        ("scratch_bytes", ports.limits.scratch_bytes),
    ):
        if getattr(recipe.limits, name) > most:
            raise JobRefused(
                f"limits.{name} is at most {most} on this node",
                param=_PARAM,
                code="limit_exceeded",
            )
    if recipe.gpu and not ports.devices:
        raise JobRefused(
            "gpu: this node cannot hand its GPUs to an image; ask one that can",
            param=_PARAM,
            code="no_gpu",
        )
    image = await ports.find_image(recipe.image)
    if image is None:
        raise JobRefused(
            f"image: this node does not have sha256:{recipe.image}; its operator has to put it "
            "into the folder of images",
            param=_PARAM,
            code="image_not_found",
        )
    return image


async def run_image_job(
    ports: ImagePorts,
    job: ImageJob,
    results: ImageResults,
    *,
    tell: Callable[[str], object],
) -> RecordFile:
    """
    Run the image of `job` on its rows and the measured base; return the record of what it left.

    `results` takes the directory and the console, sealed. `tell` is called with words of ours.
    Cancelling the task kills the image and leaves nothing. Raises `ImageFailed`, `JobRefused`,
    `RunRefused` (another image or base), `DatasetRejected` (other rows), `RowError`, the
    rejections of this node's own evidence, and `Unavailable`.
    """
    recipe, paths = job.recipe, job.recipe.paths
    image = await require_runnable(recipe, ports)
    await ports.base.unchanged()
    session = await ports.sandbox.prepare(_spec(ports, job, image))
    try:
        tell("The image is measured; rows are written into memory and committed to again.")
        root = await _write_rows(session, paths.rows, job.data)
        if job.validation is not None:
            await _write_rows(session, paths.validation, job.validation)
        # Nobody answers inside: no model, no proxy, no names.
        session.endpoints.close()
        proof = ImageProof(ports.node, job.training_id, job.nonce, job.expectation)
        plan = job.plan(ports.node.weights)
        await proof.introduce(plan)
        tell("The node is proven; the image is started.")
        end = await session.run()
        tell(f"The image ended: {end.kind}.")
        await ports.base.unchanged()
        await _keep_console(results, end)
        await _keep_output(session, results, _require_output(end))
        return await proof.record(
            plan, root=root, end=end, manifest=results.manifests[_OUTPUT], sealed=results.sealed
        )
    finally:
        await session.close()


def _spec(ports: ImagePorts, job: ImageJob, image: AgentImage) -> SandboxSpec:
    recipe, paths, limits = job.recipe, job.recipe.paths, job.recipe.limits
    places = {"rows": paths.rows, "base": paths.base, "output": paths.output}
    if job.validation is not None:
        places["validation"] = paths.validation
    return SandboxSpec(
        # A label for engines and process lists: not the job's id, which is the record's.
        run_id=ports.node.identity.entropy.token(8).hex(),
        image=image,
        mode="batch",
        command=recipe.command,
        environment=training_environment(dict(recipe.environment), places=places),
        limits=Limits(
            memory_bytes=limits.memory_bytes,
            cpus_milli=limits.cpus_milli,
            pids=limits.pids,
            wall_seconds=limits.wall_seconds,
            input_bytes=ports.max_input_bytes,
            output_bytes=limits.output_bytes,
            output_files=limits.output_files,
        ),
        egress=EgressPolicy(()),
        places=Places(
            inputs=paths.data,
            outputs=paths.output,
            read_only=((ports.base.path, paths.base),),
            scratch_bytes=limits.scratch_bytes,
            devices=ports.devices if recipe.gpu else (),
        ),
    )


async def _write_rows(session: SandboxSession, path: str, rows: CommittedRows) -> bytes:
    """Write the canonical rows, and return their root: that of the commitment, or nothing runs."""
    name, tree = path.rpartition("/")[2], DatasetTree(RowSalts(rows.salt))
    batches = _batches(rows, tree)
    while (batch := await asyncio.to_thread(next, batches, None)) is not None:
        await session.write_input(name, batch)
    commitment = tree.commitment()
    require_commitment(commitment, rows.commitment.digest)
    return commitment.root


def _batches(rows: CommittedRows, tree: DatasetTree) -> Iterator[bytes]:
    """Yield the rows in pieces, each in the form that was committed to (2.3)."""
    reader = RowReader()
    for piece in rows.read():
        yield _taken(reader.feed(piece), tree)
    yield _taken(reader.end(), tree)


def _taken(found: Iterator[Row | RowError], tree: DatasetTree) -> bytes:
    lines = []
    for row in require_rows(found):
        tree.add(row)
        lines.append(row.record + b"\n")
    return b"".join(lines)


async def _keep_console(results: ImageResults, end: SandboxExit) -> None:
    for name, text in (("stdout", end.stdout), ("stderr", end.stderr)):
        await asyncio.to_thread(results.seal, name, text)


def _require_output(end: SandboxExit) -> tuple[OutputFile, ...]:
    """Return the files of a directory that can be measured, of an image that ended well (3.1)."""
    if not end.succeeded:
        raise ImageFailed(*_why(end))
    left = [each for each in end.left_out if _counts(each.path)]
    if left:
        raise ImageFailed(
            "output_refused",
            f"the output holds {len(left)} entries that are no regular files, or have names that "
            "travel badly; links are not followed",
        )
    files = tuple(each for each in end.outputs if _counts(each.path))
    if not files:
        raise ImageFailed("output_empty", "the image left no file in its output")
    return files


def _counts(path: str) -> bool:
    # From: docs/protocols/weights.md 1.2.
    return path.partition("/")[0] not in IGNORED_PATHS


_ENDS: Final[Mapping[ExitKind, str]] = {
    ExitKind.NOT_STARTED: "its command is missing or cannot be executed, or a GPU is missing",
    ExitKind.KILLED_WALL: "it ran longer than limits.wall_seconds",
    ExitKind.KILLED_MEMORY: "it needed more than limits.memory_bytes, output and /tmp included",
    ExitKind.KILLED_OUTPUT: "it left more than limits.output_bytes or limits.output_files",
    ExitKind.KILLED_PIDS: "it needed more processes than limits.pids",
    ExitKind.CANCELLED: "it was ended from outside",
}


def _why(end: SandboxExit) -> tuple[str, str]:
    if end.kind is ExitKind.EXITED:
        return "image_failed", f"the image ended with status {end.status}; open stderr.sealed"
    return end.kind.value.replace("-", "_"), f"the image did not end well: {_ENDS[end.kind]}"


async def _keep_output(
    session: SandboxSession, results: ImageResults, files: tuple[OutputFile, ...]
) -> None:
    for each in files:
        head: dict[str, JsonValue] = {"output": _OUTPUT, "name": each.path, "bytes": each.size}
        await asyncio.to_thread(results.file, head)
        async for piece in session.read_output(each.path):
            await asyncio.to_thread(results.data, piece)
    await asyncio.to_thread(results.end_outputs)
    kept = {each.name: each.sha256 for each in results.manifests[_OUTPUT].entries}
    if kept != {each.path: each.sha256 for each in files}:
        raise Unavailable("the output changed while it was sealed")
