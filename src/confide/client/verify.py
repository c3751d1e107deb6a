"""Fetch what a service presents, fetch what vendors say about it, and verify: one call.

The asynchronous twin of `confide.verify`. Draws the nonce, so the result is fresh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.adapters.clock import SystemClock
from confide.adapters.endorse import gather_endorsements, only_missing
from confide.adapters.endorsement_http import EndorsementsUnavailable
from confide.adapters.entropy import SystemEntropy
from confide.appraisal.service import appraise_service
from confide.client.capture import capture
from confide.client.online import open_online
from confide.client.provenance import verify_bundles
from confide.errors import Rejected
from confide.formats.registry import find_format
from confide.formats.verify import join_endorsements, read_evidence
from confide.trust.roots import VENDOR_ROOTS, Roots
from confide.wire.endorsements import Endorsements

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from confide.appraisal.service_policy import Policy
    from confide.client.online import VendorServices
    from confide.ports import Clock, Entropy
    from confide.rats import AttestationResult

__all__ = ["fetch_and_verify"]


async def fetch_and_verify(
    url: str,
    policy: Policy,
    *,
    format: str,  # noqa: A002 - the word of the domain
    model: str = "",
    endorsements: Endorsements | None = None,
    roots: Roots = VENDOR_ROOTS,
    services: VendorServices | None = None,
    cache: Path | None = None,
    tls: ssl.SSLContext | None = None,
    clock: Clock | None = None,
    entropy: Entropy | None = None,
) -> AttestationResult:
    """
    Return what the service at `url` proves now, where `policy` accepts it.

    `format` names a reader of `formats.registry`; `model` is passed on where the service has
    several. `endorsements` are used beside what the vendors' services (`services`) answer;
    `cache` is a folder for those answers. A fresh nonce is drawn for every call. Nothing secret
    is sent.

    Raises `EvidenceRejected`, `PolicyRejected` (with `result`), `FormatError`, `Unsupported`, and
    `Unavailable` when the service cannot be asked, or when an endorsement that cannot be had is
    all that stands between this evidence and a verdict.
    """
    clock, entropy = clock or SystemClock(), entropy or SystemEntropy()
    async with open_online(
        clock=clock, entropy=entropy, cache=cache, services=services, tls=tls
    ) as online:
        captured = await capture(
            url,
            format=find_format(format),
            nonce=None,
            http=online.service,
            clock=clock,
            entropy=entropy,
            model=model,
        )
        evidence, answer = read_evidence(captured)
        gathered = await gather_endorsements(evidence, sources=online.sources)
    joined = join_endorsements(endorsements or Endorsements(), gathered.endorsements)
    try:
        return appraise_service(
            evidence,
            joined,
            policy=policy,
            provenance=verify_bundles(evidence, joined, policy),
            roots=roots,
            now=clock.now(),
            answer=answer,
            subject=evidence.format,
        )
    except Rejected as error:
        if only_missing(error, gathered.failures):
            raise EndorsementsUnavailable(gathered.failures) from error
        raise
