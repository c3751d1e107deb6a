"""From a URL to a verdict: a SIMULATED service, SIMULATED vendors, real TLS between all of them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from http_stand_ins import Asked, FakeClock, FixedEntropy, Reply, StandIn, client_context
from services import LATER, LOOK, NOW, NearCase, near_case
from vendors import Vendors

import confide
from confide.adapters.endorse import gather_endorsements
from confide.client.capture import capture
from confide.errors import EvidenceRejected, Rejected, Unavailable
from confide.formats.registry import find_format
from confide.formats.verify import read_evidence
from confide.rats import Status
from confide.simulator.near import encode_report
from confide.wire.bundle import encode_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.rats import AttestationResult

_CASE = cache(near_case)


class Live:
    """A NEAR gateway and the vendors that know its hardware."""

    def __init__(self) -> None:
        self.case: NearCase = _CASE()
        self.service = StandIn(self._report)
        self.vendors = Vendors(now=NOW)
        self.vendors.platform = self.case.near.platform
        self.vendors.nvidia = self.case.endorsements.nvidia
        self.vendors.clock = FakeClock(LATER)

    def _report(self, asked: Asked) -> Reply:
        if asked.path != "/v1/attestation/report":
            return Reply(status=404)
        (nonce,) = parse_qs(urlsplit(asked.target).query)["nonce"]
        report = self.case.near.gateway_report(bytes.fromhex(nonce), tls=False)
        return Reply(encode_report(report))

    def verify(self) -> AttestationResult:
        """What `confide.fetch_and_verify` returns."""

        async def main() -> AttestationResult:
            async with self.service.running(), self.vendors.running():
                return await confide.fetch_and_verify(
                    self.service.url,
                    LOOK,
                    format="near",
                    roots=self.case.roots,
                    services=self.vendors.services(),
                    tls=client_context(),
                    clock=self.vendors.clock,
                    entropy=FixedEntropy(5),
                )

        return asyncio.run(main())

    def bundle(self) -> bytes:
        """What `confide capture` saves."""

        async def main() -> bytes:
            async with (
                self.service.running(),
                self.vendors.running(),
                self.vendors.online() as online,
            ):
                found = await capture(
                    self.service.url,
                    format=find_format("near"),
                    nonce=None,
                    http=online.service,
                    clock=self.vendors.clock,
                    entropy=FixedEntropy(5),
                )
                evidence, _ = read_evidence(found)
                gathered = await gather_endorsements(evidence, sources=online.sources)
                assert gathered.failures == ()
                return encode_bundle(found, gathered.endorsements)

        return asyncio.run(main())


def _claims(result: AttestationResult) -> dict[str, Status]:
    return {claim.name: claim.status for claim in result.claims}


def test_a_live_service_is_verified_with_what_the_vendors_say() -> None:
    live = Live()
    result = live.verify()
    assert result.simulated
    assert not any(finding.failed for finding in result.findings)
    assert live.vendors.targets("/v1/rim/")
    assert live.vendors.targets("tcb?")


def test_a_bundle_gives_the_same_verdict_without_any_network() -> None:
    live = Live()
    raw = live.bundle()
    saved = confide.verify(
        raw,
        confide.Endorsements(),
        LOOK,
        now=LATER,
        roots=live.case.roots,
        nonce=b"\x05" * 32,
    )
    assert _claims(saved) == _claims(live.verify())


def test_a_bundle_does_not_outlive_what_is_in_it() -> None:
    live = Live()
    raw = live.bundle()
    with pytest.raises(Rejected):
        confide.verify(
            raw,
            confide.Endorsements(),
            LOOK,
            now=NOW + timedelta(days=60),
            roots=live.case.roots,
            nonce=b"\x05" * 32,
        )


def _other_collateral(live: Live) -> None:
    live.vendors.platform = Vendors(seed=b"another", now=NOW).platform


def _edited_tcb_info(live: Live) -> None:
    honest = live.vendors.tcb_info()
    body = honest.body.replace(b'"UpToDate"', b'"Revoked" ', 1)
    live.vendors.always["tcb?"] = Reply(body, headers=honest.headers)


@pytest.mark.parametrize("lie", [_other_collateral, _edited_tcb_info])
def test_vendors_that_lie_make_nothing_acceptable(lie: Callable[[Live], None]) -> None:
    live = Live()
    lie(live)
    with pytest.raises(EvidenceRejected):
        live.verify()


def test_a_service_that_does_not_answer_is_unavailable() -> None:
    live = Live()
    live.service.always["/"] = Reply(status=404)
    with pytest.raises(Unavailable):
        live.verify()


@pytest.mark.parametrize("service", ["tcb?", "/v1/rim/", "ocsp"])
def test_an_outage_of_a_vendor_is_an_outage_and_no_verdict(service: str) -> None:
    live = Live()
    live.vendors.always[service] = Reply(status=404)
    if service != "tcb?":
        # Looking at a service does not require devices: their claims stay open.
        assert live.verify().claim("hardware").status is Status.PASS
        return
    with pytest.raises(Unavailable, match=r"Intel|TCB|collateral"):
        live.verify()


def test_a_service_that_answers_an_old_report_is_not_fresh() -> None:
    live = Live()
    live.service.always["report"] = Reply(live.case.capture.documents["report"])
    with pytest.raises(Rejected):
        live.verify()
