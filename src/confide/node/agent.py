"""The agent node: runs agents for whoever proved it first. ASGI, behind the sealed channel.

docs/protocols/agent-run.md. Routes of the inner application (sealed requests only):
`POST /confide/v1/runs`, `POST /confide/v1/runs/{session}/turn`, `POST …/finish`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from confide.adapters.egress_proxy import EgressService, serve_egress
from confide.agents.sandbox import ExitKind
from confide.errors import FormatError, Reason, Rejected, RemoteProtocolError, Unavailable
from confide.expectation import Expectation, parse_expectation
from confide.node.agent_gateway import AgentGateway
from confide.node.run import Run, RunPorts, refuse
from confide.node.run_stream import (
    FramesResponse,
    RunInputs,
    failed,
    progress,
    refusal_frame,
    refused,
)
from confide.node.sealed import SCOPE_KEY
from confide.wire.frames import FrameKind, encode_frame, json_frame

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request
    from starlette.responses import Response

    from confide.agents.sandbox import SandboxExit
    from confide.node.identity import Identity
    from confide.node.sealed import ChannelRecord
    from confide.ports import SandboxSession
    from confide.trust.roots import Roots

__all__ = ["AgentNode", "AgentNodeConfig"]

# For model calls that an agent left behind at its end: their receipts belong to the run.
_GRACE_SECONDS = 10.0
# What a run can meet outside this node; the client is told. Anything else is a bug of ours.
_REPORTED = (FormatError, Rejected, RemoteProtocolError, Unavailable)


@dataclass(frozen=True, slots=True)
class AgentNodeConfig:
    """Roots this node works under, and how many runs it takes at once."""

    roots: Roots
    max_runs: int = 4


@dataclass(slots=True)
class _Session:
    """A chat agent that is up. `lock` keeps turns apart; `deadline` ends a silent one."""

    run: Run
    gateway: AgentGateway
    egress: EgressService
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class AgentNode:
    """The inner application; `app` is what the sealed gateway calls."""

    def __init__(self, config: AgentNodeConfig, ports: RunPorts) -> None:
        self._config = config
        self._ports = ports
        self._running = 0
        self._sessions: dict[str, _Session] = {}
        self.app = Starlette(
            routes=[
                Route("/confide/v1/runs", self._start, methods=["POST"]),
                Route("/confide/v1/runs/{session}/turn", self._turn, methods=["POST"]),
                Route("/confide/v1/runs/{session}/finish", self._finish, methods=["POST"]),
            ]
        )

    async def _start(self, request: Request) -> Response:
        inputs = RunInputs(request)
        return FramesResponse(self._execute(inputs, _identity(request)), inputs.read)

    async def _execute(self, inputs: RunInputs, identity: Identity) -> AsyncGenerator[bytes, None]:
        """Yield the frames of one run. Leaving early (a client that went away) cancels it."""
        if self._running >= self._config.max_runs:
            busy = refuse(Reason.NODE_BUSY, f"{self._running} runs at once; try again later")
            yield refusal_frame(busy)
            return
        # Asked and taken without giving way in between: clients come in the same moment.
        self._running += 1
        run: Run | None = None
        # What is let go at the end; a chat goes on.
        left: Run | None = None
        try:
            run = left = Run(self._ports, identity, *await self._header(inputs))
            yield progress("received", f"Expectation {run.expectation.digest.hex()[:16]}…")
            await run.open()
            await inputs.into(run)
            yield progress("inputs", f"{inputs.count} input file(s) in memory")
            async for frame in _prepare(run):
                yield frame
            session = await self._connect(run)
            if run.expectation.agent.mode == "chat":
                async for frame in self._begin_chat(session):
                    yield frame
                left = None
                return
            yield progress("started", f"image sha256:{run.expectation.agent.image[:16]}…")
            async for frame in self._batch(session):
                yield frame
        except ClientDisconnect:
            return
        except _REPORTED as error:
            async for frame in failed(run, error):
                yield frame
        finally:
            self._running -= 1
            if left is not None:
                await asyncio.shield(left.close())

    async def _header(self, inputs: RunInputs) -> tuple[Expectation, bytes]:
        members = await inputs.header()
        expectation = parse_expectation(members.base64("expectation"))
        nonce = members.hexes("nonce", 32)
        members.end()
        if expectation.hardware.roots != self._config.roots.name:
            raise refuse(
                Reason.SIMULATED_NOT_ALLOWED
                if self._config.roots.simulated
                else Reason.ROOT_MISMATCH,
                f"this node works under {self._config.roots.name}",
            )
        return expectation, nonce

    async def _connect(self, run: Run) -> _Session:
        """Open the model endpoint and the egress proxy inside the agent's namespace."""
        if run.session is None or run.link is None:
            raise RuntimeError("the run was not prepared")
        gateway = AgentGateway(run, run.link)
        ends = run.session.endpoints
        await gateway.start(ends.model)
        egress = await serve_egress(ends, run.egress_policy, report=run.record_egress)
        return _Session(run, gateway, egress)

    async def _batch(self, session: _Session) -> AsyncGenerator[bytes, None]:
        run = session.run
        task = asyncio.ensure_future(_sandbox(run).run())
        grace = 0.0
        try:
            while not task.done():
                done, _ = await asyncio.wait({task}, timeout=1.0)
                if not done:
                    # Keeps the connection alive and shows a client that went away.
                    yield progress("running", f"{run.calls} model call(s)")
            end = task.result()
            grace = _GRACE_SECONDS if end.kind is ExitKind.EXITED else 0.0
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await self._disconnect(session, grace_seconds=grace)
        async for frame in self._conclude(session, end):
            yield frame

    async def _disconnect(self, session: _Session, *, grace_seconds: float = 0.0) -> None:
        try:
            await session.gateway.stop(grace_seconds=grace_seconds)
        finally:
            await session.egress.close()

    async def _conclude(self, session: _Session, end: SandboxExit) -> AsyncGenerator[bytes, None]:
        run = session.run
        run.record_exit(end, unreported=session.egress.unreported)
        yield progress("exited", f"{end.kind} {'' if end.status is None else end.status}".strip())
        await run.keep_state()
        proof = await run.prove()
        yield progress("proven", f"receipt {proof.run.digest.hex()[:16]}…")
        for stream, kept in (("stdout", end.stdout), ("stderr", end.stderr)):
            if kept:
                yield json_frame(FrameKind.CONSOLE, {"stream": stream, "bytes": len(kept)})
                yield encode_frame(FrameKind.DATA, kept)
        async for frame in run.outputs():
            yield frame
        yield encode_frame(FrameKind.RECEIPT, proof.encode())
        yield encode_frame(FrameKind.END)

    async def _begin_chat(self, session: _Session) -> AsyncGenerator[bytes, None]:
        await _sandbox(session.run).start()
        name = self._ports.entropy.token(32).hex()
        self._sessions[name] = session
        self._running += 1
        timeout = session.run.expectation.limits.wall_seconds
        asyncio.get_running_loop().call_later(timeout, self._expire, name)
        yield json_frame(FrameKind.PROGRESS, {"step": "session", "detail": name})
        yield encode_frame(FrameKind.END)

    def _expire(self, name: str) -> None:
        session = self._sessions.pop(name, None)
        if session is not None:
            self._running -= 1
            task = asyncio.ensure_future(self._discard(session))
            task.add_done_callback(lambda done: done.exception())

    async def _discard(self, session: _Session) -> None:
        await self._disconnect(session)
        await session.run.close()

    async def _turn(self, request: Request) -> Response:
        session = self._sessions.get(request.path_params["session"])
        if session is None:
            return FramesResponse(refused(refuse(Reason.SESSION_UNKNOWN, "no such session")))
        inputs = RunInputs(request)
        return FramesResponse(self._one_turn(session, inputs), inputs.read)

    async def _one_turn(self, session: _Session, inputs: RunInputs) -> AsyncGenerator[bytes, None]:
        try:
            text = await inputs.turn()
            async with session.lock:
                session.run.record_turn("in", text)
                answer = await _sandbox(session.run).turn(text)
                session.run.record_turn("out", answer)
        except _REPORTED as error:
            async for frame in failed(None, error):
                yield frame
            return
        yield encode_frame(FrameKind.TURN, answer)
        yield encode_frame(FrameKind.END)

    async def _finish(self, request: Request) -> Response:
        session = self._sessions.pop(request.path_params["session"], None)
        if session is None:
            return FramesResponse(refused(refuse(Reason.SESSION_UNKNOWN, "no such session")))
        return FramesResponse(self._end_chat(session))

    async def _end_chat(self, session: _Session) -> AsyncGenerator[bytes, None]:
        try:
            async with session.lock:
                end = await _sandbox(session.run).finish()
            await self._disconnect(session, grace_seconds=_GRACE_SECONDS)
            async for frame in self._conclude(session, end):
                yield frame
        except _REPORTED as error:
            async for frame in failed(session.run, error):
                yield frame
        finally:
            self._running -= 1
            await asyncio.shield(self._discard(session))

    async def close(self) -> None:
        """End every session; used at shutdown."""
        for name in tuple(self._sessions):
            session = self._sessions.pop(name)
            await self._discard(session)


async def _prepare(run: Run) -> AsyncGenerator[bytes, None]:
    """Yield what there is to tell while everything that an agent needs is proven and fetched."""
    await run.prove_model()
    yield progress("model-proven", f"keyset {_model_keyset(run)[:16]}…")
    await run.prepare()
    if run.secrets is not None:
        count = len(run.secrets.releases)
        yield progress("secrets", f"{count} release(s), each with a receipt")


def _sandbox(run: Run) -> SandboxSession:
    if run.session is None:
        raise RuntimeError("the run has no sandbox")
    return run.session


def _model_keyset(run: Run) -> str:
    return run.link.node.keyset.digest.hex() if run.link is not None else ""


def _identity(request: Request) -> Identity:
    """Return the identity that this request was sealed to."""
    channel: ChannelRecord = request.scope[SCOPE_KEY]
    return channel.speaker
