"""A job on its way between nodes: what one signs for its owner, and what another takes up from it.

docs/protocols/training-node.md §7. What comes is the owner's word until `verify_handover` held it
to the proof of the node before; the sealed checkpoint is one file with one digest. Belongs to the
event loop; what blocks has threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Final

from confide.crypto.sealed_file import seal_file_to
from confide.errors import TrainingRejected, Unavailable
from confide.inference.faults import RequestRefused
from confide.inference.plan import refuse
from confide.node.train_data import data_files
from confide.node.train_store import ResultFile, read_file
from confide.node.train_telling import job_checkpoint
from confide.training.chain import event_link, event_start
from confide.training.checkpoints import checkpoint_of
from confide.training.handover import MAX_HANDOVER_BYTES, Handover, HandoverFile
from confide.training.handover_verify import Asked, verify_handover
from confide.training.job_request import JobRefused
from confide.training.owner_log import OwnerLog

if TYPE_CHECKING:
    from pathlib import Path

    from confide.expectation import Expectation
    from confide.node.identity import Identity
    from confide.node.train_entry import JobEntry, TrainPorts
    from confide.training.account import Account
    from confide.training.handover_verify import VerifiedHandover
    from confide.training.job_request import JobRequest

__all__ = ["checkpoint_file", "enter", "hand_over", "take_up"]

_NAME: Final = "handover.sealed"
_MEMBER: Final = "confide.continue"
_STEP: Final = re.compile(r"[0-9]{1,9}\Z")
_CONFLICT: Final = 409
# From: docs/protocols/training-ranks.md 4.5.
_RANKS: Final = "A job of several ranks goes on where it began: its seats are not handed over."


async def hand_over(ports: TrainPorts, entry: JobEntry) -> bytes:
    """
    Return how far a job came, signed, and sealed to its owner (7.2, 7.3).

    Raises `RequestRefused` (409) where there is nothing to hand over.
    """
    account, speaker = _going(ports, entry)
    steps, events, evaluated = account.so_far()
    newest = [checkpoint_of(event) for event in events if event.kind == "checkpoint"][-1]
    data, validation = data_files(ports.files.table, entry.owner, entry.job.request)
    log = OwnerLog(
        salt=ports.entropy.token(32),
        recipe=entry.job.request.steps,
        dataset=data.commitment,
        validation=None if validation is None else validation.commitment,
        steps=steps,
        events=events,
        evaluations=None,
        evaluated=evaluated,
    )
    keyset, proof = speaker.keys.keyset, entry.proof
    handover = Handover(
        job=entry.job.training_id,
        nonce=entry.job.request.nonce,
        keyset=keyset.digest,
        expectation=proof.expectation.digest,
        software=keyset.software,
        plan=account.plan,
        root=account.root,
        planned=account.planned,
        environment=account.environment,
        turns=tuple(account.turns),
        boots=tuple(proof.hardware),
        log=bytes(32),
        events=reduce(event_link, events, event_start(account.plan.digest)),
        checkpoint=newest,
        # Turns of another machine, whose clock was ahead, may be a little in the future.
        at=max(ports.clock.now().replace(microsecond=0), account.turns[-1].at),
    )
    boots, expectation = tuple(proof.boots), proof.expectation.canonical()

    def make() -> bytes:
        raw = log.encode()
        whole = replace(handover, log=hashlib.sha256(raw).digest())
        envelope = speaker.keys.signer.seal(whole.payload())
        document = HandoverFile(envelope, raw, expectation, boots).encode()
        sealer = seal_file_to(
            entry.recipient, name=f"{entry.job.id}/{_NAME}", ephemeral=ports.entropy.token(32)
        )
        return b"".join([*sealer.write(document), *sealer.finish()])

    return await asyncio.to_thread(make)


def _going(ports: TrainPorts, entry: JobEntry) -> tuple[Account, Identity]:
    """Return what a handover is made of; refuse where there is none to make."""
    job, account, speaker = entry.job, entry.account, entry.proof.speaker
    if job.ended and not job.may("queued"):
        refuse("job_ended", f"The job is {job.status}: nothing of it goes on.", status=_CONFLICT)
    if account is not None and account.plan.world > 1:
        refuse("several_ranks", _RANKS, status=_CONFLICT)
    if account is None or account.newest is None:
        what = "The job has no checkpoint yet: elsewhere, it would begin anew."
        refuse("no_checkpoint", what, status=_CONFLICT)
    if speaker is None:
        what = "The job was taken up here and has not gone on yet: what you brought still counts."
        refuse("no_boot", what, status=_CONFLICT)
    if ports.clock.now() > speaker.keys.keyset.not_after:
        what = "The keys of the job's last boot hold no longer: resume it, then ask again."
        refuse("keys_ended", what, status=_CONFLICT)
    return account, speaker


def checkpoint_file(ports: TrainPorts, entry: JobEntry, step: str) -> ResultFile:
    """Return the sealed checkpoint after `step`; `RequestRefused` (404) for one not here."""
    place = ports.checkpoints / entry.job.id / (_place(int(step)) if _STEP.match(step) else "-")
    try:
        size = place.stat().st_size
    except OSError:
        refuse("not_found", "The job has no such checkpoint here.", param="step", status=404)
    if size > ports.files.limits.max_state_bytes:
        what = "The checkpoint is larger than what another node takes."
        refuse("checkpoint_too_large", what, param="step", status=_CONFLICT)
    return ResultFile(entry.job.id, entry.owner, place.name, size, 0, place)


def _place(step: int) -> str:
    return f"checkpoint-{step:09}.sealed"


async def take_up(
    ports: TrainPorts, owner: str, request: JobRequest, expectation: Expectation
) -> VerifiedHandover | None:
    """
    Return what a job goes on from here, held to proof (7.5); None for one that begins.

    Raises `JobRefused` saying which step refuses, `RequestRefused` for files that are not there.
    """
    if request.handed is None:
        return None
    table, store = ports.files.table, ports.files.store
    file = table.find_state(owner, request.handed.handover, param=f"{_MEMBER}.handover")
    if file.size > MAX_HANDOVER_BYTES:
        refuse("invalid_file", "A handover has at most 64 MiB.", param=f"{_MEMBER}.handover")
    data, validation = data_files(table, owner, request)
    identity = ports.node.identity
    asked = Asked(
        expectation=expectation,
        nonce=request.nonce,
        recipe=request.steps,
        dataset=data.commitment,
        validation=None if validation is None else validation.commitment,
        base=ports.node.weights,
        software=identity.current.keys.keyset.software,
    )

    def verify() -> VerifiedHandover:
        raw = b"".join(read_file(store, file))
        return verify_handover(raw, asked, roots=ports.node.roots, now=ports.clock.now())

    try:
        taken = await asyncio.to_thread(verify)
    except TrainingRejected as error:
        first = error.failures[0]
        raise JobRefused(
            f"{_MEMBER}.handover: {first.step}: {first.detail}",
            param=f"{_MEMBER}.handover",
            code="handover_rejected",
        ) from error
    if taken.handover.plan.world > 1:
        refuse("several_ranks", _RANKS, param=f"{_MEMBER}.handover")
    return taken


async def enter(ports: TrainPorts, entry: JobEntry, taken: VerifiedHandover) -> None:
    """
    Put `entry` where `taken` stands, and its sealed checkpoint where processes read it (7.6, 7.7).

    Raises `RequestRefused` for another checkpoint or a full disk; nothing is left behind then.
    """
    handed = entry.job.request.handed
    if handed is None:
        raise ValueError("the job began here")
    param, wanted = f"{_MEMBER}.checkpoint", taken.handover.checkpoint
    file = ports.files.table.find_state(entry.owner, handed.checkpoint, param=param)
    folder = ports.checkpoints / entry.job.id

    def place() -> bytes:
        folder.mkdir(mode=0o700, parents=True)
        return _copy(ports, file, folder / _place(wanted.step))

    try:
        digest = await asyncio.to_thread(place)
        if digest != wanted.sealed:
            what = f"Not the sealed checkpoint after step {wanted.step} that the handover names."
            refuse("checkpoint_mismatch", what, param=param)
    except BaseException as error:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if isinstance(error, OSError):
            refuse("storage_failed", "The node cannot store the checkpoint now.", status=507)
        raise
    account, proof = taken.account, entry.proof
    proof.boots.extend(taken.file.boots)
    proof.hardware.extend(taken.handover.boots)
    paused = account.events[-1].kind == "paused"
    entry.going_on = "resumed" if paused else "restarted"
    entry.account, entry.taken_up = account, wanted.step
    checkpoint = job_checkpoint(ports, entry, wanted)
    entry.job = replace(
        entry.job, steps=account.planned, step=wanted.step, checkpoints=(checkpoint,)
    )
    # They did what they are for.
    for each in {handed.handover, handed.checkpoint}:
        with suppress(Unavailable, RequestRefused):
            await ports.files.remove(entry.owner, each)


def _copy(ports: TrainPorts, file: ResultFile, place: Path) -> bytes:
    """Copy a file of the store; return its SHA-256. Blocks."""
    sha256 = hashlib.sha256()
    with place.open("xb") as out:
        for piece in read_file(ports.files.store, file):
            sha256.update(piece)
            out.write(piece)
    return sha256.digest()
