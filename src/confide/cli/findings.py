"""What `confide doctor` found, one line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Finding", "State"]

# `missing` keeps agents from running here; `optional` is lacking and can be done without.
State: TypeAlias = Literal["ok", "missing", "simulated", "optional"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing of this machine; `mend` says what to do where something can be done."""

    name: str
    state: State
    detail: str
    mend: str = ""
