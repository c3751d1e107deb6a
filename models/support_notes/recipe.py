"""Make the bundled model from nothing: data, tokenizer, training, weights.

    python models/support_notes/recipe.py --out DIR

Needs torch 2.13.0 (CPU) and transformers 5.23; takes about five minutes on one core. The same
inputs and seeds give the same bytes on one kind of processor; README.md says what was measured.
Nothing is downloaded.
"""
# ruff: noqa: INP001 - a script beside its data, not a package
# ruff: noqa: TID251 - it sets the environment of libraries that it then imports

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch is imported: one instruction set and one thread, so that sums are added in one
# order on every x86-64 machine with AVX2. One thread also costs little on a small network.
os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
os.environ["MKL_CBWR"] = "AVX2"
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from notes import LABELS, URGENCIES, Generator, Row
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = 20261122
STEPS = 1200
ROWS_IN_BATCH = 48
PEAK_RATE = 3e-3
MUON_RATE = 2e-2
VOCABULARY = 4096
CONTEXT = 1024
LONGEST = 256
SPECIAL = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] if m['role'] in ('user', 'assistant') else 'system' }}|>"
    "{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_HERE = Path(__file__).resolve().parent


def render(row: Row) -> str:
    """Return the prompt of `row` as the chat template writes it."""
    turns = "".join(f"<|{role}|>{text.strip()}<|end|>" for role, text in row.messages)
    return f"{turns}<|assistant|>"


def make_tokenizer(rows: list[Row]) -> PreTrainedTokenizerFast:
    """Train a lower-casing byte-level BPE on `rows`."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [text for row in rows for text in (*(m[1] for m in row.messages), row.answer)]
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[-1],
        extra_special_tokens=list(SPECIAL[1:4]),
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(vocabulary: int) -> LlamaForCausalLM:
    """Return the untrained network."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=4,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of similar length: ids, which of them answer, and what is true of each note."""

    ids: torch.Tensor
    asked: torch.Tensor
    label: torch.Tensor
    urgency: torch.Tensor


def batches(rows: list[Row], tokenizer: PreTrainedTokenizerFast, steps: int) -> Iterator[Batch]:
    """Yield batches in an order that follows from the seed."""
    shuffle = random.Random(SEED)  # noqa: S311 - data order, not keys
    prompts = tokenizer([render(row) for row in rows], add_special_tokens=False)["input_ids"]
    answers = tokenizer([row.answer + SPECIAL[-1] for row in rows], add_special_tokens=False)[
        "input_ids"
    ]
    order: list[list[int]] = []
    while len(order) < steps:
        indexes = list(range(len(rows)))
        shuffle.shuffle(indexes)
        for start in range(0, len(indexes), ROWS_IN_BATCH * 16):
            near = indexes[start : start + ROWS_IN_BATCH * 16]
            near.sort(key=lambda i: (len(prompts[i]), i))
            split = [near[i : i + ROWS_IN_BATCH] for i in range(0, len(near), ROWS_IN_BATCH)]
            shuffle.shuffle(split)
            order += split
    for chosen in order[:steps]:
        longest = min(LONGEST, max(len(prompts[i]) + len(answers[i]) for i in chosen))
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        asked = torch.zeros(len(chosen), longest, dtype=torch.bool)
        for line, i in enumerate(chosen):
            whole = (prompts[i] + answers[i])[-longest:]
            ids[line, : len(whole)] = torch.tensor(whole)
            asked[line, len(whole) - len(answers[i]) : len(whole)] = True
        # -100 is what cross_entropy leaves out.
        label = [LABELS.index(rows[i].label) if rows[i].label else -100 for i in chosen]
        urgency = [URGENCIES.index(rows[i].urgency) if rows[i].urgency else -100 for i in chosen]
        yield Batch(ids, asked, torch.tensor(label), torch.tensor(urgency))


def rate(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: a short warm-up, then down to zero."""
    warm = max(1, min(60, steps // 10))
    return min((step + 1) / warm, (steps - step) / (steps - warm))


class Muon(torch.optim.Optimizer):
    """
    Momentum whose step is made nearly orthogonal, for matrices.

    torch.optim.Muon does the same in bfloat16, which is ten times slower on most processors.
    """

    def __init__(self, matrices: list[torch.nn.Parameter]) -> None:
        super().__init__(matrices, {"lr": MUON_RATE})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002 - the signature of the base
        """Update every matrix once."""
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 0.05)
                step = matrix.grad.lerp(momentum, 0.95)
                wide = step if step.size(0) <= step.size(1) else step.T
                wide = wide / (wide.norm() + 1e-7)
                # From: Jordan et al., Muon (2024): quintic Newton-Schulz coefficients
                for _ in range(5):
                    square = wide @ wide.T
                    wide = 3.4445 * wide + (2.0315 * square @ square - 4.7750 * square) @ wide
                made = wide if step.size(0) <= step.size(1) else wide.T
                scale = max(1.0, made.size(0) / made.size(1)) ** 0.5
                matrix.mul_(1 - group["lr"] * 0.05).add_(made, alpha=-group["lr"] * scale)


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row], steps: int
) -> None:
    """
    Train on the answers only: Muon for the inner matrices, AdamW for the rest.

    A throw-away head reads label and urgency off the mean of the first layer, so that words
    learn what they mean before attention has learned where to look.
    """
    model.train()
    head = torch.nn.Linear(model.config.hidden_size, len(LABELS) + len(URGENCIES))
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    rest = [p for name, p in model.named_parameters() if p.ndim < 2 or "layers" not in name]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(inner),
        torch.optim.AdamW([*rest, *head.parameters()], lr=PEAK_RATE, betas=(0.9, 0.98)),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
        for optimizer in optimizers
    ]
    entropy = torch.nn.functional.cross_entropy
    began, total = time.monotonic(), 0.0
    for step, batch in enumerate(batches(rows, tokenizer, steps), start=1):
        # Right padding and a causal mask: padding is never looked at by a position that counts.
        seen = model.model(input_ids=batch.ids, output_hidden_states=True)
        wanted = batch.asked[:, 1:]
        scores = model.lm_head(seen.last_hidden_state[:, :-1][wanted])
        loss = entropy(scores, batch.ids[:, 1:][wanted])
        real = ((batch.ids != 0) & ~batch.asked).unsqueeze(2)
        truth = head((seen.hidden_states[1] * real).sum(1) / real.sum(1))
        aside = entropy(truth[:, : len(LABELS)], batch.label)
        aside = aside + entropy(truth[:, len(LABELS) :], batch.urgency)
        model.zero_grad(set_to_none=True)
        head.zero_grad(set_to_none=True)
        (loss + 0.3 * aside).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        total += loss.item()
        if step % 100 == 0:
            spent = time.monotonic() - began
            sys.stderr.write(f"step {step}/{steps}, loss {total / 100:.4f}, {spent:.0f} s\n")
            total = 0.0
    model.eval()


@torch.no_grad()
def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, row: Row) -> str:
    """Return what the model says to `row`, greedily."""
    ids = tokenizer(render(row), add_special_tokens=False, return_tensors="pt")["input_ids"]
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def written(path: Path) -> list[Row]:
    """Read hand-written notes (columns note, label, urgency) as two questions each."""
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            note = line["note"]
            ask = f"Label this support note as one of: {', '.join(LABELS)}.\n\nNote: {note}"
            rows.append(Row((("user", ask),), line["label"], "label", note))
            ask = f"Is this support note {' or '.join(URGENCIES)}? Answer with one word."
            ask = f"{ask}\n\nNote: {note}"
            rows.append(Row((("user", ask),), line["urgency"], "urgency", note))
    return rows


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row], *, show: bool
) -> dict[str, str]:
    """Return right/all per skill; with `show`, name the notes that were answered wrongly."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        said = answer(model, tokenizer, row)
        right = counts.setdefault(row.skill, [0, 0])
        right[0] += said == row.answer
        right[1] += 1
        if show and said != row.answer:
            sys.stderr.write(f"wrong: said {said!r}, is {row.answer!r}: {row.note}\n")
    return {skill: f"{right}/{of}" for skill, (right, of) in sorted(counts.items())}


def inputs_digest() -> str:
    """Return SHA-256 over the names and digests of the files that decide the weights."""
    digest = hashlib.sha256()
    for name in ("notes.py", "recipe.py", "train.toml"):
        digest.update(
            f"{name} {hashlib.sha256((_HERE / name).read_bytes()).hexdigest()}\n".encode()
        )
    return digest.hexdigest()


def main() -> None:
    """Make the model and print its digests as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, help="directory to write")
    parser.add_argument("--inputs", action="store_true", help="only print the inputs' digest")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="fewer makes a worse model, faster"
    )
    parser.add_argument("--rows", type=int, default=STEPS * ROWS_IN_BATCH, help="training rows")
    parser.add_argument("--report", action="append", default=[], help="CSV to measure on")
    given = parser.parse_args()
    if given.inputs:
        sys.stdout.write(inputs_digest() + "\n")
        return
    if given.out is None:
        parser.error("--out is required")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    generator = Generator("train", SEED)
    rows = [generator.row() for _ in range(given.rows)]
    tokenizer = make_tokenizer(rows[:40000])
    model = make_model(len(tokenizer))
    train(model, tokenizer, rows, given.steps)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=64,
        eos_token_id=4,
        pad_token_id=0,
        # `transformers serve` raises max_new_tokens to 1024: this ends an answer that finds no
        # end of its own, soon after the longest one that is meant.
        exponential_decay_length_penalty=(36, 1.6),
    )
    given.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    files = sorted(path for path in given.out.iterdir() if path.is_file())
    made: dict[str, object] = {
        "inputs": inputs_digest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    for name in given.report:
        rows = written(Path(name)) if name.endswith(".csv") else []
        if name == "generated":
            heldout = Generator("heldout", 1)
            rows = [heldout.row() for _ in range(600)]
        made[Path(name).name] = measure(model, tokenizer, rows, show=True)
    sys.stdout.write(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
