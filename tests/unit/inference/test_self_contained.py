"""Folders that lead elsewhere, and honest ones that do not: docs/protocols/weights.md §10."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from confide.errors import FormatError, Reason
from confide.inference.self_contained import MAX_LEAD_BYTES, require_self_contained

if TYPE_CHECKING:
    from collections.abc import Mapping

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def index(*places: Any) -> dict[str, Any]:
    return {
        "metadata": {"total_size": 1},
        "weight_map": {f"w{n}": place for n, place in enumerate(places)},
    }


def judge(files: Mapping[str, Any]) -> list[str]:
    """Return which files were read; `FormatError` where the folder is refused."""
    asked = []

    def read(name: str) -> bytes:
        asked.append(name)
        content = files[name]
        return content if isinstance(content, bytes) else json.dumps(content).encode()

    require_self_contained(tuple(files), read)
    return asked


def refusal(files: Mapping[str, Any]) -> str:
    with pytest.raises(FormatError) as caught:
        judge(files)
    assert caught.value.reason is Reason.MODEL_MISMATCH
    return caught.value.what


HONEST: dict[str, Any] = {
    "config.json": {"model_type": "llama", "_name_or_path": "/home/somebody/checkpoint"},
    "tokenizer_config.json": b'{"model_max_length": 1000000000000000019884624838656}',
    "generation_config.json": b"never read",
    INDEX: index(*SHARDS, SHARDS[0]),
    **dict.fromkeys(SHARDS, b"never read"),
}


def test_a_sharded_model_is_accepted_and_no_shard_is_read() -> None:
    assert judge(HONEST) == ["config.json", INDEX, "tokenizer_config.json"]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"pytorch_model.bin.index.json": index("a.bin"), "a.bin": b""},
        {"model.safetensors.index.fp16.json": index(SHARDS[0])},
        # diffusers: relative to the index.
        {"unet/diffusion_pytorch_model.safetensors.index.json": index("a"), "unet/a": b""},
        {"deep.index.json": index("shards/a"), "shards/a": b""},
        {"config.json": {"transformers_weights": None, "speculators_config": None}},
        {"config.json": {"transformers_weights": SHARDS[0]}},
        {"config.json": {"configuration_files": ["config.5.0.json"]}, "config.5.0.json": {}},
        {"tokenizer_config.json": {"fast_tokenizer_files": ["t.1.json"]}, "t.1.json": b""},
        {"processor_config.json": {"processor_class": "P", "audio_tokenizer": None}},
        {"modules.json": [{"path": ""}, {"path": "1_Pooling"}]},
        # Adapters that are loaded by those alone who are told to.
        {"vision-lora/adapter_config.json": {"base_model_name_or_path": "/"}},
        {"index.json": b"of something else", "my_config.json": b"", "adapter_config.json.md": b""},
    ],
)
def test_a_folder_that_names_its_own_files_is_accepted(more: dict[str, Any]) -> None:
    judge(HONEST | more)


PLACES: list[Any] = [
    "../other/model.safetensors",
    "/other/model.safetensors",
    "missing.safetensors",
    f"./{SHARDS[0]}",
    f"sub/../{SHARDS[0]}",
    f"../folder/{SHARDS[0]}",
    ".git/a",
    ".gitignore",
    ".",
    "",
    1,
    [SHARDS[0]],
]
# Who names a file, and how.
NAMERS: list[tuple[str, Any]] = [
    (INDEX, lambda place: index(SHARDS[0], place)),
    ("pytorch_model.bin.index.json", index),
    ("model.safetensors.index.fp16.json", index),
    ("odd.safetensors.index.json", index),
    ("config.json", lambda place: {"transformers_weights": place}),
    ("config.5.0.json", lambda place: {"transformers_weights": place}),
    ("config.json", lambda place: {"configuration_files": [place]}),
    ("tokenizer_config.json", lambda place: {"fast_tokenizer_files": ["tokenizer.json", place]}),
]


@pytest.mark.parametrize("place", PLACES, ids=repr)
@pytest.mark.parametrize(("name", "naming"), NAMERS)
def test_a_file_that_names_what_was_not_measured_is_refused(
    name: str, naming: Any, place: Any
) -> None:
    # What is left out of a measurement may lie there all the same.
    beside = {".git/a": b"", ".gitignore": b"", "tokenizer.json": b""}
    assert "names a file that is not in the folder" in refusal(
        HONEST | beside | {name: naming(place)}
    )


@pytest.mark.parametrize(("name", "naming"), NAMERS)
def test_deeper_down_it_is_refused_too(name: str, naming: Any) -> None:
    beside = {"sub/tokenizer.json": b"", f"sub/{SHARDS[0]}": b""}
    said = refusal(HONEST | beside | {f"sub/{name}": naming("../../other")})
    assert said.startswith(f"'sub/{name}'")
    assert "names a file that is not in the folder" in said


def test_what_is_measured_below_and_left_out_at_the_top_is_refused() -> None:
    """An index below is resolved at the top by some, where nobody measured `.git`."""
    files = {"sub/odd.safetensors.index.json": index(".git/a"), "sub/.git/a": b"", ".git/a": b""}
    assert "names a file that is not in the folder" in refusal(HONEST | files)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("adapter_config.json", {}, "merge it in, or remove it"),
        ("audio_tokenizer_config.json", {}, "names another model: remove it"),
        ("processor_config.json", {"audio_tokenizer": {}}, "audio_tokenizer names another model"),
        ("config.json", {"speculators_config": {}}, "speculators_config names another model"),
        ("config.9.json", {"speculators_config": {}}, "speculators_config names another model"),
        ("config.json", {"configuration_files": "config.5.0.json"}, "is no list"),
        ("tokenizer_config.json", {"fast_tokenizer_files": {}}, "is no list"),
        ("tokenizer_config.json", [], "is no object"),
        (INDEX, [], "is no object"),
        (INDEX, {}, "without weight_map"),
        (INDEX, {"weight_map": [SHARDS[0]]}, "without weight_map"),
        (INDEX, {"weight_map": {"a": None}}, "names a file that is not in the folder"),
        (INDEX, b"", "no JSON"),
        (INDEX, b"\xff", "no JSON"),
        (INDEX, b'{"weight_map":{},"weight_map":{}}', "a member twice"),
        (INDEX, b'{"weight_map":{"a":"../x","a":"%b"}}' % SHARDS[0].encode(), "a member twice"),
        (INDEX, b"[" * 100_000, "nested deeper"),
        (INDEX, b" " * (MAX_LEAD_BYTES + 1), "longer than"),
        ("modules.json", {}, "no list of modules"),
        ("modules.json", ["a"], "no path within"),
        ("modules.json", [{"path": None}], "no path within"),
        ("modules.json", [{"path": ""}, {"path": "../other"}], "no path within"),
        ("modules.json", [{"path": "/other"}], "no path within"),
        ("modules.json", [{"path": "a/../../other"}], "no path within"),
        ("modules.json", [{"path": ".git"}], "no path within"),
    ],
)
def test_what_leads_elsewhere_or_says_nothing_is_refused(name: str, content: Any, why: str) -> None:
    said = refusal(HONEST | {name: content})
    assert said.startswith(f"'{name}': ")
    assert why in said


def test_an_adapter_without_a_model_is_refused() -> None:
    """Its base would be loaded from wherever it says."""
    files = {"adapter_config.json": {"base_model_name_or_path": "/other"}, "a.safetensors": b""}
    assert "adapter" in refusal(files)


def test_a_number_of_any_size_is_read_quickly() -> None:
    judge(HONEST | {INDEX: b'{"n":%b,"weight_map":{}}' % (b"9" * 1_000_000)})
