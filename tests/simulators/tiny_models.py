"""Model folders of a few thousand parameters, made here, laid out as Hugging Face does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

if TYPE_CHECKING:
    from pathlib import Path

SPECIAL = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] if m['role'] in ('user', 'assistant') else 'system' }}|>"
    "{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEXT = "the shop opens at nine and closes at six; red blue green answer question where when how"


def make_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer that knows a few words."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator([_TEXT] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[-1],
        extra_special_tokens=list(SPECIAL[1:4]),
        clean_up_tokenization_spaces=False,
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def make_model(
    folder: Path, *, kind: str = "llama", size: int = 32, seed: int = 1, **more: Any
) -> Path:
    """Write a model of `kind` (`llama`, `gpt2`) and its tokenizer to `folder`; return it."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    shared = {
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 4,
    }
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(
            GPT2Config(n_embd=size, n_layer=2, n_head=2, n_positions=256, **shared, **more)
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=size,
                intermediate_size=2 * size,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=256,
                **({"tie_word_embeddings": True} | shared | more),
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
