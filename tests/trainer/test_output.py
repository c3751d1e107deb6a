"""The result as files: PEFT and transformers load them, and they are what was trained."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel
from tiny_models import make_model
from training_jobs import chat_rows, text_rows, training_job
from transformers import AutoModelForCausalLM, AutoTokenizer

from confide.adapters.weights_dir import measure_weights
from confide.errors import ConfigurationError, FormatError, Reason
from confide.trainer.folder import load_model, stored_type, tokenizer_digest
from confide.trainer.loop import TorchTrainer
from confide.trainer.output import merged_files

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TOML = "micro_batch_size = 4\nnum_epochs = 2\n"
IDS = torch.tensor([[2, 17, 40, 80, 3, 9]])


def trained(folder: Path, toml: str = TOML) -> TorchTrainer:
    trainer = TorchTrainer(folder)
    prepared = trainer.prepare(training_job(folder, toml, chat_rows(12)))
    for _ in range(prepared.steps):
        trainer.run_step()
    return trainer


def written(files: Iterable[tuple[str, bytes]], folder: Path) -> Path:
    folder.mkdir()
    for name, data in files:
        (folder / name).write_bytes(data)
    return folder


def scores(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("name", ["tiny", "gpt2"])
def test_peft_loads_the_adapter_and_transformers_the_whole(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base: Path = request.getfixturevalue(name)
    trainer = trained(base)
    adapter = written(trainer.output("adapter"), tmp_path / "adapter")
    merged = written(trainer.output("merged"), tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = scores(plain)
    tuned = scores(PeftModel.from_pretrained(plain, adapter))
    assert not torch.allclose(tuned, before, atol=1e-2)
    whole = scores(AutoModelForCausalLM.from_pretrained(merged))
    assert torch.allclose(whole, tuned, atol=1e-4)
    said = AutoTokenizer.from_pretrained(merged)("red blue")["input_ids"]
    assert said == AutoTokenizer.from_pretrained(base)("red blue")["input_ids"]
    assert tokenizer_digest(merged) == tokenizer_digest(base)


def test_the_same_state_gives_the_same_files_and_no_path(tiny: Path, tmp_path: Path) -> None:
    one, two = trained(tiny), trained(tiny)
    for kind in ("adapter", "merged"):
        files, again = dict(one.output(kind)), dict(two.output(kind))
        assert files == again
        assert all(str(tiny).encode() not in data for data in files.values())
        first = measure_weights(written(files.items(), tmp_path / f"{kind}1"))
        second = measure_weights(written(again.items(), tmp_path / f"{kind}2"))
        assert first.digest == second.digest
    config = json.loads(files_of(one)["adapter_config.json"])
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == sorted(config["target_modules"])


def files_of(trainer: TorchTrainer) -> dict[str, bytes]:
    return dict(trainer.output("adapter"))


def test_a_full_training_has_no_adapter_and_gives_the_model(tiny: Path, tmp_path: Path) -> None:
    trainer = trained(tiny, TOML + 'adapter = "full"\n')
    with pytest.raises(ValueError, match="a full training has no adapter"):
        list(trainer.output("adapter"))
    merged = written(trainer.output("merged"), tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(merged)
    assert torch.equal(scores(whole), scores(trainer._policy.model))


def test_what_is_stored_in_half_is_given_back_in_half(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(base)
    assert stored_type(base) is torch.bfloat16
    merged = written(trained(base).output("merged"), tmp_path / "merged")
    assert stored_type(merged) is torch.bfloat16
    loaded = AutoModelForCausalLM.from_pretrained(merged)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert (merged / "config.json").read_bytes() == (base / "config.json").read_bytes()
    # What the adapter does not touch is as it was.
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(
        loaded.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight
    )


def test_a_large_model_is_split_as_transformers_does(tiny: Path, tmp_path: Path) -> None:
    trainer = trained(tiny)
    policy = trainer._policy
    whole = written(merged_files(policy, tiny), tmp_path / "whole")
    split = written(merged_files(policy, tiny, shard_bytes=40_000), tmp_path / "split")
    shards = sorted(path.name for path in split.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (whole, split)]
    assert torch.equal(*map(scores, models))


def test_pickles_code_and_holes_are_refused(tiny: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    model = AutoModelForCausalLM.from_pretrained(tiny)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    (pickled / "config.json").write_bytes((tiny / "config.json").read_bytes())
    with pytest.raises(ConfigurationError, match="do not load from safetensors alone"):
        load_model(pickled, torch.float32)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    ran = tmp_path / "ran"
    config = {
        "model_type": "own",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    }
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    with pytest.raises(ConfigurationError, match="model folder"):
        load_model(foreign, torch.float32)
    with pytest.raises(ConfigurationError, match="not one of a known model"):
        stored_type(foreign)
    assert not ran.exists()


def test_a_model_with_a_tensor_missing_is_not_filled_up(tiny: Path, tmp_path: Path) -> None:
    trainer = trained(tiny)
    files = dict(trainer.output("merged"))
    folder = written(files.items(), tmp_path / "holed")
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = {k: v for k, v in model.state_dict().items() if "layers.1.mlp.up_proj" not in k}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(ConfigurationError, match="tensors of the model are not in it"):
        load_model(folder, torch.float32)


def checkpoint(trainer: TorchTrainer) -> bytes:
    return b"".join(trainer.save())


def test_a_checkpoint_is_read_by_anybody_and_says_its_state(tiny: Path) -> None:
    """docs/protocols/training.md 7.1, with nothing but the bytes."""
    trainer = trained(tiny)
    raw = checkpoint(trainer)
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    assert header.pop("__metadata__") == {
        "plan": trainer.prepared.plan.digest.hex(),
        "step": str(trainer.step),
    }
    rows = sorted(
        [
            name,
            each["dtype"],
            each["shape"],
            sha256(raw[8 + size :][slice(*each["data_offsets"])]).hexdigest(),
        ]
        for name, each in header.items()
    )
    plain = json.dumps(rows, separators=(",", ":")).encode()
    assert sha256(b"confide/training-state/v1\0" + plain).digest() == trainer.state_digest()
    assert any(name.endswith("/exp_avg_sq") for name in header)
    assert any(name.startswith("parameter/") for name in header)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"step":"6"', b'"step":"x"', "its step is no number"),
        (b"/exp_avg_sq", b"/exp_avg_xx", "a tensor that is none of this training"),
        (b"parameter/base", b"parameter/bose", "a tensor that is none of this training"),
        (b'"F32"', b'"I32"', "another type or shape"),
        (b"__metadata__", b"__metadota__", "no metadata"),
        (b'{"', b'["', "checkpoint: not JSON"),
    ],
)
def test_a_checkpoint_of_other_things_changes_nothing(
    tiny: Path, old: bytes, new: bytes, said: str
) -> None:
    trainer = trained(tiny)
    raw = checkpoint(trainer)
    assert old in raw
    before = trainer.state_digest()
    with pytest.raises(FormatError, match=said) as refused:
        trainer.load(raw.replace(old, new))
    assert refused.value.reason is Reason.CHECKPOINT_MISMATCH
    assert (trainer.state_digest(), trainer.step) == (before, 6)
    for cut in (b"", raw[:7], raw[:200], raw[:-1]):
        with pytest.raises(FormatError):
            trainer.load(cut)
    trainer.load(raw)
    assert trainer.state_digest() == before


def test_rows_without_a_conversation_need_no_template(tiny: Path) -> None:
    plan = TorchTrainer(tiny).prepare(training_job(tiny, "", text_rows(3))).plan
    assert plan.template is None
    assert TorchTrainer(tiny).prepare(training_job(tiny, "", chat_rows(3))).plan.template
