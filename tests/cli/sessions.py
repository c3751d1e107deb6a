"""What one command of a scripted session left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Session:
    """What one command left: exit code, both streams."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON objects of stdout, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def result(self) -> dict[str, Any]:
        """The last object, which must be the result."""
        last = self.events[-1]
        assert last["event"] == "result", last
        return last


Cli = Callable[..., Session]
