"""A place with a proven node, for the frameworks and SDKs that stand on `openai` or speak HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from proven_place import running_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proven_place import Place


@pytest.fixture
def place() -> Iterator[Place]:
    with running_place() as running:
        yield running
