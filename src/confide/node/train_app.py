"""What a training node serves inside the sealed channel: files, uploads, jobs, replays, its base.

docs/protocols/training-node.md 1.1, §2 to §5; the shapes are OpenAI's. Bodies are hostile. Nothing
here is proof: a job's proof is its record.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from confide.errors import ConfideError, FormatError, Overloaded
from confide.inference.faults import ApiFault, RequestRefused, node_fault
from confide.inference.models import model_answer, models_answer
from confide.inference.plan import refuse
from confide.node.train_forms import bearer_owner
from confide.node.train_store import read_file
from confide.training.job_request import JobRefused
from confide.training.jobs import Job, JobCheckpoint, JobEvent, page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from confide.inference.models import ServedModel
    from confide.node.seat_host import SeatHost
    from confide.node.train_files import TrainFiles
    from confide.node.train_jobs import TrainJobs
    from confide.node.train_replays import TrainReplays
    from confide.wire.json import JsonValue

__all__ = ["TrainApp"]

_JOBS: Final = "/v1/fine_tuning/jobs"
_MODELS: Final = "/v1/models"
_JSON: Final = "application/json"
_MAX_BODY_BYTES: Final = 1 << 20
_LIMIT: Final = re.compile(r"[0-9]{1,3}\Z")
_MOST: Final = 100
_USUAL: Final = 20
_METADATA: Final = re.compile(r"metadata\[(.{1,64})\]\Z", re.DOTALL)
_NO_ROUTE: Final = ApiFault(
    404,
    "invalid_request_error",
    "not_found",
    "No such route: this node trains and answers nothing.",
)
_NO_METHOD: Final = ApiFault(405, "invalid_request_error", "method_not_allowed", "No such method.")
_UNAVAILABLE: Final = ApiFault(
    503,
    "server_error",
    "evidence_unavailable",
    "This node cannot prove itself now; nothing was kept. Try again.",
    retry_after=5,
)
T = TypeVar("T", Job, JobEvent, JobCheckpoint)


class TrainApp:
    """The inner application of a training node."""

    def __init__(
        self,
        files: TrainFiles,
        jobs: TrainJobs,
        replays: TrainReplays,
        served: ServedModel,
        *,
        seats: SeatHost | None = None,
    ) -> None:
        self._files = files
        self._jobs = jobs
        self._served = served
        one = f"{_JOBS}/{{id}}"
        self._app = Starlette(
            routes=[
                _route(_JOBS, "POST", self._create),
                _route(_JOBS, "GET", self._list),
                _route(one, "GET", self._retrieve),
                _route(f"{one}/events", "GET", self._events),
                _route(f"{one}/checkpoints", "GET", self._checkpoints),
                _route(f"{one}/checkpoints/{{step}}/content", "GET", self._checkpoint),
                _route(f"{one}/handover", "GET", self._handover),
                _route(f"{one}/cancel", "POST", self._cancel),
                _route(f"{one}/pause", "POST", self._pause),
                _route(f"{one}/resume", "POST", self._resume),
                _route(f"{one}/attestation", "GET", self._attestation),
                *(_route(*each) for each in replays.routes()),
                *(_route(*each) for each in (seats.routes() if seats is not None else ())),
                _route(_MODELS, "GET", self._models),
                _route(f"{_MODELS}/{{name:path}}", "GET", self._model),
            ],
            exception_handlers={404: _no_route, 405: _no_method},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            return
        of_files = scope["path"].startswith(("/v1/files", "/v1/uploads"))
        await (self._files if of_files else self._app)(scope, receive, send)

    # --- the routes -------------------------------------------------------------------------------

    async def _create(self, request: Request, owner: str) -> Response:
        raw = bytearray()
        async for piece in request.stream():
            raw += piece
            if len(raw) > _MAX_BODY_BYTES:
                refuse("request_too_large", "The request is above 1 MiB.", status=413)
        return _answer(await self._jobs.create(owner, bytes(raw)))

    async def _list(self, request: Request, owner: str) -> Response:
        jobs = self._jobs.of(owner)
        for name, wanted in request.query_params.multi_items():
            found = _METADATA.match(name)
            if found is not None:
                jobs = [job for job in jobs if job.request.metadata.get(found[1]) == wanted]
        if request.query_params.get("metadata") == "null":
            jobs = [job for job in jobs if not job.request.metadata]
        return _page(request, jobs, _document)

    async def _retrieve(self, request: Request, owner: str) -> Response:
        return _answer(self._job(request, owner))

    async def _events(self, request: Request, owner: str) -> Response:
        return _page(request, self._job(request, owner).events[::-1], JobEvent.value)

    async def _checkpoints(self, request: Request, owner: str) -> Response:
        return _page(request, self._job(request, owner).checkpoints[::-1], JobCheckpoint.value)

    async def _checkpoint(self, request: Request, owner: str) -> Response:
        job_id, step = request.path_params["id"], request.path_params["step"]
        file = self._jobs.checkpoint_file(owner, job_id, step)
        return await self._files.content(request, file)

    async def _handover(self, request: Request, owner: str) -> Response:
        sealed = await self._jobs.hand_over(owner, request.path_params["id"])
        return Response(sealed, media_type="application/octet-stream")

    async def _cancel(self, request: Request, owner: str) -> Response:
        return _answer(await self._jobs.cancel(owner, request.path_params["id"]))

    async def _pause(self, request: Request, owner: str) -> Response:
        return _answer(self._jobs.pause(owner, request.path_params["id"]))

    async def _resume(self, request: Request, owner: str) -> Response:
        return _answer(self._jobs.resume(owner, request.path_params["id"]))

    async def _attestation(self, request: Request, owner: str) -> Response:
        file_id = self._jobs.record_file(owner, request.path_params["id"])
        file = self._files.table.find(owner, file_id)
        pieces = await asyncio.to_thread(lambda: list(read_file(self._files.store, file)))
        return Response(b"".join(pieces), media_type=_JSON)

    async def _models(self, _request: Request, _owner: str) -> Response:
        return Response(models_answer(self._served), media_type=_JSON)

    async def _model(self, request: Request, _owner: str) -> Response:
        if request.path_params["name"] != self._served.name:
            what = f"The model of this node is {self._served.name}."
            refuse("model_not_found", what, param="model", status=404)
        return Response(model_answer(self._served), media_type=_JSON)

    def _job(self, request: Request, owner: str) -> Job:
        return self._jobs.find(owner, request.path_params["id"])


def _route(path: str, method: str, handler: Callable[[Request, str], Awaitable[Response]]) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request, bearer_owner(request))
        except ClientDisconnect:
            return Response(status_code=400)
        except ConfideError as error:
            return _refusal(_fault_of(error))

    return Route(path, endpoint, methods=[method])


def _page(
    request: Request, items: Sequence[T], document: Callable[[T], dict[str, JsonValue]]
) -> Response:
    """Answer with a page of `items`, which are newest first (§5)."""
    limit = request.query_params.get("limit", str(_USUAL))
    if not _LIMIT.match(limit) or not 1 <= int(limit) <= _MOST:
        refuse("invalid_value", f"limit is 1 to {_MOST}.", param="limit")
    found = page(items, after=request.query_params.get("after"), limit=int(limit))
    if found is None:
        refuse("invalid_value", "after names nothing of this list.", param="after")
    data = [document(item) for item in found[0]]
    return JSONResponse({"object": "list", "data": data, "has_more": found[1]})


def _document(job: Job) -> dict[str, JsonValue]:
    # No accounts are known here: the name is that in the names of results.
    return job.value(organization="confide")


def _answer(job: Job) -> Response:
    return JSONResponse(_document(job))


def _fault_of(error: ConfideError) -> ApiFault:
    kind = "invalid_request_error"
    match error:
        case RequestRefused():
            return error.fault
        case JobRefused():
            return ApiFault(400, kind, error.code, f"{error.message}.", error.param)
        case FormatError():
            return ApiFault(400, kind, "invalid_request", f"{error.what}.")
        case Overloaded():
            return node_fault(error)
    return _UNAVAILABLE


def _refusal(fault: ApiFault) -> Response:
    headers = {} if fault.retry_after is None else {"retry-after": str(fault.retry_after)}
    return Response(fault.body(), fault.status, headers, _JSON)


async def _no_route(_request: Request, _error: Exception) -> Response:
    return _refusal(_NO_ROUTE)


async def _no_method(_request: Request, _error: Exception) -> Response:
    return _refusal(_NO_METHOD)
