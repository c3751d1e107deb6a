"""The model that is trained, what it is compared with, and the optimizer.

docs/protocols/training.md 4.1, 9.2. With an adapter the base weights stay as they are, and
switching the adapter off gives the base model back; a full training keeps a copy for that.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from confide.errors import ConfigurationError
from confide.trainer.folder import load_model
from confide.training.recipe import ALL_LINEAR
from confide.training.seeds import ADAPTER_STEP, step_seed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from confide.training.recipe import Lora, Recipe

__all__ = ["Policy", "adapted", "make_optimizer"]

_Parameters: TypeAlias = dict[str, torch.nn.Parameter]


class Policy:
    """
    The model in training; `parameters` are what is trained, by name, in the model's order.

    `context` is how many tokens the model says it can read, where it says so, and `vocabulary` how
    many it knows.
    """

    __slots__ = (
        "_autocast", "_copy", "_device", "_folder", "context", "model", "parameters", "recipe",
        "vocabulary",
    )  # fmt: skip

    def __init__(self, folder: Path, recipe: Recipe, plan: bytes, device: torch.device) -> None:
        mixed = recipe.precision == "bf16"
        # Beside an adapter, base weights in bfloat16 are enough; what is trained is in float32.
        small = mixed and recipe.lora is not None
        base = load_model(folder, torch.bfloat16 if small else torch.float32)
        self.context: int | None = getattr(base.config, "max_position_embeddings", None)
        self.vocabulary: int = base.get_input_embeddings().num_embeddings
        self._folder = folder
        self._autocast = mixed
        self._device = device
        self._copy: torch.nn.Module | None = None
        self.recipe = recipe
        if recipe.lora is None:
            self.model: torch.nn.Module = base.requires_grad_(requires_grad=True)
        else:
            torch.manual_seed(step_seed(plan, ADAPTER_STEP))
            self.model = adapted(base, recipe.lora, recipe.base_model)
        self.model.to(device)
        self.parameters: _Parameters = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        if recipe.lora is None and recipe.method == "dpo":
            self._copy = self._load_base()

    def computing(self) -> AbstractContextManager[Any]:
        """Return the context in which the model computes: bfloat16 products where asked for."""
        if not self._autocast:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)

    @contextmanager
    def base(self) -> Iterator[torch.nn.Module]:
        """Give the base model for a while, in evaluation mode and without gradients."""
        training = self.model.training
        with torch.no_grad():
            if isinstance(self.model, PeftModel):
                self.model.eval()
                try:
                    with self.model.disable_adapter():
                        yield self.model
                finally:
                    self.model.train(training)
            else:
                yield self._copy if self._copy is not None else self._load_base()

    def _load_base(self) -> torch.nn.Module:
        base: torch.nn.Module = load_model(self._folder, torch.float32)
        return base.to(self._device)


def adapted(base: torch.nn.Module, lora: Lora, name: str) -> PeftModel:
    """Return `base` with a fresh adapter, whose first values come from the generators as set."""
    modules: str | list[str] = list(lora.target_modules)
    if lora.target_modules == (ALL_LINEAR,):
        modules = ALL_LINEAR
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,  # PEFT divides by r; fractions are fine
        lora_dropout=lora.dropout,
        target_modules=modules,
    )
    try:
        model = get_peft_model(base, config)
    except ValueError as error:
        raise ConfigurationError("lora_target_modules: the model has none of them") from error
    # PEFT would write down the folder that the weights were read from.
    model.peft_config["default"].base_model_name_or_path = name
    return model


def make_optimizer(recipe: Recipe, parameters: _Parameters) -> torch.optim.Optimizer:
    """Return the optimizer; what has one dimension (gains, biases) does not decay (1.2)."""
    groups = [
        {
            "params": [p for p in parameters.values() if (p.dim() > 1) == decays],
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.999), eps=1e-8)
