"""A model folder as Hugging Face lays it out: safetensors, offline, and no code of the folder.

docs/protocols/training.md 2.2, 9.5. Whoever loads has measured the folder (weights.md §1); here it
is read a second time, by libraries that believe it, in a process that holds nothing else. So it may
not lead out of itself (weights.md §10).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from confide.errors import ConfigurationError, FormatError
from confide.inference.self_contained import require_self_contained
from confide.inference.weights import weights_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "TOKENIZER_FILES",
    "load_model",
    "load_tokenizer",
    "stored_type",
    "template_digest",
    "tokenizer_digest",
]

# Everything that `AutoTokenizer` may read, where it is there.
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def stored_type(folder: Path) -> torch.dtype:
    """Return the type in which the folder's weights are stored, and the result will be."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unusable("its configuration is not one of a known model", error) from None
    if getattr(config, "quantization_config", None) is not None:
        raise _unusable("quantised weights cannot be trained")
    stored = config.dtype or torch.float32
    if stored not in _TYPES.values():
        raise _unusable(f"weights of type {stored} cannot be trained")
    return stored


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """
    Load the weights as `dtype`, in evaluation mode, without gradients.

    Raises `ConfigurationError` for a folder that needs code, pickles or the network.
    """
    logging.disable_progress_bar()
    _require_self_contained(folder)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise _unusable("its weights do not load from safetensors alone", error) from None
    # What is missing was made up, at random.
    if report["missing_keys"] or report.get("mismatched_keys"):
        raise _unusable(f"{len(report['missing_keys'])} tensors of the model are not in it")
    model.requires_grad_(requires_grad=False)
    model.config.use_cache = False
    return model.eval()


def _require_self_contained(folder: Path) -> None:
    """Refuse a folder that leads out of itself (weights.md §10), or to what a link names."""
    here = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    try:
        require_self_contained(here, lambda name: (folder / name).read_bytes())
    except OSError as error:
        raise _unusable("it cannot be read", error) from None
    except FormatError as error:
        raise _unusable(error.what) from None


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer; only one that knows which characters a token stands for will do."""
    _require_self_contained(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unusable("its tokenizer does not load", error) from None
    if not tokenizer.is_fast:
        raise _unusable("its tokenizer has no tokenizer.json")
    return tokenizer


def tokenizer_digest(folder: Path) -> bytes:
    """Return the digest of the tokenizer's files (2.2)."""
    found = [
        (name, hashlib.sha256((folder / name).read_bytes()).hexdigest())
        for name in TOKENIZER_FILES
        if (folder / name).is_file()
    ]
    if not found:
        raise _unusable("it holds no tokenizer")
    return weights_manifest(found).digest


def template_digest(tokenizer: PreTrainedTokenizerFast) -> bytes:
    """Return the digest of the chat template (2.2)."""
    if not isinstance(tokenizer.chat_template, str):
        raise _unusable("its tokenizer has no chat template, or several")
    return hashlib.sha256(tokenizer.chat_template.encode()).digest()


def _unusable(why: str, error: Exception | None = None) -> ConfigurationError:
    # Of the library's error only its kind: the text may quote the folder, and paths.
    kind = "" if error is None else f" ({type(error).__name__})"
    return ConfigurationError(f"model folder: {why}{kind}")
