"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The shared evidence with expected verdicts; skipped loudly where it is absent."""
    root = Path(os.environ.get("CONFIDE_VECTORS", _REPOSITORY.parent / "shared" / "vectors"))
    if not root.is_dir():
        pytest.skip(f"SHARED VECTORS ABSENT: {root} (set CONFIDE_VECTORS)")
    return root
