"""Tests of the training loop: they need torch, and make their models themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch", reason="THE TRAINING LOOP IS NOT TESTED: no torch")
pytest.importorskip("peft", reason="THE TRAINING LOOP IS NOT TESTED: no peft")

from tiny_models import make_model

if TYPE_CHECKING:
    from pathlib import Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = __file__.rpartition("/")[0]
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.model)
            # PEFT 0.21 reads a name that transformers 5 renamed.
            item.add_marker(pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"))
            # GPT-2 keeps its weights the other way round; PEFT sees it and says so.
            item.add_marker(pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of thirty thousand parameters, with tokenizer and chat template."""
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another architecture: other names, biases, LayerNorm, learned positions."""
    return make_model(tmp_path_factory.mktemp("gpt2"), kind="gpt2")
