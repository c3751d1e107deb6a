"""The training loop beside the loop that everybody writes: what attesting a step costs.

Both compute the same micro batches with the same PEFT model, one thread, in turns: attested, plain,
attested (A/B/A), ten steps each, of which one has a state digest; to which comes a tenth of a
sealed and synced checkpoint: both as often as by default. Processor time; the median of the rounds.
"""
# ruff: noqa: PLC0415 - torch is not installed everywhere, and takes seconds to import

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.rows import Row, absent, row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROUNDS = 5
_STEPS = 10
_KEY = bytes(range(32))
_NAME = "training: attested step / plain PEFT step, LoRA, one thread"
_END = "<|end|>"
_WORDS = "the shop opens at nine and closes at six red blue green"


def training_rows() -> Iterator[Row]:
    """Yield the rows of this group."""
    try:
        import torch
        from peft import LoraConfig  # noqa: F401
    except ImportError:
        yield absent(_NAME, "x", "torch and peft are not installed")
        return
    before = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory() as place:
            yield from _overhead(make_model(Path(place) / "model"), Path(place))
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(mode=False)


def make_model(folder: Path) -> Path:
    """Write a Llama of nine million parameters and a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {_END: 0} | {char: at for at, char in enumerate(alphabet, start=1)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=_END).save_pretrained(folder)
    torch.manual_seed(1)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=512,
        )
    ).save_pretrained(folder)
    return folder


def _overhead(folder: Path, place: Path) -> Iterator[Row]:
    from confide.trainer.checkpoint_files import CheckpointFiles
    from confide.trainer.loop import TorchTrainer
    from confide.training.chain import chain_start, chain_step

    job = make_job()
    trainer = TorchTrainer(folder, threads=1)
    started = time.perf_counter()
    prepared = trainer.prepare(job)
    spent = time.perf_counter() - started
    yield row(
        "training: rows as tokens, and the model loaded", len(job.data.rows) / spent, "rows/s"
    )
    plain = _plain(folder, trainer)
    plan = prepared.plan.digest
    files = CheckpointFiles(place, plan=plan, key=_KEY, session=_KEY)
    link = chain_start(plan)

    def attested() -> None:
        nonlocal link
        for _ in range(_STEPS):
            link = chain_step(link, trainer.run_step())

    def checkpoint() -> None:
        state = trainer.state_digest()
        files.write(trainer.step, trainer.save(), chain=link, state=state)

    attested()
    plain()
    ratios, seconds = [], []
    for _ in range(_ROUNDS):
        first, base, last = (_cpu(arm) for arm in (attested, plain, attested))
        ratios.append(((first + last) / 2 + _cpu(checkpoint) / 10) / base)
        seconds.append(base / _STEPS)
    ratio = statistics.median(ratios)
    yield Row(
        _NAME,
        float(f"{ratio:.4f}"),
        "x",
        budget="<= 1.02 of the plain loop, steps of 200 ms and more",
        met=ratio <= 1.02 if statistics.median(seconds) >= 0.2 else False,
    )
    yield row("training: lowest of the rounds", min(ratios), "x")
    yield row("training: highest of the rounds", max(ratios), "x")
    yield row("training: a plain step, processor time", statistics.median(seconds) * 1000, "ms")


def make_job(more: str = "") -> Any:
    """Return a job of short texts; `more` goes into its recipe."""
    from confide.training.dataset import commit_rows
    from confide.training.job import TrainingData, TrainingJob
    from confide.training.recipe_file import parse_recipe_toml
    from confide.training.rows import RowReader, require_rows

    lines = b"".join(
        b'{"prompt": "%d %s", "completion": " %s"}\n' % (at, _WORDS.encode(), _WORDS.encode())
        for at in range(64)
    )
    rows = list(require_rows(RowReader().read([lines])))
    commitment = commit_rows(rows, _KEY)
    data = TrainingData(
        commitment.kind, commitment.digest, commitment.root, _KEY, [each.record for each in rows]
    )
    recipe = parse_recipe_toml(
        'base_model = "bench"\nlearning_rate = 1e-4\nmicro_batch_size = 4\nlora_r = 16\n'
        f"gradient_accumulation_steps = 2\nmax_steps = 1000\n{more}"
    )
    return TrainingJob(recipe, data, None, hashlib.sha256(b"bench").digest())


def _plain(folder: Path, trainer: Any) -> Callable[[], None]:
    """Return ten steps of the plain loop, over the same micro batches and an adapter of its own."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    shape = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules="all-linear")
    model = get_peft_model(base, shape)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    step = 0

    def steps() -> None:
        nonlocal step
        for _ in range(_STEPS):
            step += 1
            # The collator of the trainer: both arms make their tensors in the same way.
            inputs = [trainer._collator.texts(micro) for micro in trainer.batch(step)]  # noqa: SLF001
            count = sum(int((each.labels != -100).sum()) for each in inputs)
            for each in inputs:
                loss = model(
                    input_ids=each.ids,
                    attention_mask=each.mask,
                    labels=each.labels,
                    num_items_in_batch=count,
                ).loss
                loss.backward()
                loss.item()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return steps


def _cpu(arm: Callable[[], None]) -> float:
    before = time.process_time()
    arm()
    return time.process_time() - before
