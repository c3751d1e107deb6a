"""The result as files: the adapter as PEFT writes it, and the whole model with it merged in.

docs/protocols/training.md 9.6. Nothing goes to a disk here: names and bytes are yielded, in one
order, the same for the same state.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from confide.trainer.folder import TOKENIZER_FILES, load_model, stored_type
from confide.trainer.policy import adapted
from confide.trainer.tensorfile import write_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PreTrainedModel

    from confide.trainer.policy import Policy
    from confide.wire.json import JsonValue

__all__ = ["adapter_files", "merged_files"]

_FORMAT = {"format": "pt"}
_COPIED = ("config.json", "generation_config.json", *TOKENIZER_FILES)
# From: transformers, names of the files of a model; `save_pretrained` splits later.
_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_SHARD_BYTES = 4 * 1024 * 1024 * 1024


def adapter_files(policy: Policy) -> Iterator[tuple[str, bytes]]:
    """Yield the adapter's configuration and tensors. `ValueError` for a full training."""
    model = policy.model
    if not isinstance(model, PeftModel):
        raise ValueError("a full training has no adapter")  # noqa: TRY004 - of the recipe
    config = model.peft_config["default"].to_dict() | {"inference_mode": True}
    plain = json.dumps(_plain(config), indent=2, sort_keys=True)
    yield "adapter_config.json", plain.encode() + b"\n"
    tensors = _adapter_tensors(model)
    yield "adapter_model.safetensors", b"".join(write_tensors(tensors, _FORMAT))


def merged_files(
    policy: Policy, folder: Path, *, shard_bytes: int = _MAX_SHARD_BYTES
) -> Iterator[tuple[str, bytes]]:
    """Yield a model folder: what the base `folder` holds, and the trained weights in its types."""
    for name in _COPIED:
        if (folder / name).is_file():
            yield name, (folder / name).read_bytes()
    model = _merged(policy, folder)
    tensors = {
        name: tensor.to(stored_type(folder)) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    tensors = remove_tied_weights_from_state_dict(tensors, model)
    tensors = revert_weight_conversion(model, tensors)
    shards = list(_shards(tensors, shard_bytes))
    if len(shards) == 1:
        yield _ONE_FILE, b"".join(write_tensors(shards[0], _FORMAT))
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        places |= dict.fromkeys(shard, name)
        yield name, b"".join(write_tensors(shard, _FORMAT))
    size = sum(map(_bytes, tensors.values()))
    index = {"metadata": {"total_size": size}, "weight_map": places}
    yield _INDEX, json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"


def _merged(policy: Policy, folder: Path) -> PreTrainedModel:
    """Return the tuned model without an adapter, computed in float32 from the base as stored."""
    recipe = policy.recipe
    if recipe.lora is None or not isinstance(policy.model, PeftModel):
        return policy.model
    fresh = adapted(load_model(folder, torch.float32), recipe.lora, recipe.base_model)
    set_peft_model_state_dict(fresh, _adapter_tensors(policy.model))
    return fresh.merge_and_unload()


def _adapter_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    # Not "auto": PEFT would ask the network whether the vocabulary has grown.
    found: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return found


def _shards(tensors: dict[str, torch.Tensor], limit: int) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name in sorted(tensors):
        if shard and size + _bytes(tensors[name]) > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensors[name]
        size += _bytes(tensors[name])
    yield shard


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _plain(value: object) -> JsonValue:
    """Return `value` as JSON; sets, which have no order, sorted."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value), key=str)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a configuration")
