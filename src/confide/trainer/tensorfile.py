"""Safetensors, written so that the same tensors are the same bytes, and read back without pickle.

One tensor is in memory at a time while writing. The order is that of the reference implementation:
wider types first, then names.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from confide.errors import FormatError, Reason
from confide.training.checkpoints import StateTensor
from confide.wire.json import JsonLimits, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from confide.wire.json import JsonValue

__all__ = ["read_tensors", "state_tensor", "tensor_bytes", "write_tensors"]

# From: safetensors, format: the names of types.
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGN = 8
_HEADER_LIMITS = JsonLimits(max_bytes=64 * 1024 * 1024, max_depth=8)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor as safetensors has them: row-major, little-endian."""
    plain = tensor.detach().to("cpu").contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data


def state_tensor(name: str, tensor: torch.Tensor) -> StateTensor:
    """Return what a state digest holds of a tensor (training.md 7.1)."""
    digest = hashlib.sha256(tensor_bytes(tensor)).digest()
    return StateTensor(name, _NAMES[tensor.dtype], tuple(tensor.shape), digest)


def write_tensors(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes]:
    """Yield one safetensors file, its header first."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    described: dict[str, JsonValue] = {"__metadata__": dict(metadata)}
    at = 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        described[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    header = jcs(described)
    header += b" " * (-len(header) % _ALIGN)
    yield len(header).to_bytes(8, "little") + header
    for name in order:
        yield bytes(tensor_bytes(tensors[name]))


def read_tensors(raw: bytes) -> tuple[dict[str, torch.Tensor], dict[str, JsonValue]]:
    """Return the tensors and the metadata of one file; `FormatError` for other bytes."""
    size = int.from_bytes(raw[:8], "little")
    if not 0 < size <= len(raw) - 8:
        raise _bad("its header is cut")
    header = parse_json(
        raw[8 : 8 + size].rstrip(b" "),
        what="checkpoint",
        reason=Reason.CHECKPOINT_MISMATCH,
        limits=_HEADER_LIMITS,
    )
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise _bad("it has no metadata")
    try:
        return load(raw), metadata
    except SafetensorError:
        raise _bad("it is no safetensors file") from None


def _bad(why: str) -> FormatError:
    return FormatError(
        f"checkpoint: {why}", reason=Reason.CHECKPOINT_MISMATCH, clause="training.md §7.2"
    )
