"""What the steps over one token of NVIDIA's remote service have read so far.

Clauses: docs/protocols/nras.md. Filled by steps, read by later ones; lives for one appraisal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime

    from confide.appraisal.nras_policy import NrasPolicy, ReportedDevice
    from confide.crypto.ecdsa import PublicKey
    from confide.crypto.x509 import Certificate
    from confide.wire.jose import CompactJws
    from confide.wire.json import JsonValue

__all__ = ["LEEWAY_SECONDS", "Claims", "NrasState", "ServiceKey"]

Claims: TypeAlias = "dict[str, JsonValue]"

# From: docs/protocols/nras.md 8.
LEEWAY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A key of the set that step 2b accepted, and the certificates that came with it."""

    public: PublicKey
    certificates: tuple[Certificate, ...]


@dataclass(slots=True)
class NrasState:
    """
    The inputs of one appraisal, and what its steps established.

    `tokens` maps the name of a submodule to its token, in the order of the document; `payloads`
    its claims. `keys` are by `kid`.
    """

    raw: bytes
    jwks: bytes | None
    issuer: str
    expected_nonce: bytes
    policy: NrasPolicy
    now: datetime
    reports: tuple[ReportedDevice, ...] | None = None
    overall: CompactJws | None = None
    tokens: dict[str, CompactJws] = field(default_factory=dict)
    keys: dict[str, ServiceKey] = field(default_factory=dict)
    pinned: bool = False
    overall_claims: Claims | None = None
    payloads: dict[str, Claims] = field(default_factory=dict)
    expiries: list[datetime] = field(default_factory=list)
