"""The training loop: one state, one next step, and nothing that is not in the plan.

docs/protocols/training.md §9. `TorchTrainer` is the port `confide.ports.Trainer` over torch. It has
no clock, no randomness of its own and no memory of the way it came: a state and a step number are
enough to go on.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from confide.errors import ConfigurationError
from confide.trainer.encode import RowEncoder
from confide.trainer.evaluate import judge_answers, judge_preferences
from confide.trainer.failures import NotFinite, OutOfMemory
from confide.trainer.folder import load_tokenizer, template_digest, tokenizer_digest
from confide.trainer.losses import leaks_between_packed_rows
from confide.trainer.machine import environment, fix_arithmetic
from confide.trainer.output import adapter_files, merged_files
from confide.trainer.policy import Policy, make_optimizer
from confide.trainer.ranked import RankedSteps
from confide.trainer.state import TrainingState
from confide.trainer.steps import (
    Collator,
    add_clipped_gradients,
    add_gradients,
    add_noise,
    in_doubles,
    preference_losses,
    row_losses,
    token_losses,
)
from confide.training.batches import SampledBatches, batch_tokens, plan_batches
from confide.training.chain import StepRecord, state_is_due
from confide.training.job import PreparedTraining
from confide.training.plan import TrainingPlan
from confide.training.schedule import learning_rate
from confide.training.seeds import batch_commitment, privacy_key, step_seed
from confide.training.shares import require_world

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from confide.trainer.encode import Example
    from confide.trainer.ring import Ring
    from confide.trainer.steps import MicroLoss
    from confide.training.batches import Batch, Batches
    from confide.training.job import Evaluation, OutputKind, TrainingData, TrainingJob
    from confide.training.recipe import Privacy

__all__ = ["TorchTrainer", "out_of_memory"]


class TorchTrainer:
    """
    Trains the model in `folder`, which was measured, on `device` (`cpu`, `cuda`).

    One job each: `prepare`, then steps. Sets switches of the whole process (`fix_arithmetic`).
    With a `ring` it is one rank of several: rank 0 is used as if it were alone and lets the others
    `leave` at the end; they `follow`. Without one it does the work of all ranks of its job.
    """

    def __init__(
        self, folder: Path, *, threads: int = 1, device: str = "cpu", ring: Ring | None = None
    ) -> None:
        self._folder = folder
        self._threads = threads
        self._device = torch.device(device)
        self._step = 0
        self._ring = ring
        self._ranked: RankedSteps | None = None

    def prepare(self, job: TrainingJob) -> PreparedTraining:
        """Load the model, read the rows, make the first state."""
        fix_arithmetic(threads=self._threads, device=self._device)
        _require_kind(job)
        recipe, tokenizer = job.recipe, load_tokenizer(self._folder)
        plan = TrainingPlan(
            recipe=recipe.digest,
            dataset=job.data.digest,
            validation=None if job.validation is None else job.validation.digest,
            base=job.base,
            tokenizer=tokenizer_digest(self._folder),
            template=template_digest(tokenizer) if _has_conversations(job) else None,
            world=job.world,
        )
        examples = self._encode(job, job.data)
        apart = [] if job.validation is None else self._encode(job, job.validation)
        with _failures("while the model was loaded"):
            self._policy = Policy(self._folder, recipe, plan.seeding, self._device)
            self._require_context([*examples, *apart])
            self._require_packing()
            self._optimizer = make_optimizer(recipe, self._policy.parameters)
        lengths = [sum(map(len, example)) for example in examples]
        self._batches = _batches(job, plan.seeding, lengths)
        self._state = TrainingState(plan.digest, self._policy.parameters, self._optimizer)
        self._job, self._seeding = job, plan.seeding
        # Validation rows count on after the rows of the data set.
        self._apart = [*self._batches.held_out, *range(len(lengths), len(lengths) + len(apart))]
        if recipe.eval_steps is not None and not self._apart:
            raise ConfigurationError(
                "recipe: eval_steps: nothing is held out; set val_set_size, or give validation rows"
            )
        self._collator = Collator(
            [*examples, *apart],
            pad=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
            packed=recipe.sample_packing,
            device=self._device,
        )
        self._policy.model.train()
        self.prepared = PreparedTraining(
            plan, self._batches.steps, self._batches.held_out, environment(self._device)
        )
        if self._ring is not None:
            self._join(self._ring, lengths)
        return self.prepared

    def _join(self, ring: Ring, lengths: Sequence[int]) -> None:
        """Meet the other ranks; with privacy, learn from rank 0 how its rows are drawn."""
        job, batches = self._job, self._batches
        private = isinstance(batches, SampledBatches)
        most = len(batches.rows) if private else job.recipe.gradient_accumulation_steps
        self._ranked = RankedSteps(ring, list(self._policy.parameters.values()), most)
        apart = () if job.validation is None else job.validation.rows
        self._ranked.agree(self.prepared, (*job.data.rows, *apart))
        if private:
            # The salt stays with rank 0.
            key = self._ranked.hand_round(privacy_key(job.data.salt, self._seeding))
            self._batches = SampledBatches(job.recipe, root=job.data.root, lengths=lengths, key=key)

    @property
    def step(self) -> int:
        """How many steps the state has behind it."""
        return self._step

    def batch(self, step: int) -> Batch:
        """Return the rows of any step of the job."""
        return self._batches.batch(step)

    def run_step(self) -> StepRecord:
        """Compute the next step (§9.2)."""
        step, recipe = self._step + 1, self._job.recipe
        batch = self._batches.batch(step)
        rate = learning_rate(recipe, step, self._batches.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with _failures(f"at step {step}"):
            if self._ranked is not None:
                self._ranked.begin(step)
            loss = self._gradient(step, batch)
            norm = torch.nn.utils.clip_grad_norm_(
                self._policy.parameters.values(), recipe.max_grad_norm
            ).item()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NotFinite(
                    f"loss or gradient of step {step} is not finite: a lower learning_rate may help"
                )
            self._optimizer.step()
        self._step = step
        due = state_is_due(recipe, step, self._batches.steps)
        return StepRecord(
            step=step,
            batch=batch_commitment(self._job.data.salt, step, batch),
            learning_rate=rate,
            loss=loss,
            grad_norm=norm,
            tokens=batch_tokens(batch),
            state=self._state.digest() if due else None,
        )

    def follow(self) -> None:
        """Be another rank than 0: compute its share of each step until rank 0 lets it leave."""
        if self._ranked is None:
            raise ValueError("a rank of its own has nobody to follow")
        while step := self._ranked.awaited():
            with _failures(f"at step {step}"):
                self._gradient(step, self._batches.batch(step))

    def leave(self) -> None:
        """Be rank 0 with no more steps to do: let the others go, where there are any."""
        if self._ranked is not None:
            self._ranked.begin(0)

    def state_digest(self) -> bytes:
        """Return the digest of the present state (7.1)."""
        return self._state.digest()

    def save(self) -> Iterator[bytes]:
        """Yield the present state in plain (7.2)."""
        return self._state.save(self._step)

    def load(self, state: bytes) -> None:
        """Go to a state that `save` gave."""
        self._step = self._state.restore(state)

    def evaluate(self, *, base: bool) -> Evaluation | None:
        """Judge the present model, or the base, on held-out and validation rows (9.3)."""
        if not self._apart:
            return None
        size = self._job.recipe.micro_batch_size
        rows = tuple(((row, 0),) for row in self._apart)
        batch = tuple(rows[at : at + size] for at in range(0, len(rows), size))
        with _failures("while held-out rows were judged"):
            if base:
                with self._policy.base() as model:
                    found = self._judge(model, batch)
            else:
                self._policy.model.eval()
                try:
                    found = self._judge(self._policy.model, batch)
                finally:
                    self._policy.model.train()
        if not math.isfinite(found.loss):
            raise NotFinite(f"the loss on held-out rows after step {self._step} is not finite")
        return found

    def output(self, kind: OutputKind) -> Iterator[tuple[str, bytes]]:
        """Yield the files of the result, plain (9.6)."""
        if kind == "adapter":
            return adapter_files(self._policy)
        return merged_files(self._policy, self._folder)

    def _judge(self, model: torch.nn.Module, batch: Batch) -> Evaluation:
        beta = self._job.recipe.dpo_beta
        if beta is None:
            return judge_answers(self._policy, model, batch, self._collator)
        return judge_preferences(self._policy, model, batch, self._collator, beta=beta)

    def _gradient(self, step: int, batch: Batch) -> float:
        """Leave the gradient of `step` in the parameters; return its loss."""
        recipe = self._job.recipe
        self._optimizer.zero_grad(set_to_none=True)

        def seed(micro: int) -> int:
            return step_seed(self._seeding, step, micro)

        loss, privacy = self._losses(batch), recipe.privacy

        def gather(numbers: Iterable[int]) -> dict[int, torch.Tensor]:
            if privacy is None:
                return add_gradients(loss, numbers, seed=seed)
            limit = privacy.max_grad_norm
            return add_clipped_gradients(self._policy, loss, numbers, limit=limit, seed=seed)

        if self._ranked is not None:
            losses = self._ranked.sum_up(gather, len(batch))
        else:
            found = [*gather(range(len(batch))).values()]
            # Read from the device once.
            losses = torch.stack(found).tolist() if found else []
        if privacy is None:
            return in_doubles(losses)
        if self._ring is None or not self._ring.rank:
            self._add_noise(privacy, step)
        return in_doubles(losses) / len(losses) if losses else 0.0

    def _add_noise(self, privacy: Privacy, step: int) -> None:
        add_noise(
            self._policy,
            privacy=privacy,
            expected=self._job.recipe.sequences_per_step,
            key=privacy_key(self._job.data.salt, self._seeding),
            step=step,
        )

    def _losses(self, batch: Batch) -> MicroLoss:
        recipe = self._job.recipe
        beta = recipe.dpo_beta
        if recipe.privacy is not None:
            return row_losses(self._policy, batch, self._collator)
        if beta is not None:
            return preference_losses(self._policy, batch, self._collator, beta=beta)
        return token_losses(self._policy, batch, self._collator)

    def _encode(self, job: TrainingJob, data: TrainingData) -> list[Example]:
        encoder = RowEncoder(
            load_tokenizer(self._folder),
            data.kind,
            job.recipe.sequence_len,
            job.recipe.excess_length_strategy,
        )
        return [encoder.encode(index, record) for index, record in enumerate(data.rows)]

    def _require_context(self, examples: Sequence[Example]) -> None:
        longest = max(len(text) for example in examples for text in example)
        if self._policy.context is not None and longest > self._policy.context:
            raise ConfigurationError(
                f"a row has {longest} tokens, and the model reads at most {self._policy.context}: "
                "lower sequence_len to that"
            )

    def _require_packing(self) -> None:
        if not self._policy.recipe.sample_packing:
            return
        self._policy.model.eval()
        if leaks_between_packed_rows(self._policy.model, vocabulary=self._policy.vocabulary):
            raise ConfigurationError("sample_packing: this model lets packed rows see each other")


def _batches(job: TrainingJob, seeding: bytes, lengths: Sequence[int]) -> Batches:
    data = job.data
    try:
        require_world(job.recipe, job.world)
        return plan_batches(
            job.recipe, seeding=seeding, root=data.root, lengths=lengths, dataset_salt=data.salt
        )
    except ValueError as error:
        raise ConfigurationError(f"recipe: {error}") from error


def _require_kind(job: TrainingJob) -> None:
    wanted = {"preference"} if job.recipe.method == "dpo" else {"chat", "completion"}
    for data in (job.data, job.validation):
        if data is not None and data.kind not in wanted:
            raise ConfigurationError(
                f"method {job.recipe.method} does not train on {data.kind} rows"
            )


def _has_conversations(job: TrainingJob) -> bool:
    """Whether the template has a part in this: all but texts are written by it."""
    rows = [*job.data.rows, *(job.validation.rows if job.validation is not None else ())]
    return any(b'"role":' in row for row in rows)


@contextmanager
def _failures(when: str) -> Iterator[None]:
    """Say what ran out, in words; the libraries' own may quote what they were working on."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise out_of_memory(when) from error
    except RuntimeError as error:
        # The allocator for processors has no class of its own. From: c10/core/impl/alloc_cpu.cpp
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise out_of_memory(when) from error


def out_of_memory(when: str) -> OutOfMemory:
    """Return the error of a run that got no more memory."""
    return OutOfMemory(
        f"memory ran out {when}: lower micro_batch_size or sequence_len; "
        "the job can be resumed from its newest checkpoint"
    )
