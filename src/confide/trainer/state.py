"""The state of a training as named tensors: digest, checkpoint, and back. training.md §7."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import torch

from confide.errors import FormatError, Reason
from confide.trainer.tensorfile import read_tensors, state_tensor, write_tensors
from confide.training.checkpoints import state_digest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TrainingState"]

# What AdamW keeps for a parameter, and whether it has the parameter's shape.
_KEPT = {"step": False, "exp_avg": True, "exp_avg_sq": True}


class TrainingState:
    """Parameters and optimizer as one; both are changed in place by `restore`."""

    __slots__ = ("_optimizer", "_parameters", "_plan")

    def __init__(
        self,
        plan: bytes,
        parameters: dict[str, torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._plan = plan
        self._parameters = parameters
        self._optimizer = optimizer

    def _tensors(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters.items():
            found[f"parameter/{name}"] = parameter
            for kept, tensor in self._optimizer.state.get(parameter, {}).items():
                found[f"optimizer/{name}/{kept}"] = tensor
        return found

    def digest(self) -> bytes:
        """Return the state digest (7.1)."""
        return state_digest(state_tensor(name, each) for name, each in self._tensors().items())

    def save(self, step: int) -> Iterator[bytes]:
        """Yield the checkpoint in plain (7.2)."""
        return write_tensors(self._tensors(), {"plan": self._plan.hex(), "step": str(step)})

    def restore(self, raw: bytes) -> int:
        """
        Go to the state of a checkpoint and return its step.

        Raises `FormatError` with CHECKPOINT_MISMATCH; nothing was changed then.
        """
        tensors, metadata = read_tensors(raw)
        step = metadata.get("step")
        if metadata.get("plan") != self._plan.hex() or not isinstance(step, str):
            _refuse("it is not of this plan")
        if not step.isdecimal() or str(int(step)) != step:
            _refuse("its step is no number")
        kept = self._sorted_out(tensors)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
        self._optimizer.state.clear()
        for parameter, state in kept.items():
            self._optimizer.state[parameter] = state
        return int(step)

    def _sorted_out(
        self, tensors: dict[str, torch.Tensor]
    ) -> dict[torch.nn.Parameter, dict[str, torch.Tensor]]:
        """Return the optimizer's tensors, after everything was found to fit."""
        wanted = {f"parameter/{name}": parameter for name, parameter in self._parameters.items()}
        kept: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name in wanted:
                _require(tensor, wanted[name])
                continue
            place, _, part = name.rpartition("/")
            parameter = self._parameters.get(place.removeprefix("optimizer/"))
            if parameter is None or part not in _KEPT or not place.startswith("optimizer/"):
                _refuse("it holds a tensor that is none of this training")
            _require(
                tensor, parameter if _KEPT[part] else tensor.new_zeros((), dtype=torch.float32)
            )
            # The counter stays on the processor, as AdamW makes it.
            on = parameter.device if _KEPT[part] else torch.device("cpu")
            kept.setdefault(parameter, {})[part] = tensor.to(on)
        if wanted.keys() - tensors.keys():
            _refuse("a trained tensor is missing")
        if any(state.keys() != _KEPT.keys() for state in kept.values()):
            _refuse("the optimizer's tensors are not whole")
        return kept


def _require(tensor: torch.Tensor, like: torch.Tensor) -> None:
    if tensor.shape != like.shape or tensor.dtype != like.dtype:
        _refuse("a tensor has another type or shape")


def _refuse(why: str) -> NoReturn:
    raise FormatError(
        f"checkpoint: {why}", reason=Reason.CHECKPOINT_MISMATCH, clause="training.md §7.2"
    )
