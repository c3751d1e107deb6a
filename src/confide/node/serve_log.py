"""A log and a witness as processes. The composition roots; configuration is in the settings.

Order for the log: lock, head and edge (they have to fit), witnesses asked about the head that is
there, then entries are taken.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.log_files import FileLog
from confide.adapters.log_http import HttpWitness, log_client
from confide.adapters.log_s3 import ObjectPlace, S3Log, WriterToken
from confide.adapters.witness_files import WitnessFiles
from confide.errors import ConfigurationError
from confide.node.log_app import log_app
from confide.node.log_keeper import LogKeeper
from confide.node.log_writer import LogWriter, WriterLimits
from confide.node.serve import first_of, serve
from confide.node.witness_app import WitnessService, witness_app
from confide.wire.note import SignatureType
from confide.wire.tlog_policy import LogEntry, LogPolicy, Quorum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from confide.crypto.cosign import NoteSigner
    from confide.ports import LogStore
    from confide.wire.note import VerifierKey

# Senders keep their connection while their entry becomes final.
_CONNECTIONS: Final = 2048

__all__ = ["LogSettings", "WitnessSettings", "serve_log", "serve_witness"]


@dataclass(frozen=True, slots=True)
class LogSettings:
    """
    How a log is started. Without a policy it has no witnesses.

    `report` gets a line where witnesses stop or resume to cosign. With `objects` the log is in that
    object store, and `folder` holds what makes this machine its writer.
    """

    host: str
    port: int
    folder: Path
    signer: NoteSigner
    report: Callable[[str], None]
    policy: LogPolicy | None = None
    window_seconds: float = 0.02
    idle_seconds: int | None = None
    objects: ObjectPlace | None = None


@dataclass(frozen=True, slots=True)
class WitnessSettings:
    """How a witness is started: its keys, the logs that it cosigns for."""

    host: str
    port: int
    folder: Path
    signers: tuple[NoteSigner, ...]
    logs: tuple[VerifierKey, ...]
    idle_seconds: int | None = None


def _own_policy(settings: LogSettings) -> LogPolicy:
    key = settings.signer.key
    if key.kind is not SignatureType.ED25519:
        raise ConfigurationError("a log signs with a plain Ed25519 key; this is one of a witness")
    if settings.policy is None:
        return LogPolicy((LogEntry(key),), (), Quorum(0, ()))
    if key not in [log.key for log in settings.policy.logs]:
        raise ConfigurationError("the policy does not name this log's key")
    if not all(witness.url for witness in settings.policy.witnesses):
        raise ConfigurationError("every witness in a log's policy needs a URL")
    return settings.policy


def _store(settings: LogSettings) -> LogStore:
    if settings.objects is None:
        return FileLog(settings.folder)
    token = WriterToken(settings.folder, entropy=SystemEntropy())
    try:
        return S3Log(settings.objects, token=token, clock=SystemClock())
    except BaseException:
        token.close()
        raise


async def serve_log(settings: LogSettings) -> None:
    """
    Serve a log until told to stop.

    Raises `ConfigurationError`, `LogRejected` for a store that does not fit or was rolled back,
    `Unavailable` once a write failed.
    """
    policy = _own_policy(settings)
    store = await asyncio.to_thread(_store, settings)
    try:
        keeper = LogKeeper.open(store, settings.signer)
        async with log_client() as client:
            witnesses = [HttpWitness(client, each.url, each.key) for each in policy.witnesses]
            limits = WriterLimits(window_seconds=settings.window_seconds)
            writer = LogWriter(
                keeper,
                witnesses=witnesses,
                policy=policy,
                clock=SystemClock(),
                limits=limits,
                report=settings.report,
            )
            app = log_app(keeper, writer, store)
            serving = serve(
                app,
                host=settings.host,
                port=settings.port,
                idle_seconds=settings.idle_seconds,
                connections=_CONNECTIONS,
            )
            await first_of(asyncio.ensure_future(writer.run()), asyncio.ensure_future(serving))
    finally:
        store.close()


async def serve_witness(settings: WitnessSettings) -> None:
    """Serve a witness until told to stop. Raises `ConfigurationError`, `Unavailable`."""
    if any(signer.key.kind is SignatureType.ED25519 for signer in settings.signers):
        raise ConfigurationError("a witness signs with the key of a witness; this is one of a log")
    _distinct(settings.logs)
    state = WitnessFiles(settings.folder)
    try:
        service = WitnessService(
            settings.signers, logs=settings.logs, state=state, clock=SystemClock()
        )
        await serve(
            witness_app(service),
            host=settings.host,
            port=settings.port,
            idle_seconds=settings.idle_seconds,
            connections=_CONNECTIONS,
        )
    finally:
        state.close()


def _distinct(logs: Sequence[VerifierKey]) -> None:
    if not logs or any(key.kind is not SignatureType.ED25519 for key in logs):
        raise ConfigurationError("a witness needs the Ed25519 keys of the logs that it knows")
