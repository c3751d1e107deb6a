"""Candidates of stage `nras`: tokens of a simulated service, and one fault at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from confide.appraisal.nras_policy import ReportedDevice
from confide.simulator.nras import SIMULATED_NRAS_ISSUER, SimulatedNras
from confide.simulator.nras_faults import EXPECTED, NrasFault
from conformance.own.candidate import NONCE, NOW, SEED, Candidate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.errors import Reason

__all__ = ["candidates", "document"]


_GPUS = tuple(
    ReportedDevice("gpu", str(10**47 + number), "570.124.06", "96.00.9f.00.01")
    for number in range(2)
)


def document() -> dict[str, Any]:
    """Return the top of the index."""
    return {}


def _candidate(slug: str, nras: SimulatedNras, reason: Reason | None = None) -> Candidate:
    case = {
        "kind": "token",
        "files": {"token": "token.json", "jwks": "jwks.json"},
        "issuer": SIMULATED_NRAS_ISSUER,
        "nonce": NONCE.hex(),
        "now": NOW.isoformat().replace("+00:00", "Z"),
    }
    files = {"token.json": nras.token(_GPUS, NONCE), "jwks.json": nras.jwks()}
    return Candidate(slug, case, files, reason)


def candidates() -> Iterator[Candidate]:
    """Yield the honest token and the faults."""
    yield _candidate("honest", SimulatedNras(SEED, NOW))
    for fault in NrasFault:
        yield _candidate(fault.value, SimulatedNras(SEED, NOW, fault), EXPECTED[fault])
