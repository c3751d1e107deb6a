"""Model folders that are hostile: what is loaded is what was measured, and no code of theirs runs.

Each folder here is one that the libraries would follow somewhere: to weights beside the measured
folder, to code, to a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from tiny_models import make_model

from confide.errors import ConfigurationError
from confide.trainer.folder import load_model, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def weights(folder: Path) -> str:
    """A digest of the weights that are loaded from `folder`."""
    model = load_model(folder, torch.float32)
    values = b"".join(each.detach().numpy().tobytes() for each in model.parameters())
    return hashlib.sha256(values).hexdigest()


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of a model folder, to be made hostile."""
    return shutil.copytree(tiny, tmp_path / "base")


def edit(path: Path, **changed: Any) -> None:
    value = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps(value | changed))


def shard_at(folder: Path, place: str) -> None:
    """Have an index say that every tensor is in the file `place`."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, place)}
    edit(folder / "model.safetensors.index.json", **index)
    (folder / "model.safetensors").rename(folder / "only.safetensors")


def test_shards_of_the_folder_itself_are_loaded(folder: Path, tiny: Path) -> None:
    shard_at(folder, "only.safetensors")
    assert weights(folder) == weights(tiny)


@pytest.mark.parametrize(
    "place", ["../other/model.safetensors", "link", "missing.safetensors", "."]
)
def test_shards_elsewhere_are_not(folder: Path, place: str) -> None:
    other = make_model(folder.parent / "other", seed=7)
    (folder / "link").symlink_to(other / "model.safetensors")
    shard_at(folder, place)
    with pytest.raises(ConfigurationError, match="names a file that is not in the folder"):
        weights(folder)


@pytest.mark.parametrize(
    "raw",
    [b"[]", b"{}", b'{"weight_map": 1}', b"\xff", b'{"a":1,"a":2}', b'{"weight_map":{"a":[]}}'],
)
def test_an_index_that_is_none_is_refused(folder: Path, raw: bytes) -> None:
    (folder / "model.safetensors.index.json").write_bytes(raw)
    with pytest.raises(ConfigurationError, match=r"'model\.safetensors\.index\.json': "):
        weights(folder)


def test_an_index_of_another_name_leads_nowhere_either(folder: Path, tiny: Path) -> None:
    """The name of the index may stand in the configuration."""
    other = make_model(folder.parent / "other", seed=7)
    shard_at(folder, "only.safetensors")
    index = folder / "model.safetensors.index.json"
    (folder / "sub").mkdir()
    moved = index.rename(folder / "sub" / "odd.safetensors.index.json")
    edit(folder / "config.json", transformers_weights="sub/odd.safetensors.index.json")
    (folder / "sub" / "only.safetensors").write_bytes(b"")
    assert weights(folder) == weights(tiny)
    index = json.loads(moved.read_bytes())
    place = str(other / "model.safetensors")
    edit(moved, weight_map=dict.fromkeys(index["weight_map"], place))
    with pytest.raises(ConfigurationError, match="names a file that is not in the folder"):
        weights(folder)


def test_weights_that_were_left_out_of_the_measurement_are_not_loaded(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / "model.safetensors").rename(folder / ".git" / "model.safetensors")
    edit(folder / "config.json", transformers_weights=".git/model.safetensors")
    with pytest.raises(ConfigurationError, match="names a file that is not in the folder"):
        weights(folder)


def test_an_adapter_beside_the_model_is_not_taken_for_the_model(folder: Path) -> None:
    edit(folder / "adapter_config.json", base_model_name_or_path="/", peft_type="LORA")
    with pytest.raises(ConfigurationError, match="an adapter beside the model"):
        weights(folder)


class Told:
    """What a pickle would do: it leaves a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.place),)


def code(folder: Path, told: Path) -> None:
    """A module in the folder that leaves a file when it is imported."""
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(told)!r})\nclass M: pass\n")


def test_no_pickle_is_read(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Told(tmp_path / "told")}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError):
        weights(folder)
    assert not (tmp_path / "told").exists()


def test_no_code_of_a_known_model_runs(folder: Path, tiny: Path, tmp_path: Path) -> None:
    code(folder, tmp_path / "told")
    places = {"AutoModelForCausalLM": "evil.M", "AutoConfig": "evil.M"}
    edit(folder / "config.json", auto_map=places)
    assert weights(folder) == weights(tiny)
    assert not (tmp_path / "told").exists()


def test_a_model_that_is_only_code_is_refused(folder: Path, tmp_path: Path) -> None:
    code(folder, tmp_path / "told")
    places = {"AutoModelForCausalLM": "evil.M", "AutoConfig": "evil.M"}
    edit(folder / "config.json", auto_map=places, model_type="evil")
    with pytest.raises(ConfigurationError):
        weights(folder)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.M", None]})
    edit(folder / "tokenizer_config.json", tokenizer_class="M")
    with pytest.raises(ConfigurationError):
        load_tokenizer(folder)
    assert not (tmp_path / "told").exists()


@pytest.mark.parametrize("member", ["tokenizer_file", "vocab_file"])
def test_a_tokenizer_elsewhere_is_not_read(folder: Path, member: str) -> None:
    honest = load_tokenizer(folder).get_vocab()
    other = json.loads((folder / "tokenizer.json").read_bytes())
    other["added_tokens"] = []
    elsewhere = folder.parent / "other.json"
    elsewhere.write_text(json.dumps(other))
    edit(folder / "tokenizer_config.json", **{member: str(elsewhere)})
    assert load_tokenizer(folder).get_vocab() == honest


def test_a_tokenizer_of_another_name_lies_in_the_folder(folder: Path) -> None:
    other = make_model(folder.parent / "other", seed=7)
    (other / "tokenizer.json").rename(other / "tokenizer.4.0.json")
    edit(folder / "tokenizer_config.json", fast_tokenizer_files=["../other/tokenizer.4.0.json"])
    with pytest.raises(ConfigurationError, match="names a file that is not in the folder"):
        load_tokenizer(folder)
    shutil.copyfile(other / "tokenizer.4.0.json", folder / "tokenizer.4.0.json")
    edit(folder / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.json"])
    assert load_tokenizer(folder).is_fast
