"""The recipe of a training job: what the owner decided, as one frozen value with one digest.

docs/protocols/training.md §1. Names are Axolotl's where it has one. `recipe_file` reads recipes;
nothing here judges whether a choice is a good one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from confide.wire.json import jcs

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

__all__ = [
    "ALL_LINEAR",
    "Adapter",
    "Lora",
    "Method",
    "Optimizer",
    "Precision",
    "Privacy",
    "Recipe",
    "Scheduler",
    "TooLong",
]

Method: TypeAlias = Literal["sft", "dpo"]
Adapter: TypeAlias = Literal["lora", "full"]
Optimizer: TypeAlias = Literal["adamw", "sgd"]
Scheduler: TypeAlias = Literal["constant", "linear", "cosine"]
Precision: TypeAlias = Literal["fp32", "bf16"]
TooLong: TypeAlias = Literal["raise", "truncate"]

# Every linear layer but the output layer, as PEFT means the word.
ALL_LINEAR = "all-linear"
_TYPE = "confide/training-recipe/v1"


@dataclass(frozen=True, slots=True)
class Lora:
    """The shape of an adapter: rank, scale, dropout, and the layers it stands beside."""

    r: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Privacy:
    """DP-SGD (§8): noise in multiples of the clipping norm, that norm, and the delta to report."""

    noise_multiplier: float
    max_grad_norm: float
    delta: float


@dataclass(frozen=True, slots=True)
class Recipe:
    """
    What the owner decided about one training job.

    `lora` is None exactly for a full training, `dpo_beta` exactly for supervised training, and one
    of `num_epochs` and `max_steps` is None. `val_set_size` is a number of rows, or a share below 1.
    `eval_steps` is None where nothing is evaluated on the way.
    """

    base_model: str
    method: Method
    lora: Lora | None
    sequence_len: int
    excess_length_strategy: TooLong
    sample_packing: bool
    micro_batch_size: int
    gradient_accumulation_steps: int
    num_epochs: int | None
    max_steps: int | None
    optimizer: Optimizer
    weight_decay: float
    learning_rate: float
    lr_scheduler: Scheduler
    warmup_steps: int
    max_grad_norm: float
    precision: Precision
    val_set_size: float
    seed: int
    checkpoint_every: int
    state_every: int
    dpo_beta: float | None
    privacy: Privacy | None
    eval_steps: int | None = None

    @property
    def adapter(self) -> Adapter:
        """What is trained: an adapter beside the weights, or the weights."""
        return "full" if self.lora is None else "lora"

    @property
    def sequences_per_step(self) -> int:
        """How many sequences a whole step takes."""
        return self.micro_batch_size * self.gradient_accumulation_steps

    def evaluated_after(self, done: int, *, planned: int) -> list[int]:
        """Return after which of the first `done` steps the model is evaluated on the way (9.3)."""
        steps = range(1, done + 1)
        return [step for step in steps if self.evaluation_is_due(step, planned=planned)]

    def evaluation_is_due(self, step: int, *, planned: int) -> bool:
        """Whether the model is evaluated on the way after `step`."""
        every = self.eval_steps
        return every is not None and (not step % every or step == planned)

    def value(self) -> dict[str, JsonValue]:
        """Return the JSON value: every member that has a meaning for this job, and no other."""
        value: dict[str, JsonValue] = {
            "type": _TYPE,
            "base_model": self.base_model,
            "method": self.method,
            "adapter": self.adapter,
            "sequence_len": self.sequence_len,
            "excess_length_strategy": self.excess_length_strategy,
            "sample_packing": self.sample_packing,
            "micro_batch_size": self.micro_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "optimizer": self.optimizer,
            "weight_decay": self.weight_decay,
            "learning_rate": self.learning_rate,
            "lr_scheduler": self.lr_scheduler,
            "warmup_steps": self.warmup_steps,
            "max_grad_norm": self.max_grad_norm,
            "precision": self.precision,
            "val_set_size": self.val_set_size,
            "seed": self.seed,
            "checkpoint_every": self.checkpoint_every,
            "state_every": self.state_every,
        }
        if self.lora is not None:
            value |= {
                "lora_r": self.lora.r,
                "lora_alpha": self.lora.alpha,
                "lora_dropout": self.lora.dropout,
                "lora_target_modules": list(self.lora.target_modules),
            }
        if self.num_epochs is not None:
            value["num_epochs"] = self.num_epochs
        if self.max_steps is not None:
            value["max_steps"] = self.max_steps
        if self.eval_steps is not None:
            value["eval_steps"] = self.eval_steps
        if self.dpo_beta is not None:
            value["dpo_beta"] = self.dpo_beta
        if self.privacy is not None:
            value["privacy"] = {
                "noise_multiplier": self.privacy.noise_multiplier,
                "max_grad_norm": self.privacy.max_grad_norm,
                "delta": self.privacy.delta,
            }
        return value

    def canonical(self) -> bytes:
        """Return the RFC 8785 bytes: what travels and what is hashed."""
        return jcs(self.value())

    @property
    def digest(self) -> bytes:
        """SHA-256 over the canonical bytes."""
        return hashlib.sha256(self.canonical()).digest()
