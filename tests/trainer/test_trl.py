"""Beside TRL: another loop over the same rows learns as much. docs/protocols/training.md §9."""

# ruff: noqa: PLC0415 - TRL is not installed everywhere

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from training_jobs import text_rows, training_job

from confide.trainer.loop import TorchTrainer

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("trl", reason="NOT COMPARED WITH TRL: it is not installed")
pytest.importorskip("datasets", reason="NOT COMPARED WITH TRL: datasets is not installed")

TOML = (
    "micro_batch_size = 4\ngradient_accumulation_steps = 2\nnum_epochs = 6\nval_set_size = 16\n"
    'lr_scheduler = "linear"\nwarmup_steps = 2\n'
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's own, of whatever it stands on
def test_the_loss_on_held_out_rows_is_within_a_per_cent(tiny: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = text_rows(112)
    ours = TorchTrainer(tiny)
    prepared = ours.prepare(training_job(tiny, TOML, rows))
    for _ in range(prepared.steps):
        ours.run_step()
    base, found = ours.evaluate(base=True), ours.evaluate(base=False)
    assert base is not None
    assert found is not None

    apart = set(prepared.held_out)
    sets = [
        Dataset.from_list([row for at, row in enumerate(rows) if (at in apart) == held])
        for held in (False, True)
    ]
    config = SFTConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=6,
        learning_rate=1e-2,
        weight_decay=0.0,
        lr_scheduler_type="linear",
        warmup_steps=2,
        max_length=128,
        completion_only_loss=True,
        eos_token="<|end|>",
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        seed=42,
        use_cpu=True,
    )
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    theirs: Any = SFTTrainer(
        model=str(tiny), args=config, train_dataset=sets[0], eval_dataset=sets[1], peft_config=lora
    )
    torch.use_deterministic_algorithms(mode=False)
    theirs.train()
    loss = theirs.evaluate()["eval_loss"]
    assert base.loss - found.loss > 0.5, "nothing was learnt"
    assert found.loss == pytest.approx(loss, rel=0.01)
