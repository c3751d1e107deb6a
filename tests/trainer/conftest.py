"""Tests of the training loop: they need torch, and make their models themselves."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MISSING = [name for name in ("torch", "peft") if find_spec(name) is None]
if not MISSING:
    from tiny_models import make_model


class _NotTested(pytest.Module):
    """A file whose imports would fail: one loud skip instead."""

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        reason = f"THE TRAINING LOOP IS NOT TESTED: no {' and no '.join(MISSING)}"
        pytest.skip(reason, allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    return _NotTested.from_parent(parent, path=module_path) if MISSING else None


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
