"""The Expectation: the content-addressed manifest of what must run. Pure.

Format: docs/protocols/expectation.md. People write TOML; what travels, is hashed and is compared
is RFC 8785 JSON with every field present. `Expectation.digest` names it: the client appraises
evidence against it, the node measures it before a run and enforces it, the receipt carries it.

An Expectation grants nothing by omission: egress, recipients, secrets, relaxations and tolerated
gaps are empty unless written down. It does not say whether its own values are wise.
"""

from __future__ import annotations

from confide.expectation.broker import NO_BROKER, BrokerSpec, SecretUse, parse_secret_uses
from confide.expectation.differences import Difference, diff_expectations
from confide.expectation.document import (
    AgentSpec,
    Expectation,
    GpuSpec,
    HardwareSpec,
    Limits,
    ModelSpec,
    NodeSpec,
)
from confide.expectation.parse import (
    parse_expectation,
    parse_expectation_toml,
    parse_gpu_spec,
    parse_limits,
)

__all__ = [
    "NO_BROKER",
    "AgentSpec",
    "BrokerSpec",
    "Difference",
    "Expectation",
    "GpuSpec",
    "HardwareSpec",
    "Limits",
    "ModelSpec",
    "NodeSpec",
    "SecretUse",
    "diff_expectations",
    "parse_expectation",
    "parse_expectation_toml",
    "parse_gpu_spec",
    "parse_limits",
    "parse_secret_uses",
]
