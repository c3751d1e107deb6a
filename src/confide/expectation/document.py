"""What an Expectation says, and its one canonical form. Pure.

Format: docs/protocols/expectation.md §1 and §2. What travels, is hashed and is compared is RFC 8785
JSON with every field present.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Literal

from confide.wire.json import JsonValue, jcs

if TYPE_CHECKING:
    from confide.expectation.broker import BrokerSpec

__all__ = [
    "TYPE",
    "AgentSpec",
    "Expectation",
    "GpuSpec",
    "HardwareSpec",
    "Limits",
    "ModelSpec",
    "NodeSpec",
]

TYPE: Final = "confide/expectation/v1"
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """
    Accepted launch measurements of one node, each a set of alternatives (hex, 48 bytes).

    `software` is the SHA-256 of the node package (32 bytes hex), `mrconfigid` the launch
    configuration. An empty set accepts nothing. `compose` are the documents (SHA-256, 32 bytes hex)
    that dstack may have launched the node from; where it is empty, the node is not on dstack.
    """

    mrtd: tuple[str, ...]
    rtmr0: tuple[str, ...]
    rtmr1: tuple[str, ...]
    rtmr2: tuple[str, ...]
    mrconfigid: tuple[str, ...]
    software: tuple[str, ...]
    compose: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """Which GPUs the model node must prove; `drivers` and `vbios` are allow-lists."""

    count: int
    mode: Literal["SPT", "MPT"]
    chips: tuple[str, ...]
    drivers: tuple[str, ...]
    vbios: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HardwareSpec:
    """
    Policy for platform evidence.

    `roots` is `vendor` or `simulated:<sha256 hex of a roots file>`. `tcb_status` lists accepted
    merged TCB statuses. `accept_not_proven` lists claims that may stay unproven, by name.
    `platforms` is an allow-list of PPIDs; empty means any platform, which no signature check can
    make safe against an extracted key (docs/threat-model.md). `mrseam` lists accepted TDX modules
    (48 bytes hex), `platform_flags` what a platform certificate may say (dynamic, cached-keys,
    smt). `max_collateral_days` bounds the age of Intel's statements.
    """

    roots: str
    tcb_status: tuple[str, ...]
    min_tcb_evaluation: int
    max_collateral_days: int
    mrseam: tuple[str, ...]
    platform_flags: tuple[str, ...]
    platforms: tuple[str, ...]
    accept_not_proven: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """The agent: OCI manifest digest (hex) and how it is driven."""

    image: str
    mode: Literal["batch", "chat"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """
    The model: public name and SHA-256 of the OMS manifest of its weights (hex).

    `weights` is empty where the weights lie outside the model node; the claim `model-weights` is
    then not proven and has to be named in `accept_not_proven`.
    """

    name: str
    weights: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may use. Bytes, seconds and counts; the node enforces each."""

    memory_bytes: int = 512 * _MIB
    cpus_milli: int = 1000
    pids: int = 128
    wall_seconds: int = 600
    input_bytes: int = 256 * _MIB
    output_bytes: int = 64 * _MIB
    output_files: int = 1000
    state_bytes: int = 64 * _MIB


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must run, where, with what, and who receives the results."""

    name: str
    hardware: HardwareSpec
    gpu: GpuSpec
    agent_node: NodeSpec
    model_node: NodeSpec
    agent: AgentSpec
    model: ModelSpec
    egress: tuple[str, ...]
    recipients: tuple[str, ...]
    broker: BrokerSpec
    limits: Limits

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON document, every field present; an empty `compose` is left out."""
        document = _jsonable(asdict(self))
        for node in (document["agent_node"], document["model_node"]):
            if isinstance(node, dict) and not node["compose"]:
                # Expectations from before it was there keep their digest: one form of none.
                del node["compose"]
        return {"type": TYPE, **document}

    def canonical(self) -> bytes:
        """Return the RFC 8785 bytes: what is sent and hashed."""
        return jcs(self.document())

    @property
    def digest(self) -> bytes:
        """SHA-256 over `canonical()`: the name of this Expectation."""
        return hashlib.sha256(self.canonical()).digest()


def _jsonable(value: dict[str, object]) -> dict[str, JsonValue]:
    out: dict[str, JsonValue] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            out[key] = _jsonable(item)
        elif isinstance(item, tuple):
            out[key] = [str(part) for part in item]
        elif isinstance(item, str | int):
            out[key] = item
    return out
