"""What a training process tells, made public: events and checkpoints of its job, in order.

docs/protocols/training-node.md 4.3: numbers only. Called in the thread of an attempt; what concerns
the job goes through the event loop, where the job lives.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from confide.inference.plan import refuse
from confide.node.train_entry import seconds_of
from confide.training.account import Account
from confide.training.jobs import JobCheckpoint, held_out_metrics

if TYPE_CHECKING:
    from confide.node.train_attempt import Attempt, Prepared
    from confide.node.train_entry import JobEntry, TrainPorts
    from confide.trainer.reports import Progress
    from confide.training.checkpoints import CheckpointEntry
    from confide.training.job import EvaluatedStep
    from confide.training.steplog import LoggedStep
    from confide.wire.json import JsonValue

__all__ = ["Telling", "job_checkpoint"]


class Telling:
    """Who is told of an attempt, in its thread; what it says goes through the loop."""

    def __init__(self, ports: TrainPorts, entry: JobEntry, loop: asyncio.AbstractEventLoop) -> None:
        self._ports = ports
        self._entry = entry
        self._loop = loop
        self._ending = False
        self.attempt: Attempt | None = None

    def prepared(self, said: Prepared) -> Account:
        """Prove the boot in the event loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(self._prove(said), self._loop).result()

    async def _prove(self, said: Prepared) -> Account:
        entry, account = self._entry, self._entry.account
        if account is None:
            account = Account(said.plan, self._root(), said.steps, said.environment)
        else:
            self._require_same(account, said)
            account.go_back()
        boot = await entry.proof.introduce(account)
        if entry.going_on and account.turns:
            account.happened(entry.going_on)
        if boot is not None and boot.kind == "moved":
            account.happened("machine", entry.proof.machine_facts())
        entry.going_on, entry.account = "", account
        entry.job = replace(entry.job, steps=said.steps)
        return account

    def _require_same(self, account: Account, said: Prepared) -> None:
        """Require the job of before; of one that came from elsewhere, say what differs (7.6)."""
        same = (said.plan, said.steps) == (account.plan, account.planned)
        differ = sorted(
            name
            for name in {*said.environment, *account.environment}
            if said.environment.get(name) != account.environment.get(name)
        )
        if self._entry.taken_up and not (same and not differ):
            what = ", ".join(differ) if same else "tokenizer, template or number of steps"
            message = f"Other than on the machine before: {what}. The bits would be others, too."
            refuse("environment_mismatch", message, param="confide.continue")
        account.require_same(said.plan, said.steps, said.environment)

    def _root(self) -> bytes:
        request = self._entry.job.request
        data = self._ports.files.table.find_data(self._entry.owner, request.training_file)
        return data.commitment.root

    def step(self, logged: LoggedStep, progress: Progress) -> None:
        """Tell of a step; where the keys of this boot end soon, have the process pause."""
        self._loop.call_soon_threadsafe(self._stepped, logged, progress)
        if not self._ending and self._entry.proof.expiring() and self.attempt is not None:
            self._ending = True
            self.attempt.pause()

    def evaluation(self, found: EvaluatedStep) -> None:
        """Tell of an evaluation on the way."""
        self._loop.call_soon_threadsafe(self._evaluated, found)

    def checkpoint(self, entry: CheckpointEntry) -> None:
        """Tell of a checkpoint."""
        self._loop.call_soon_threadsafe(self._kept, entry)

    def _stepped(self, logged: LoggedStep, progress: Progress) -> None:
        entry, record = self._entry, logged.record
        data: dict[str, JsonValue] = {
            "step": record.step,
            "steps": progress.steps,
            "train_loss": record.loss,
            "learning_rate": record.learning_rate,
            "tokens": record.tokens,
            "tokens_per_second": progress.tokens_per_second,
            "seconds_left": progress.seconds_left,
        }
        finish = seconds_of(self._ports.clock) + int(progress.seconds_left)
        entry.job = replace(entry.job, step=record.step, estimated_finish=finish)
        words = f"Step {record.step}/{progress.steps}: training loss={record.loss:.4f}"
        entry.tell(self._ports, words, data=data)

    def _evaluated(self, found: EvaluatedStep) -> None:
        steps = self._entry.job.steps
        data: dict[str, JsonValue] = {
            "step": found.step,
            "steps": steps,
            **held_out_metrics(found, self._entry.job.request.steps.method),
        }
        words = f"Step {found.step}/{steps}: held-out loss={found.loss:.4f}"
        self._entry.tell(self._ports, words, data=data)

    def _kept(self, kept: CheckpointEntry) -> None:
        entry, ports = self._entry, self._ports
        account = entry.account
        if account is None:  # pragma: no cover - a checkpoint follows what was prepared
            return
        checkpoint = job_checkpoint(ports, entry, kept)
        entry.job = replace(entry.job, checkpoints=(*entry.job.checkpoints, checkpoint))


def job_checkpoint(ports: TrainPorts, entry: JobEntry, kept: CheckpointEntry) -> JobCheckpoint:
    """Return a checkpoint of the account as the job's owner sees it."""
    account = entry.account
    loss = 0.0 if account is None else account.steps[kept.step - 1].record.loss
    judged = [] if account is None else [e for e in account.evaluated if e.step == kept.step]
    method = entry.job.request.steps.method
    return JobCheckpoint(
        id=f"ftckpt-{ports.entropy.token(12).hex()}",
        at=seconds_of(ports.clock),
        job=entry.job.id,
        step=kept.step,
        name=f"{entry.job.name}:ckpt-step-{kept.step}",
        train_loss=loss,
        held_out=held_out_metrics(judged[0], method) if judged else {},
        chain=kept.chain,
        sealed=kept.sealed,
    )
