"""A replay in another attested node, its owner's side: prove, send, wait, fetch. In that order.

docs/protocols/training-record.md 7.8. Nothing is sent before the node was proven. What it answers
is its word until `training.replay_verify` held the result to proof and to the owner's own draw.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from confide.client.train_folder import OwnedFile
from confide.client.train_node import words_of_the_node
from confide.client.train_upload import (
    PartSizes,
    commit_file,
    find_upload,
    send_file,
    send_state,
    send_upload,
)
from confide.errors import ConfideError, ConfigurationError, RemoteProtocolError, Unavailable
from confide.training.replay import Replay
from confide.training.replay_end import last_checkpoint
from confide.training.replay_request import ReplayRequest
from confide.training.replay_result import parse_replay_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from confide.client.train_node import TrainingNode
    from confide.expectation import Expectation
    from confide.ports import Entropy, Sleeper
    from confide.training.replay_result import ReplayFile
    from confide.training.replay_verify import Asked
    from confide.wire.json import Members

__all__ = ["ReplayOrder", "replay_elsewhere"]

_ROUTE: Final = "/v1/fine_tuning/replays"
_INTERVAL: Final = 1.0
# How often in a row the node may be out of reach before waiting ends.
_TRIES: Final = 30
_LOST: Final = (Unavailable, RemoteProtocolError)
# What is the node's trouble; everything else is of what was asked for.
_ITS_OWN: Final = frozenset(
    {
        *("unavailable", "evidence_rejected", "server_error", "stopped"),
        *("trainer_ended", "trainer_failed", "out_of_memory", "disk_full"),
    }
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOrder:
    """
    What the owner asks, and the files that go with it.

    `asked` holds log, draw and nonce; `challenge` and `note` made the beacon of the draw. With
    `bisect` every checkpoint that the record lists is sent, to find the first divergent step. With
    `elsewhere` a machine that trained is refused.
    """

    asked: Asked
    challenge: bytes
    note: bytes | None
    expectation: Expectation
    record: Path
    owner_log: Path
    data: Path
    salt: bytes = field(repr=False)
    validation: Path | None
    validation_salt: bytes = field(repr=False)
    checkpoints: Path
    checkpoint_key: bytes = field(repr=False)
    bisect: bool
    elsewhere: bool

    @property
    def wanted(self) -> tuple[int, ...]:
        """The steps whose checkpoints are sent."""
        audited, asked = self.asked.audited, self.asked
        # No window begins at the last one: it is what the end is made of again.
        end = (last_checkpoint(audited).step,) if asked.ended else ()
        if self.bisect:
            return (*(each.step for each in audited.record.record.checkpoints[:-1]), *end)
        windows = Replay(audited, asked.sample, tolerance=asked.tolerance).windows
        return (*(each.start.step for each in windows if each.start is not None), *end)


async def replay_elsewhere(
    node: TrainingNode,
    order: ReplayOrder,
    *,
    entropy: Entropy,
    sleeper: Sleeper,
    told: Callable[[int, int], None],
) -> ReplayFile:
    """
    Have `node` execute what `order` asks for; return what it says, **not verified**.

    `told` gets how many steps were executed, and how many there are. What was sent is deleted
    there in the end, and a replay that is not waited for is cancelled. Raises as
    `TrainingNode.ask`, `ConfigurationError` for what is not at hand, `Unavailable` where the node
    comes to no verdict.
    """
    await node.prove()
    work = _Work(node, order, entropy, sleeper, told)
    try:
        return await work.run()
    finally:
        await work.clean()


@dataclass(slots=True)
class _Work:
    node: TrainingNode
    order: ReplayOrder
    entropy: Entropy
    sleeper: Sleeper
    told: Callable[[int, int], None]
    sent: list[str] = field(default_factory=list)
    replay: str = ""

    async def run(self) -> ReplayFile:
        made = await self.node.ask("POST", _ROUTE, (await self._request()).value())
        with words_of_the_node():
            self.replay = made.text("id", max_chars=128)
        await self._wait()
        raw = await self._patiently(lambda: self.node.read(f"{_ROUTE}/{self.replay}/result"))
        self.replay = ""
        return parse_replay_file(raw)

    async def clean(self) -> None:
        """Leave nothing there; the node is believed no more, and may be gone."""
        with suppress(ConfideError):
            if self.replay:
                await self.node.ask("POST", f"{_ROUTE}/{self.replay}/cancel")
        for each in self.sent:
            with suppress(ConfideError):
                await self.node.ask("DELETE", f"/v1/files/{each}")

    async def _request(self) -> ReplayRequest:
        order = self.order
        checkpoints: Mapping[int, str] = {
            step: await self._state(order.checkpoints / f"checkpoint-{step:09}.sealed")
            for step in order.wanted
        }
        validation = None
        if order.validation is not None:
            validation = await self._rows(order.validation, order.validation_salt)
        return ReplayRequest(
            record=await self._state(order.record),
            owner_log=await self._state(order.owner_log),
            training_file=await self._rows(order.data, order.salt),
            validation_file=validation,
            checkpoints=checkpoints,
            checkpoint_key=order.checkpoint_key,
            nonce=order.asked.nonce,
            expectation=order.expectation.canonical(),
            challenge=order.challenge,
            note=order.note,
            count=len(order.asked.sample.drawn),
            fraction=order.asked.sample.fraction,
            tolerance=order.asked.tolerance,
            elsewhere=order.elsewhere,
        )

    async def _state(self, path: Path) -> str:
        sent = await send_state(self.node, path, sizes=PartSizes(), entropy=self.entropy)
        self.sent.append(sent)
        return self.sent[-1]

    async def _rows(self, path: Path, salt: bytes) -> str:
        size, commitment = commit_file(path, salt, lambda _bytes, _rows: None)
        owned, sizes = OwnedFile(path, size, commitment), PartSizes()

        def sent(_bytes: int) -> None:
            """Rows are few beside checkpoints: nobody is told."""

        if size <= sizes.whole_bytes:
            file = await send_file(self.node, owned, salt, entropy=self.entropy, on_sent=sent)
        else:
            upload = await find_upload(self.node, owned, salt)
            file = await send_upload(
                self.node, owned, upload, sizes=sizes, entropy=self.entropy, on_sent=sent
            )
        self.sent.append(file)
        return file

    async def _wait(self) -> None:
        while True:
            found = await self._patiently(lambda: self.node.ask("GET", f"{_ROUTE}/{self.replay}"))
            with words_of_the_node():
                status = found.text("status", max_chars=32)
                self.told(found.integer("executed"), found.integer("steps"))
                if status == "succeeded":
                    return
                if status not in ("queued", "running"):
                    self.replay = ""
                    raise _failure(status, found)
            await self.sleeper.sleep(_INTERVAL)

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again where the connection was lost."""
        tries = 0
        while True:
            try:
                return await ask()
            except _LOST:
                tries += 1
                if tries == _TRIES:
                    raise
                await self.sleeper.sleep(_INTERVAL)


def _failure(status: str, found: Members) -> ConfideError:
    if status == "cancelled" or found.null("error"):
        return Unavailable(f"the replay is {status}: there is no verdict")
    error = found.members("error")
    code, message = error.text("code", max_chars=64), error.text("message")[:600]
    what = f"the node comes to no verdict: {message.removesuffix('.')} ({code})"
    return Unavailable(what) if code in _ITS_OWN else ConfigurationError(what)
