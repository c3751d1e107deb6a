"""From what lies in a weights directory to how it is quantised. Pure.

docs/protocols/weights.md §6: the configuration names a method, the tensors name their types. An
engine may quantise again while it loads; no file says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.errors import FormatError, Reason
from confide.inference.gguf import gguf_types
from confide.wire.json import JsonLimits, parse_json
from confide.wire.quantisation import Quantisation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confide.wire.json import JsonValue

__all__ = ["derive_quantisation", "safetensors_types", "tensor_types"]

_CONFIG_LIMITS = JsonLimits(max_bytes=4 * 1024 * 1024, max_depth=32)
_HEADER_LIMITS = JsonLimits(max_bytes=64 * 1024 * 1024, max_depth=8)
_CLAUSE = "docs/protocols/weights.md §6"
# From: the names of bit counts in `quantization_config`, transformers and compressed-tensors.
_BIT_NAMES = ("bits", "num_bits", "w_bit", "weight_bits")
_METHOD_BITS = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4, "nvfp4": 4}


def tensor_types(name: str, head: bytes) -> frozenset[str]:
    """
    Return the element types in a weights file that begins with `head`; none for other files.

    Raises `FormatError` for a file that is not what its `name` says.
    """
    if name.endswith(".safetensors"):
        return safetensors_types(head)
    return gguf_types(head) if name.endswith(".gguf") else frozenset()


def safetensors_types(head: bytes) -> frozenset[str]:
    """Return the element types that a safetensors header names. Raises `FormatError`."""
    size = int.from_bytes(head[:8], "little")
    if len(head) < 8 or not 0 < size <= min(len(head) - 8, _HEADER_LIMITS.max_bytes):
        raise _bad("a safetensors header that is cut, or too long")
    value = parse_json(
        head[8 : 8 + size],
        what="safetensors header",
        reason=Reason.UPSTREAM_FORMAT,
        limits=_HEADER_LIMITS,
    )
    if not isinstance(value, dict):
        raise _bad("a safetensors header that is no object")
    found = set()
    for name, tensor in value.items():
        if name == "__metadata__":
            continue
        dtype = tensor.get("dtype") if isinstance(tensor, dict) else None
        if not isinstance(dtype, str):
            raise _bad("a tensor without a type")
        found.add(dtype)
    return frozenset(found)


def derive_quantisation(config: bytes | None, dtypes: Iterable[str]) -> Quantisation:
    """
    Return what `config.json` (where there is one) and the types of the tensors say.

    Raises `FormatError` for a configuration that is none, or names what is no word.
    """
    method, bits = "none", None
    if config is not None:
        value = parse_json(
            config, what="config.json", reason=Reason.UPSTREAM_FORMAT, limits=_CONFIG_LIMITS
        )
        method, bits = _stated(value)
    types = tuple(sorted(set(dtypes)))
    if method == "none" and any(kind.startswith(("Q", "IQ", "TQ", "MXFP")) for kind in types):
        method = "gguf"
    try:
        return Quantisation(method, bits, types)
    except ValueError as error:
        raise _bad(f"a quantisation that cannot be named: {error}") from error


def _stated(config: JsonValue) -> tuple[str, int | None]:
    if not isinstance(config, dict):
        raise _bad("a config.json that is no object")
    inner = config.get("text_config")
    stated = config.get("quantization_config", config.get("compression_config"))
    if stated is None and isinstance(inner, dict):
        # Models of several parts say it of the part that speaks.
        stated = inner.get("quantization_config")
    if stated is None:
        return "none", None
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    if not isinstance(stated, dict) or not isinstance(method, str):
        raise _bad("a quantization_config without quant_method")
    if stated.get("load_in_4bit") is True:
        return method, 4
    if stated.get("load_in_8bit") is True:
        return method, 8
    return method, _bits(stated, 4) or _METHOD_BITS.get(method)


def _bits(value: JsonValue, depth: int) -> int | None:
    """Return the one number of bits that `value` names for weights; None for none or several."""
    found: set[int] = set()
    waiting: list[tuple[JsonValue, int]] = [(value, depth)]
    while waiting:
        here, left = waiting.pop()
        if not isinstance(here, dict) or left == 0:
            continue
        for name, item in here.items():
            if name in _BIT_NAMES and type(item) is int:
                found.add(item)
            elif name not in ("input_activations", "output_activations", "kv_cache_scheme"):
                waiting.append((item, left - 1))
    return found.pop() if len(found) == 1 else None


def _bad(why: str) -> FormatError:
    return FormatError(why, reason=Reason.UPSTREAM_FORMAT, clause=_CLAUSE)
