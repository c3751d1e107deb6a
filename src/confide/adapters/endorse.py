"""Which endorsements a piece of evidence needs, and getting them through the ports.

Clauses: docs/protocols/fetching.md#7, #8, #12 and #13. The evidence is hostile and not verified
yet: what it says about itself decides only what is asked for. Nothing here judges anything.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from confide.adapters.endorsement_http import EndorsementsUnavailable
from confide.errors import FormatError, Unavailable
from confide.reasons import Reason
from confide.wire.endorsements import Endorsements
from confide.wire.evidence import NvidiaEndorsements

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from confide.errors import Rejected
    from confide.ports import CollateralSource, ReferenceSource, SnpSource, TokenKeySource
    from confide.wire.evidence import GpuEvidence
    from confide.wire.service import Evidence

__all__ = [
    "EndorsementSources",
    "Gathered",
    "collect_endorsements",
    "gather_endorsements",
    "only_missing",
]

Value = TypeVar("Value")
# What a refusal says where an endorsement could not be had, and nothing was contradicted.
_OF_AN_OUTAGE = frozenset(
    {
        Reason.CLAIM_NOT_PROVEN,
        Reason.COLLATERAL_MISSING,
        Reason.CRL_MISSING,
        Reason.RIM_MISSING,
        Reason.OCSP_UNAVAILABLE,
        Reason.TOKEN_KID_UNKNOWN,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementSources:
    """Where statements of vendors come from, one port for each vendor's service."""

    tdx: CollateralSource
    snp: SnpSource
    nvidia: ReferenceSource
    nras: TokenKeySource


@dataclass(frozen=True, slots=True)
class Gathered:
    """
    What could be had, and for everything else one message: service, thing, cause, what to do.

    With `failures` the endorsements are incomplete: whoever verifies with them gets refusals for
    what is absent, never acceptance.
    """

    endorsements: Endorsements
    failures: tuple[str, ...]


async def gather_endorsements(evidence: Evidence, *, sources: EndorsementSources) -> Gathered:
    """
    Get the endorsements that appraising `evidence` needs, as far as the services give them.

    One collateral container for each platform family, certificates for each SNP report, manifests
    and OCSP answers for all devices together, key sets where a token was presented. Endorsements
    that the attester passed along are not looked at. What cannot be read gets none (clause 13).
    """
    attesters = evidence.attesters
    quotes = dict.fromkeys(each.tdx.quote for each in attesters if each.tdx is not None)
    reports = dict.fromkeys(each.snp for each in attesters if each.snp is not None)
    sets = [each.devices for each in attesters if each.devices is not None]
    devices: tuple[GpuEvidence, ...] = tuple(
        dict.fromkeys(device for found in sets for device in found.devices)
    )
    tokens = any(found.token is not None for found in sets)
    (tdx, no_tdx), (snp, no_snp), (nvidia, no_nvidia), (keys, no_keys) = await asyncio.gather(
        _each(sources.tdx.collateral(quote) for quote in quotes),
        _each(sources.snp.endorsement(part) for part in reports),
        _each((sources.nvidia.endorsements(devices),) if devices else ()),
        _each((sources.nras.keys(),) if tokens else ()),
    )
    endorsements = Endorsements(
        # Quotes of one platform family share a container, byte for byte.
        tdx=tuple(dict.fromkeys(tdx)),
        snp=tuple(dict.fromkeys(snp)),
        nvidia=nvidia[0] if nvidia else NvidiaEndorsements((), ()),
        nras_keys=tuple(keys),
    )
    failures = dict.fromkeys((*no_tdx, *no_snp, *no_nvidia, *no_keys))
    return Gathered(endorsements, tuple(failures))


async def _each(jobs: Iterable[Awaitable[Value]]) -> tuple[list[Value], list[str]]:
    """Await `jobs` side by side: values and failures; what cannot be read gives neither."""
    found: list[Value] = []
    failures: list[str] = []
    for outcome in await asyncio.gather(*jobs, return_exceptions=True):
        if isinstance(outcome, EndorsementsUnavailable):
            failures += outcome.failures
        elif isinstance(outcome, Unavailable):
            failures.append(str(outcome))
        elif isinstance(outcome, BaseException):
            if not isinstance(outcome, FormatError):
                raise outcome
        else:
            found.append(outcome)
    return found, failures


async def collect_endorsements(evidence: Evidence, *, sources: EndorsementSources) -> Endorsements:
    """
    Get all endorsements that appraising `evidence` needs.

    Raises `EndorsementsUnavailable` (an `Unavailable`) with one message for each thing that could
    not be had.
    """
    gathered = await gather_endorsements(evidence, sources=sources)
    if gathered.failures:
        raise EndorsementsUnavailable(gathered.failures)
    return gathered.endorsements


def only_missing(refused: Rejected, failures: Sequence[str]) -> bool:
    """
    Whether a verdict might have been another one, had the vendors' services answered.

    True where something could not be had (`failures`) and nothing in the evidence is contradicted:
    the refusal then says nothing about trust, and is an outage.
    """
    deciding = {finding.reason for finding in refused.failures}
    return bool(failures) and deciding <= _OF_AN_OUTAGE
