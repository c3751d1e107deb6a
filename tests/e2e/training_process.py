"""A training node as a process, with a model of a few thousand parameters."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import openai
from dataset_rows import commit
from deployment import AGENTS, Installation, Node
from train_world import KEY, OWNER, opened, untar
from training_jobs import SALT
from training_place import TOKEN

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.image_build import read_agent_manifest
from confide.adapters.prove import prove_node
from confide.adapters.sealed_http import SealedTransport
from confide.adapters.software import running_kernel
from confide.client.expect import expectation_for
from confide.client.local import local_reference
from confide.training.audit import audit_log
from confide.training.recipe_file import parse_recipe_toml
from confide.training.record_file import parse_record_file
from confide.training.record_verify import verify_record
from confide.wire.json import b64encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openai.types.fine_tuning import FineTuningJob

    from confide.expectation import Expectation
    from confide.training.audit import AuditedLog
    from confide.training.record_verify import VerifiedRecord

MODEL = "tiny"
TOML = (
    'base_model = "tiny"\nlearning_rate = 1e-2\nsequence_len = 128\nmicro_batch_size = 2\n'
    "lora_dropout = 0.1\nmax_steps = 60\ncheckpoint_every = 10\nstate_every = 4\nval_set_size = 3\n"
)


def recipe(**changed: Any) -> Any:
    """The recipe of these tests, as JSON."""
    return parse_recipe_toml(TOML).value() | changed


@dataclass(slots=True)
class TrainingNode:
    """One node that trains `weights`, and every byte that went to and from it."""

    installation: Installation
    weights: Path
    node: Node = field(init=False)
    expectation: Expectation = field(init=False)
    wire: list[bytes] = field(default_factory=list)

    def start(self, *more: str) -> None:
        """Boot it."""
        installation = self.installation
        installation.paths.make_private()
        self.node = installation.start(
            "train", "--model", MODEL, "--weights", str(self.weights), "--threads", "1", *more
        )
        reference = local_reference(
            seed=installation.engine.seed(),
            roots=installation.roots,
            software=installation.software,
            kernel=running_kernel(),
            model=MODEL,
            weights=self.weights,
            now=SystemClock().now(),
        )
        manifest = read_agent_manifest(AGENTS / "probe")
        self.expectation = expectation_for(manifest, "00" * 32, reference)

    @property
    def state(self) -> Path:
        """The folder of this node."""
        port = self.node.url.rpartition(":")[2]
        return self.installation.paths.state / "training" / port / "training-node"

    @asynccontextmanager
    async def client(self, token: str = TOKEN) -> AsyncIterator[openai.AsyncOpenAI]:
        """The `openai` client of one owner, over the channel of the node that was proven."""
        transport = _Tap(httpx2.AsyncHTTPTransport(), self.wire)
        async with httpx2.AsyncClient(transport=transport, timeout=60) as http:
            link = await prove_node(
                self.node.url,
                role="model",
                expectation=self.expectation,
                roots=self.installation.roots,
                http=http,
                clock=SystemClock(),
                entropy=SystemEntropy(),
            )
            inner = httpx2.AsyncClient(transport=SealedTransport(link.sealed))
            async with openai.AsyncOpenAI(
                base_url="https://confide.invalid/v1",
                api_key=token,
                max_retries=0,
                http_client=inner,
            ) as made:
                yield made

    async def upload(self, client: openai.AsyncOpenAI, rows: bytes) -> str:
        """Upload rows that are committed to."""
        said = {"dataset": commit(rows, SALT).digest.hex(), "dataset_salt": SALT.hex()}
        made = await client.files.create(
            file=("rows.jsonl", rows), purpose="fine-tune", extra_body=said
        )
        return made.id

    async def ask(
        self, client: openai.AsyncOpenAI, file: str, *, engine: str = "ring", **changed: Any
    ) -> FineTuningJob:
        """Ask for a job."""
        confide = {
            "engine": engine,
            "recipe": recipe(**changed),
            "nonce": SystemEntropy().token(32).hex(),
            "expectation": json.loads(self.expectation.canonical()),
            "recipient": b64encode(OWNER.public_key.raw),
            "checkpoint_key": KEY.hex(),
        }
        return await client.fine_tuning.jobs.create(
            model=MODEL, training_file=file, extra_body={"confide": confide}
        )

    async def at_step(self, client: openai.AsyncOpenAI, job_id: str, step: int) -> None:
        """Wait until a job has come to `step`."""
        while True:
            job = await client.fine_tuning.jobs.retrieve(job_id)
            assert job.status in ("queued", "running"), job
            found: Any = job.to_dict()["confide"]
            if found["step"] >= step:
                return
            await asyncio.sleep(0.01)

    async def until(self, client: openai.AsyncOpenAI, job_id: str, status: str) -> FineTuningJob:
        """Wait until the job is what it should become."""
        ends = {"failed", "succeeded", "cancelled", "paused"} - {status}
        while (job := await client.fine_tuning.jobs.retrieve(job_id)).status != status:
            assert job.status not in ends, job
            await asyncio.sleep(0.05)
        return job

    async def finished(self, client: openai.AsyncOpenAI, job: FineTuningJob) -> Finished:
        """Take everything that a job left, and verify it as stranger and as owner."""
        files = {}
        for each in job.result_files:
            name = (await client.files.retrieve(each)).filename
            files[name] = (await client.files.content(each)).content
        record = verify_record(
            parse_record_file(files["record.json"]),
            roots=self.installation.roots,
            now=SystemClock().now(),
            expectation=self.expectation,
            nonce=None,
            outputs={},
        )
        log = opened(job.id, "owner-log.sealed", files["owner-log.sealed"])
        audited = audit_log(record, log, dataset_salt=SALT, rows=None)
        trees = {
            name: untar(opened(job.id, f"{name}.tar.sealed", files[f"{name}.tar.sealed"]))
            for name in ("adapter", "merged")
        }
        return Finished(job, files, record, audited, trees)

    def trainers(self) -> list[int]:
        """The training processes of this node."""
        found = []
        for process in Path("/proc").iterdir():
            if not process.name.isdecimal():
                continue
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            # Followed by the links of a rank, where there are several.
            if [b"confide.trainer", str(self.node.pid).encode()] == words[3:5]:
                found.append(int(process.name))
        return found


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that succeeded, opened and verified."""

    job: FineTuningJob
    files: dict[str, bytes]
    record: VerifiedRecord
    audited: AuditedLog
    trees: dict[str, dict[str, bytes]]

    def written(self, name: str, folder: Path) -> Path:
        """Write an output as the folder that it is."""
        folder.mkdir(parents=True)
        for file, data in self.trees[name].items():
            (folder / file).write_bytes(data)
        return folder

    @property
    def happened(self) -> list[str]:
        """What interrupted it, by the owner's log."""
        events = self.audited.log.events
        return [event.kind for event in events if event.kind != "checkpoint"]


class _Whole(httpx2.AsyncByteStream):
    """An answer that was read, to be read again."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._raw


class _Tap(httpx2.AsyncBaseTransport):
    """Hands everything on and keeps the bytes, both ways."""

    def __init__(self, inner: httpx2.AsyncHTTPTransport, wire: list[bytes]) -> None:
        self._inner = inner
        self._wire = wire

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        body = b"".join([piece async for piece in request.stream])  # type: ignore[union-attr]
        head = b"\n".join(name + b": " + value for name, value in request.headers.raw)
        self._wire += [str(request.url).encode(), head, body]
        again = httpx2.Request(
            request.method,
            request.url,
            headers=request.headers,
            content=body,
            extensions=request.extensions,
        )
        answer = await self._inner.handle_async_request(again)
        raw = await answer.aread()
        self._wire += [b"\n".join(name + b": " + value for name, value in answer.headers.raw), raw]
        return httpx2.Response(answer.status_code, headers=answer.headers, stream=_Whole(raw))

    async def aclose(self) -> None:
        await self._inner.aclose()
