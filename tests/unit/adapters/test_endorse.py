"""Which endorsements a piece of evidence gets: docs/protocols/fetching.md 7, 8, 13."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from http_stand_ins import Reply
from vendors import NONCE, Vendors

from confide.adapters.endorse import Gathered, collect_endorsements, gather_endorsements
from confide.adapters.endorsement_http import EndorsementsUnavailable
from confide.wire.bundle import decode_bundle, encode_bundle
from confide.wire.endorsements import Endorsements
from confide.wire.service import (
    Attester,
    Capture,
    Devices,
    Evidence,
    ReportBinding,
    SnpPart,
    TdxPart,
)

if TYPE_CHECKING:
    from confide.wire.evidence import GpuEvidence

_BINDING = ReportBinding(scheme="none", expected=None, nonce=None)


def _attester(name: str, **parts: Any) -> Attester:
    return Attester(name=name, binding=_BINDING, **parts)


def _devices(devices: tuple[GpuEvidence, ...], token: bytes | None = None) -> Devices:
    return Devices(devices=devices, nonce=NONCE, token=token)


def _evidence(*attesters: Attester) -> Evidence:
    return Evidence(format="test", attesters=attesters)


def _gathered(vendors: Vendors, evidence: Evidence) -> Gathered:
    async def main() -> Gathered:
        async with vendors.running(), vendors.online() as net:
            return await gather_endorsements(evidence, sources=net.sources)

    return asyncio.run(main())


def _whole(vendors: Vendors) -> Evidence:
    quote = TdxPart(quote=vendors.quote)
    return _evidence(
        _attester("gateway", tdx=quote),
        _attester("model 1", tdx=quote, devices=_devices(vendors.devices[:6], token=b"token")),
        _attester(
            "model 2", snp=SnpPart(report=vendors.report()), devices=_devices(vendors.devices)
        ),
    )


def test_all_attesters_are_walked_and_nothing_is_asked_for_twice() -> None:
    vendors = Vendors()
    found = _gathered(vendors, _whole(vendors))
    assert found.failures == ()
    held = found.endorsements
    assert held.tdx == (vendors.platform.collateral(),)
    assert [each.leaf_der for each in held.snp] == [vendors.machines[0].leaf_der]
    assert len(held.nvidia.rims) == 3
    assert held.nras_keys == (vendors.key_set,)
    questions = [(each.target, each.body) for each in vendors.asked]
    assert len(questions) == len(set(questions)) == 4 + 3 + 3 + 22 + 1


def test_what_was_gathered_fits_in_a_bundle() -> None:
    vendors = Vendors()
    held = _gathered(vendors, _whole(vendors)).endorsements
    assert decode_bundle(encode_bundle(Capture(documents={"report": b""}), held))[1] == held


def test_evidence_that_needs_nothing_asks_nobody() -> None:
    vendors = Vendors()
    assert _gathered(vendors, _evidence(_attester("bare"))) == Gathered(Endorsements(), ())
    assert vendors.asked == []


def test_keys_are_fetched_only_for_a_token() -> None:
    vendors = Vendors()
    found = _gathered(vendors, _evidence(_attester("a", devices=_devices(vendors.devices[:1]))))
    assert found.endorsements.nras_keys == ()
    assert vendors.targets("jwks") == []


def test_evidence_that_cannot_be_read_is_left_to_the_verifier() -> None:
    vendors = Vendors()
    found = _gathered(
        vendors,
        _evidence(
            _attester("a", tdx=TdxPart(quote=b"")),
            _attester("b", tdx=TdxPart(quote=vendors.quote[:-400])),
            _attester("c", snp=SnpPart(report=bytes(1184))),
        ),
    )
    assert found == Gathered(Endorsements(), ())


def test_one_vendor_that_fails_does_not_take_the_others_along() -> None:
    vendors = Vendors()
    vendors.always["/vcek/"] = Reply(status=404)
    found = _gathered(vendors, _whole(vendors))
    assert len(found.failures) == 1
    assert found.failures[0].startswith("AMD KDS: no VCEK")
    assert found.endorsements.snp == ()
    assert found.endorsements.tdx
    assert found.endorsements.nvidia.ocsp


def test_incomplete_is_unavailable_for_whoever_needs_all() -> None:
    vendors = Vendors()
    vendors.always["/vcek/"] = vendors.always["tcb?"] = Reply(status=404)

    async def main() -> None:
        async with vendors.running(), vendors.online() as net:
            await collect_endorsements(_whole(vendors), sources=net.sources)

    with pytest.raises(EndorsementsUnavailable) as caught:
        asyncio.run(main())
    assert len(caught.value.failures) == 2
    assert f"{caught.value}".startswith("Intel PCS: no TDX TCB info of FMSPC 5300000000aa")
