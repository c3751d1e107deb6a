"""The loop: the same job gives the same bits, and they are those of a plain PEFT loop."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from training_jobs import (
    chat_rows,
    pair_rows,
    text_rows,
    training_job,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from confide.errors import ConfigurationError, Unavailable
from confide.trainer.loop import TorchTrainer
from confide.training.chain import chain_start, chain_step
from confide.training.seeds import ADAPTER_STEP, step_seed
from confide.training.steplog import LoggedStep, verify_step_log

if TYPE_CHECKING:
    from pathlib import Path

    from confide.training.chain import StepRecord
    from confide.training.job import TrainingJob

DROPOUT = "micro_batch_size = 3\ngradient_accumulation_steps = 2\nlora_dropout = 0.1\n"
PRIVATE = (
    "micro_batch_size = 4\n[privacy]\nnoise_multiplier = 0.8\nmax_grad_norm = 0.5\ndelta = 1e-4\n"
)
JOBS: dict[str, tuple[str, Any]] = {
    "sft lora": (DROPOUT, chat_rows),
    "sft lora bf16": (DROPOUT + 'precision = "bf16"\n', chat_rows),
    "sft packed": (DROPOUT + "sample_packing = true\n", text_rows),
    "sft full": ('micro_batch_size = 4\nadapter = "full"\nweight_decay = 0.1\n', chat_rows),
    "sft sgd": ('micro_batch_size = 4\noptimizer = "sgd"\n', chat_rows),
    "dpo lora": (DROPOUT + 'method = "dpo"\n', pair_rows),
    "dpo full bf16": ('method = "dpo"\nadapter = "full"\nprecision = "bf16"\n', pair_rows),
    "private": (PRIVATE, text_rows),
}


def run(
    folder: Path, job: TrainingJob, *, threads: int = 1
) -> tuple[TorchTrainer, list[StepRecord], bytes]:
    """Run a whole job; return its trainer, its records and its head."""
    trainer = TorchTrainer(folder, threads=threads)
    prepared = trainer.prepare(job)
    link = chain_start(prepared.plan.digest)
    records = []
    for _ in range(prepared.steps):
        records.append(trainer.run_step())
        link = chain_step(link, records[-1])
    return trainer, records, link


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("model", ["tiny", "gpt2"])
def test_every_kind_of_job_ends_at_one_digest(
    name: str, model: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(model)
    toml, rows = JOBS[name]
    job = training_job(folder, toml, rows(20))
    trainer, records, head = run(folder, job)
    again, _, second = run(folder, job)
    assert second == head
    assert again.state_digest() == trainer.state_digest() == records[-1].state
    log = [LoggedStep(record, trainer.batch(record.step)) for record in records]
    verify_step_log(
        log,
        recipe=job.recipe,
        plan=trainer.prepared.plan,
        root=job.data.root,
        rows=20,
        dataset_salt=job.data.salt,
        head=head,
    )


@pytest.mark.parametrize(
    "name", ["sft lora bf16", "sft full", "dpo lora", "dpo full bf16", "private"]
)
def test_an_evaluation_leaves_no_trace(name: str, tiny: Path) -> None:
    toml, rows = JOBS[name]
    job = training_job(tiny, f"val_set_size = 4\nmax_steps = 4\n{toml}", rows(20))
    _, records, head = run(tiny, job)
    trainer = TorchTrainer(tiny)
    link = chain_start(trainer.prepare(job).plan.digest)
    found = []
    for _ in records:
        link = chain_step(link, trainer.run_step())
        generator, modules = torch.get_rng_state(), modes(trainer)
        found.append(trainer.evaluate(base=False))
        assert found[-1] == trainer.evaluate(base=False)
        assert torch.equal(generator, torch.get_rng_state())
        assert modes(trainer) == modules
    assert link == head
    assert trainer.state_digest() == records[-1].state
    assert None not in found


def modes(trainer: TorchTrainer) -> list[bool]:
    """Which modules train: dropout is in them."""
    return [module.training for module in trainer._policy.model.modules()]


def test_nothing_is_evaluated_on_the_way_where_nothing_is_held_out(tiny: Path) -> None:
    job = training_job(tiny, "eval_steps = 2\n", chat_rows(4))
    with pytest.raises(ConfigurationError, match="eval_steps: nothing is held out"):
        TorchTrainer(tiny).prepare(job)


def test_a_loss_on_held_out_rows_that_is_not_finite_ends_the_job(tiny: Path) -> None:
    trainer = TorchTrainer(tiny)
    trainer.prepare(training_job(tiny, "val_set_size = 2\n", chat_rows(6)))
    trainer.run_step()
    with torch.no_grad():
        for parameter in trainer._policy.parameters.values():
            parameter.fill_(float("inf"))
    with pytest.raises(Unavailable, match="held-out rows after step 1 is not finite"):
        trainer.evaluate(base=False)


@pytest.mark.parametrize(
    "repeats", [pytest.param(10, marks=pytest.mark.slow, id="ten"), pytest.param(2, id="two")]
)
def test_runs_agree_and_so_do_threads(tiny: Path, repeats: int) -> None:
    job = training_job(tiny, DROPOUT, chat_rows(12))
    heads = {run(tiny, job, threads=1 + number % 2)[2] for number in range(repeats)}
    assert len(heads) == 1


def test_what_decides_the_result_is_in_the_plan(tiny: Path, gpt2: Path) -> None:
    """Another seed, row, rate or model is another plan, and another result."""
    job = training_job(tiny, DROPOUT, chat_rows(12))
    one_more = training_job(tiny, DROPOUT, chat_rows(13))
    jobs = [
        (tiny, job),
        (tiny, replace(job, recipe=replace(job.recipe, seed=43))),
        (tiny, replace(job, recipe=replace(job.recipe, learning_rate=0.010_01))),
        (tiny, one_more),
        (gpt2, training_job(gpt2, DROPOUT, chat_rows(12))),
    ]
    heads = {run(folder, each)[2] for folder, each in jobs}
    states = {run(folder, each)[1][-1].state for folder, each in jobs}
    assert len(heads) == len(states) == len(jobs)


def plain_peft(folder: Path, trainer: TorchTrainer, job: TrainingJob, steps: int) -> list[float]:
    """The loop that everybody writes: transformers' loss and scheduler, PEFT, torch's AdamW."""
    recipe, lora = job.recipe, job.recipe.lora
    assert lora is not None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plan = trainer.prepared.plan.digest
    torch.manual_seed(step_seed(plan, ADAPTER_STEP))
    model = get_peft_model(
        base,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="all-linear",
        ),
    )
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=recipe.learning_rate, weight_decay=0
    )
    scheduler = get_scheduler("linear", optimizer, recipe.warmup_steps, steps)
    rows = training_job(folder, "", chat_rows(len(job.data.rows))).data.rows
    assert rows == job.data.rows
    messages = [row["messages"] for row in chat_rows(len(rows))]
    model.train()
    losses = []
    for step in range(1, steps + 1):
        micros = []
        for micro in trainer.batch(step):
            texts = [messages[row] for ((row, _),) in micro]
            whole = [tokenizer.apply_chat_template(m, tokenize=True)["input_ids"] for m in texts]
            asked = [
                tokenizer.apply_chat_template(m[:1], add_generation_prompt=True, tokenize=True)[
                    "input_ids"
                ]
                for m in texts
            ]
            padded = tokenizer.pad({"input_ids": whole}, return_tensors="pt")
            labels = padded["input_ids"].clone()
            labels[padded["attention_mask"] == 0] = -100
            for row, prompt in enumerate(asked):
                labels[row, : len(prompt)] = -100
            micros.append((padded, labels))
        count = sum(int((labels != -100).sum()) for _, labels in micros)
        total = 0.0
        for number, (padded, labels) in enumerate(micros):
            torch.manual_seed(step_seed(plan, step, number))
            loss = model(**padded, labels=labels, num_items_in_batch=count).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


@pytest.mark.parametrize("model", ["tiny", "gpt2"])
def test_losses_are_those_of_a_plain_peft_loop_bit_for_bit(
    model: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(model)
    toml = (
        DROPOUT + 'lr_scheduler = "linear"\nwarmup_steps = 3\nnum_epochs = 3\nmax_grad_norm = 0.2'
    )
    job = training_job(folder, toml, chat_rows(25))
    trainer, records, _ = run(folder, job)
    assert max(record.grad_norm for record in records) > 0.2, "nothing was clipped"
    losses = [record.loss for record in records]
    assert losses == plain_peft(folder, trainer, job, len(records))
    assert losses[-1] < losses[0]


def test_a_tuned_model_is_better_on_rows_it_never_saw(tiny: Path) -> None:
    toml = "micro_batch_size = 4\nval_set_size = 8\nnum_epochs = 6\n"
    trainer, _, _ = run(tiny, training_job(tiny, toml, chat_rows(48)))
    base, tuned = trainer.evaluate(base=True), trainer.evaluate(base=False)
    assert base is not None
    assert tuned is not None
    assert base.rows == tuned.rows == 8
    assert tuned.loss < base.loss - 0.5
    assert tuned.accuracy > base.accuracy
    # Looking changes nothing, and gives the same again.
    assert trainer.evaluate(base=True) == base
    assert trainer.evaluate(base=False) == tuned


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_preferences_are_learnt(tiny: Path, adapter: str) -> None:
    toml = f'method = "dpo"\nadapter = "{adapter}"\nmicro_batch_size = 4\nnum_epochs = 3\n'
    job = training_job(tiny, toml, pair_rows(24), apart=pair_rows(30)[24:])
    trainer, records, _ = run(tiny, job)
    # Before the first change both models are one: -log sigma(0).
    assert records[0].loss == pytest.approx(0.693147, abs=1e-6)
    base, tuned = trainer.evaluate(base=True), trainer.evaluate(base=False)
    assert base is not None
    assert tuned is not None
    assert base.loss == pytest.approx(0.693147, abs=1e-6)
    assert tuned.loss < base.loss
    assert tuned.accuracy == 1.0


def test_validation_rows_are_judged_and_never_trained_on(tiny: Path) -> None:
    job = training_job(tiny, "val_set_size = 4\n", text_rows(12), apart=text_rows(20)[12:])
    trainer, records, _ = run(tiny, job)
    found = trainer.evaluate(base=False)
    assert found is not None
    assert found.rows == 4 + 8
    trained = {
        row for step in range(1, len(records) + 1) for ((row, _),) in _sequences(trainer, step)
    }
    assert trained.isdisjoint(trainer.prepared.held_out)
    assert trained | set(trainer.prepared.held_out) == set(range(12))
    assert trainer.prepared.plan.validation == job.validation.digest  # type: ignore[union-attr]


def _sequences(trainer: TorchTrainer, step: int) -> list[Any]:
    return [packed for micro in trainer.batch(step) for packed in micro]


def test_nothing_to_judge_is_no_judgement(tiny: Path) -> None:
    trainer = TorchTrainer(tiny)
    trainer.prepare(training_job(tiny, "", text_rows(3)))
    assert trainer.evaluate(base=True) is None


def test_steps_that_lead_nowhere_end_the_job(tiny: Path) -> None:
    toml = 'optimizer = "sgd"\nmax_grad_norm = 1e6\nadapter = "full"\nmax_steps = 200\n'
    job = training_job(tiny, toml, text_rows(8))
    wild = replace(job, recipe=replace(job.recipe, learning_rate=1e30))
    with pytest.raises(Unavailable, match="is not finite: a lower learning_rate may help"):
        run(tiny, wild)


@pytest.mark.parametrize(
    ("toml", "rows", "said"),
    [
        ('method = "dpo"\n', text_rows, "method dpo does not train on completion rows"),
        ("", pair_rows, "method sft does not train on preference rows"),
        ("val_set_size = 6\n", text_rows, "val_set_size holds out 6 of 6 rows"),
        ('lora_target_modules = ["nowhere"]\n', text_rows, "the model has none of them"),
    ],
)
def test_a_job_that_makes_no_sense_does_not_begin(
    tiny: Path, toml: str, rows: Any, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        TorchTrainer(tiny).prepare(training_job(tiny, toml, rows(6)))


def test_a_row_longer_than_the_model_reads_is_refused(gpt2: Path) -> None:
    long = [{"prompt": "red " * 300, "completion": " blue"}]
    job = training_job(gpt2, "", long)
    roomy = replace(job, recipe=replace(job.recipe, sequence_len=4096))
    with pytest.raises(ConfigurationError, match="the model reads at most 256"):
        TorchTrainer(gpt2).prepare(roomy)


def test_the_environment_is_told_and_names_no_machine(tiny: Path) -> None:
    facts = TorchTrainer(tiny, threads=2).prepare(training_job(tiny, "", text_rows(2))).environment
    assert facts["isa"]
    assert facts["threads"] == 2
    assert facts["deterministic"] is True
    assert facts["libraries"]["torch"].startswith(torch.__version__.split("+")[0])  # type: ignore[call-overload,index,union-attr]
    assert str(tiny) not in str(facts)


def test_other_rows_of_another_salt_are_the_same_training(tiny: Path) -> None:
    """The salt hides rows; without privacy it decides nothing else."""
    job = training_job(tiny, "", text_rows(6))
    other = replace(job, data=replace(job.data, salt=bytes(32)))
    (_, records, head), (_, others, other_head) = run(tiny, job), run(tiny, other)
    assert [r.loss for r in records] == [r.loss for r in others]
    assert records[-1].state == others[-1].state
    assert head != other_head
