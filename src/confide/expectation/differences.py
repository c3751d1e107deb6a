"""How two Expectations differ, field by field, in words. Pure.

Clause: docs/protocols/expectation.md §4.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.expectation.document import Expectation

__all__ = ["Difference", "diff_expectations"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that differs: dotted `path`, both values printable, what it means in words."""

    path: str
    before: str
    after: str
    meaning: str


# What a reviewer should think of when a field changes.
_MEANING = {
    "name": "only the label",
    "hardware.roots": "a different root of trust: everything below means something else",
    "hardware.tcb_status": "other patch levels of the platform are accepted",
    "hardware.min_tcb_evaluation": "older or newer statements by Intel are required",
    "hardware.max_collateral_days": "older or newer statements by Intel are required",
    "hardware.mrseam": "other TDX modules are accepted",
    "hardware.platform_flags": "platforms in other configurations are accepted",
    "hardware.platforms": "other machines are accepted",
    "hardware.accept_not_proven": "other claims may stay unproven",
    "gpu": "other GPUs, drivers or firmware are accepted",
    "agent_node": "another operating system or node software may handle the inputs",
    "model_node": "another operating system or node software may see the prompts",
    "agent.image": "another agent program runs",
    "agent.mode": "the agent is driven differently",
    "model": "another model answers",
    "egress": "the agent may send data to other places",
    "recipients": "other parties can read the output",
    "broker.key": "another broker decides what the agent gets",
    "broker.repository": "secrets and state belong to other owners",
    "broker.secrets": "the agent gets other secrets, or finds them elsewhere",
    "broker.state": "the agent keeps a memory between runs, or no longer does",
    "limits": "the run may use more or less",
}


def diff_expectations(before: Expectation, after: Expectation) -> tuple[Difference, ...]:
    """Return every field that differs, in document order, with its meaning in words."""
    left, right = dict(_leaves("", before)), dict(_leaves("", after))
    return tuple(
        Difference(path, left[path], right[path], _meaning(path))
        for path in left
        if left[path] != right[path]
    )


def _meaning(path: str) -> str:
    while path not in _MEANING:
        path = path.rpartition(".")[0]
    return _MEANING[path]


def _leaves(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            path = f"{prefix}.{field.name}" if prefix else field.name
            yield from _leaves(path, getattr(value, field.name))
    elif isinstance(value, tuple):
        yield prefix, ", ".join(value) or "(none)"
    else:
        yield prefix, str(value) or "(none)"
