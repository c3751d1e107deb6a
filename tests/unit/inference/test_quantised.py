"""How weights are quantised, from what lies in their directory: docs/protocols/weights.md §6."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import FormatError, Reason
from confide.inference.gguf import gguf_types
from confide.inference.quantised import derive_quantisation, safetensors_types, tensor_types
from confide.wire.json import Members
from confide.wire.quantisation import Quantisation, read_quantisation


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(types: list[int], pairs: bytes = b"", count: int = 0, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(types), count) + pairs
    for number in types:
        head += text("blk.0.weight") + struct.pack("<I2QIQ", 2, 8, 8, number, 0)
    return head


def safetensors(header: Any) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + b"\x00" * 8


_PAIRS = (
    text("general.architecture") + struct.pack("<I", 8) + text("llama")
    + text("llama.block_count") + struct.pack("<II", 4, 32)
    + text("general.big") + struct.pack("<Id", 12, 1.5)
    + text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    + text("tokenizer.ggml.scores") + struct.pack("<IIQ2f", 9, 6, 2, 1.0, 2.0)
)  # fmt: skip


def test_a_gguf_names_the_types_of_its_tensors() -> None:
    assert gguf_types(gguf([12, 14, 0, 12], _PAIRS, 5)) == {"Q4_K", "Q6_K", "F32"}
    assert gguf_types(gguf([77], version=2)) == {"ggml-77"}


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_a_gguf_that_is_cut_is_refused(cut: int) -> None:
    whole = gguf([12], _PAIRS, 5)
    with pytest.raises(FormatError):
        gguf_types(whole[: min(cut, len(whole) - 1)])


@pytest.mark.parametrize(
    "raw",
    [
        b"GGML" + gguf([0])[4:],
        gguf([0], version=1),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0),
        gguf([0], text("k") + struct.pack("<I", 99), 1),
        gguf([0], text("k") + struct.pack("<IIQ", 9, 8, 1 << 40), 1),
        gguf([0], text("k") + struct.pack("<IIQIQIQ", 9, 9, 1, 9, 1, 9, 1), 1),
        gguf([0], struct.pack("<Q", 1 << 63), 1),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<I", 99),
    ],
)
def test_a_gguf_of_another_form_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        gguf_types(raw)


@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic_are_read_or_refused(raw: bytes) -> None:
    try:
        gguf_types(b"GGUF" + raw)
    except FormatError:
        return


def test_safetensors_name_the_types_of_their_tensors() -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "BF16", "shape": [1], "data_offsets": [1, 3]},
    }
    assert safetensors_types(safetensors(header)) == {"F8_E4M3", "BF16"}
    assert tensor_types("model.safetensors", safetensors({})) == frozenset()
    assert tensor_types("README.md", b"anything") == frozenset()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 8,
        safetensors({})[:-9],
        safetensors([]),
        safetensors({"a": {}}),
        safetensors({"a": 7}),
        safetensors(b'{"a":{"dtype":"F32"},"a":{"dtype":"F16"}}'),
    ],
)
def test_safetensors_of_another_form_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        safetensors_types(raw)


@pytest.mark.parametrize(
    ("config", "dtypes", "expected"),
    [
        (None, [], Quantisation("none", None, ())),
        ({"dtype": "bfloat16"}, ["BF16", "BF16"], Quantisation("none", None, ("BF16",))),
        (None, ["Q6_K", "F32"], Quantisation("gguf", None, ("F32", "Q6_K"))),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            ["I32", "F16"],
            Quantisation("gptq", 4, ("F16", "I32")),
        ),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            ["F8_E4M3"],
            Quantisation("fp8", 8, ("F8_E4M3",)),
        ),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            [],
            Quantisation("bitsandbytes", 4, ()),
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {
                        "group_0": {
                            "weights": {"num_bits": 4},
                            "input_activations": {"num_bits": 8},
                        }
                    },
                }
            },
            [],
            Quantisation("compressed-tensors", 4, ()),
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {
                        "a": {"weights": {"num_bits": 4}},
                        "b": {"weights": {"num_bits": 8}},
                    },
                }
            },
            [],
            Quantisation("compressed-tensors", None, ()),
        ),
        (
            {"text_config": {"quantization_config": {"quant_method": "mxfp4"}}},
            [],
            Quantisation("mxfp4", 4, ()),
        ),
    ],
)
def test_what_a_directory_says(config: object, dtypes: list[str], expected: Quantisation) -> None:
    raw = None if config is None else json.dumps(config).encode()
    assert derive_quantisation(raw, dtypes) == expected


@pytest.mark.parametrize(
    "config",
    [
        b"[]",
        b'{"a":1,"a":2}',
        b'{"quantization_config": 7}',
        b'{"quantization_config": {}}',
        b'{"quantization_config": {"quant_method": "two words"}}',
        b'{"quantization_config": {"quant_method": "x", "bits": 999}}',
    ],
)
def test_a_configuration_that_says_nothing_clear_is_refused(config: bytes) -> None:
    with pytest.raises(FormatError):
        derive_quantisation(config, [])


def _read(value: Any) -> Quantisation | None:
    members = Members(value, what="event", reason=Reason.LOG_FORMAT)
    return read_quantisation(members)


def test_what_is_written_is_what_is_read() -> None:
    said = Quantisation("awq", 4, ("F16", "I32"))
    assert _read({"quantisation": said.as_json()}) == said
    assert _read({}) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"method": ""},
        {"method": "a b"},
        {"bits": 0},
        {"bits": "4"},
        {"dtypes": ["I32", "F16"]},
        {"dtypes": ["F16", "F16"]},
        {"dtypes": [""]},
        {"more": 1},
    ],
)
def test_another_form_is_refused(changed: dict[str, object]) -> None:
    said = Quantisation("awq", 4, ("F16", "I32")).as_json()
    with pytest.raises(FormatError):
        _read({"quantisation": {**said, **changed}})
