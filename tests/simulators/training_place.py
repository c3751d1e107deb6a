"""The files of a training node, behind the sealed gateway, for unmodified `openai` clients.

No socket: the outer HTTP goes to the gateway in this process, and every byte of it is kept, as
somebody on the path would.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO

import httpx2
import openai

from confide.adapters.entropy import SystemEntropy
from confide.adapters.sealed_http import SealedClient, SealedTransport
from confide.adapters.sealed_store import SealedStore, create_private
from confide.channel.keys import key_ring
from confide.channel.replay import ReplayPolicy, ReplayWindow
from confide.crypto.kem import load_private_key
from confide.node.sealed import SealedGateway
from confide.node.train_files import TrainFiles
from confide.node.train_store import FileLimits
from confide.wire.ohttp import Kem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from starlette.types import Message, Receive, Scope, Send

TOKEN = "a-long-token-of-one-owner"


@dataclass
class MovingClock:
    """A clock that a test moves."""

    time: datetime = datetime(2026, 11, 22, 9, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def move(self, seconds: int) -> None:
        self.time += timedelta(seconds=seconds)


@dataclass
class Disk:
    """A disk that is full after so many bytes more; None for one that never is."""

    left: int | None = None

    def create(self, path: Path) -> BinaryIO:
        return _Metered(create_private(path), self)  # type: ignore[return-value]

    def take(self, size: int) -> None:
        if self.left is None:
            return
        if size > self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= size


class _Metered:
    """A file on that disk."""

    def __init__(self, file: BinaryIO, disk: Disk) -> None:
        self._file = file
        self._disk = disk

    def writelines(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._disk.take(len(piece))
            self._file.write(piece)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@dataclass
class TrainingPlace:
    """One node's files in `folder`, and what went over the wire."""

    folder: Path
    limits: FileLimits = field(default_factory=FileLimits)
    disk: Disk = field(default_factory=Disk)
    clock: MovingClock = field(default_factory=MovingClock)
    wire: list[bytes] = field(default_factory=list)
    files: TrainFiles = field(init=False)

    def __post_init__(self) -> None:
        self.boot()

    def boot(self) -> None:
        """Start, or start again: the key of the store is a new one."""
        entropy = SystemEntropy()
        store = SealedStore(self.folder, entropy, create=self.disk.create)
        self.files = TrainFiles(store, clock=self.clock, entropy=entropy, limits=self.limits)

    @property
    def inner(self) -> Any:
        """The application behind the gateway."""
        return self.files

    @property
    def stored(self) -> list[Path]:
        """What is in the folder."""
        return sorted(self.folder.iterdir())

    @asynccontextmanager
    async def client(self, token: str = TOKEN) -> AsyncIterator[openai.AsyncOpenAI]:
        """An `openai` client of one owner, over the sealed channel."""
        ring = key_ring(((1, load_private_key(Kem.X_WING, bytes(32))),))
        gateway = SealedGateway(
            self.inner,
            keys=ring,
            clock=self.clock,
            entropy=SystemEntropy(),
            window=ReplayWindow(ReplayPolicy(), secret=bytes(32)),
        )
        recorded = httpx2.ASGITransport(app=_Tap(gateway, self.wire))
        async with httpx2.AsyncClient(transport=recorded) as outer:
            sealed = SealedClient(
                "http://node",
                ring.configs[0],
                http=outer,
                clock=self.clock,
                entropy=SystemEntropy(),
            )
            inner = httpx2.AsyncClient(transport=SealedTransport(sealed))
            async with openai.AsyncOpenAI(
                base_url="https://confide.invalid/v1",
                api_key=token,
                max_retries=0,
                http_client=inner,
            ) as made:
                yield made

    def plain(self) -> httpx2.AsyncClient:
        """A plain HTTP client to the application itself."""
        return httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=self.inner),
            base_url="http://files",
            headers={"authorization": f"Bearer {TOKEN}"},
        )


class _Tap:
    """Hands everything on and keeps the bodies, both ways."""

    def __init__(self, app: SealedGateway, wire: list[bytes]) -> None:
        self._app = app
        self._wire = wire

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> Message:
            message = await receive()
            self._wire.append(message.get("body", b""))
            return message

        async def tell(message: Message) -> None:
            self._wire.append(message.get("body", b""))
            await send(message)

        await self._app(scope, listen, tell)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run one scenario."""
    asyncio.run(work)
