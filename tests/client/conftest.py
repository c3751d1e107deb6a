"""What the tests of the client share: a place with an engine, and where receipts go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from proven_place import running_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from proven_place import Place


@pytest.fixture
def place() -> Iterator[Place]:
    with running_place() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "data" / "receipts.sqlite3"
