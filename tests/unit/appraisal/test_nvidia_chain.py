"""Paths, names and responders: certificates that are well signed and still not good enough."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import pytest

from confide.appraisal.nvidia import (
    AllowedVersions,
    GpuMode,
    GpuSetResult,
    MinimumVersion,
    VerifiedRim,
    VerifiedSignatures,
    appraise_gpus,
)
from confide.appraisal.nvidia_chain import SignatureMemory, require_path
from confide.appraisal.nvidia_ocsp import require_good
from confide.appraisal.steps import Refused
from confide.crypto.ecdsa import Curve, derive_signing_key
from confide.crypto.errors import BadSignature
from confide.crypto.x509 import Certificate, parse_certificate_der, parse_pem_chain
from confide.errors import EvidenceRejected, Reason
from confide.simulator.nvidia import (
    GpuFault,
    SimulatedGpu,
    SimulatedGpuSet,
    simulated_ppcie,
)
from confide.simulator.nvidia_device import DeviceAuthorities, make_device
from confide.simulator.nvidia_pki import (
    FOREVER,
    Authority,
    Period,
    authority,
    ca_extensions,
    end_entity_extensions,
    extension,
    issue,
    name,
    ocsp_response,
    responder,
)
from confide.wire.der import SEQUENCE, encode_oid, encode_tlv
from confide.wire.dice import COMPOSITE_DEVICE_ID, parse_composite_device_id
from confide.wire.evidence import GpuEvidence, NvidiaEndorsements, RimDocument
from confide.wire.spdm import GPU, encode_report, parse_report
from confide.wire.spdm_switch import SWITCH

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
DAY = timedelta(days=1)
PERIOD = Period(NOW - DAY, FOREVER)
SEED = b"chain"
NONCE = hashlib.sha256(b"chain").digest()
ROOT = authority(SEED, "root", name(CN="TEST root"), PERIOD)
KEY = derive_signing_key(Curve.P384, SEED, "leaf")
GOOD = end_entity_extensions(KEY, ROOT.key)


def parsed(der: bytes) -> Certificate:
    return parse_certificate_der(der, what="test", reason=Reason.CHAIN_MALFORMED)


def leaf(*extensions: bytes, issuer: Authority = ROOT, period: Period = PERIOD) -> Authority:
    subject = name(CN="TEST leaf")
    der = issue(
        subject=subject,
        subject_key=KEY,
        issuer=issuer.subject,
        issuer_key=issuer.key,
        serial=7,
        period=period,
        extensions=extensions,
    )
    return Authority(KEY, subject, der, 7)


def path(*chain: Authority) -> None:
    require_path(
        [parsed(each.der) for each in chain],
        SignatureMemory(VerifiedSignatures()),
        malformed=Reason.CHAIN_MALFORMED,
        invalid=Reason.CHAIN_INVALID,
    )


def test_a_good_path_passes() -> None:
    path(leaf(*GOOD), ROOT)


def _limited() -> tuple[Authority, ...]:
    top = authority(SEED, "limited", name(CN="TEST limited"), PERIOD, path_length=0)
    middle = authority(SEED, "middle", name(CN="TEST middle"), PERIOD, parent=top)
    return leaf(*GOOD, issuer=middle), middle, top


BAD_PATHS: dict[str, Callable[[], tuple[Authority, ...]]] = {
    "leaf without key usage": lambda: (leaf(), ROOT),
    "leaf is a CA": lambda: (leaf(*ca_extensions(KEY, ROOT.key)), ROOT),
    "unknown critical extension": lambda: (
        leaf(*GOOD, extension("1.2.3.4", b"\x05\x00", critical=True)),
        ROOT,
    ),
    "issuer is no CA": lambda: (leaf(*GOOD, issuer=leaf(*GOOD)), leaf(*GOOD)),
    "path too long": _limited,
    "issued by another": lambda: (
        leaf(*GOOD),
        authority(SEED, "other", name(CN="TEST root"), PERIOD),
    ),
    "another issuer name": lambda: (leaf(*GOOD, issuer=replace(ROOT, subject=name(CN="X"))), ROOT),
}


@pytest.mark.parametrize("which", BAD_PATHS)
def test_a_bad_path_is_refused(which: str) -> None:
    with pytest.raises(Refused) as caught:
        path(*BAD_PATHS[which]())
    assert caught.value.reason is Reason.CHAIN_INVALID


def test_other_curves_are_refused() -> None:
    good = parsed(leaf(*GOOD).der)
    weak = replace(good, public_key=replace(good.public_key, curve=Curve.P256))
    with pytest.raises(Refused) as caught:
        require_path(
            [weak, parsed(ROOT.der)],
            SignatureMemory(VerifiedSignatures()),
            malformed=Reason.CHAIN_MALFORMED,
            invalid=Reason.CHAIN_INVALID,
        )
    assert caught.value.reason is Reason.CHAIN_MALFORMED


def test_only_good_signatures_are_remembered() -> None:
    memory = SignatureMemory(VerifiedSignatures())
    calls: list[str] = []

    def bad() -> None:
        calls.append("bad")
        raise BadSignature("test")

    for _ in range(2):
        with pytest.raises(BadSignature):
            memory.once("kind", (b"a", b"b"), bad)
    memory.once("kind", (b"a", b"c"), lambda: calls.append("good"))
    memory.once("kind", (b"a", b"c"), bad)
    # Neither another kind nor another division of the same bytes is the same signature.
    memory.once("other", (b"a", b"c"), lambda: calls.append("kind"))
    memory.once("kind", (b"ac", b""), lambda: calls.append("division"))
    assert calls == ["bad", "bad", "good", "kind", "division"]
    assert len(memory.freeze().digests) == 3


# OCSP responders


def _ocsp(signer: Authority, *, now: datetime = NOW, der: bytes | None = None) -> datetime:
    answer = ocsp_response(serial=7, issuer=ROOT, signer=signer, this_update=NOW)
    return require_good(
        der or answer,
        parsed(leaf(*GOOD).der),
        parsed(ROOT.der),
        now=now,
        max_age=DAY,
        memory=SignatureMemory(VerifiedSignatures()),
    )


def test_issuer_and_appointed_responder_may_answer() -> None:
    assert _ocsp(ROOT) == NOW + DAY
    assert _ocsp(responder(SEED, ROOT, NOW)) == NOW + DAY


def test_a_certificate_of_somebody_else_does_not_make_a_responder() -> None:
    # Named by key as the responder, but the certificate that came is another key's.
    stranger = authority(SEED, "stranger", name(CN="TEST stranger"), PERIOD)
    with pytest.raises(Refused) as caught:
        _ocsp(replace(responder(SEED, ROOT, NOW), der=stranger.der))
    assert caught.value.reason is Reason.OCSP_RESPONDER_UNAUTHORIZED


_SIGNING = extension("2.5.29.37", encode_tlv(SEQUENCE, encode_oid("1.3.6.1.5.5.7.3.9")))


@pytest.mark.parametrize(
    "signer",
    [
        leaf(*GOOD),
        leaf(_SIGNING),
        leaf(*ca_extensions(KEY, ROOT.key), _SIGNING),
        leaf(*GOOD, _SIGNING, issuer=authority(SEED, "x", name(CN="TEST root"), PERIOD)),
        leaf(*GOOD, _SIGNING, period=Period(NOW - 2 * DAY, NOW - DAY)),
        leaf(*GOOD, _SIGNING, extension("1.2.3.4", b"\x05\x00", critical=True)),
    ],
    ids=["no purpose", "no signing", "a CA", "foreign", "expired", "unknown critical extension"],
)
def test_nobody_else_may_answer(signer: Authority) -> None:
    with pytest.raises(Refused) as caught:
        _ocsp(signer)
    assert caught.value.reason is Reason.OCSP_RESPONDER_UNAUTHORIZED


def test_an_answer_holds_no_longer_than_its_responder() -> None:
    soon = NOW + timedelta(hours=1)
    short = leaf(*GOOD, _SIGNING, period=Period(NOW - DAY, soon))
    assert _ocsp(short) == soon


# Versions


def test_versions_are_compared_group_by_group() -> None:
    rule = MinimumVersion("550.90.07")
    assert rule.accepts("550.90.07")
    assert rule.accepts("550.144.03")
    assert rule.accepts("1000.1")
    assert not rule.accepts("550.54")
    assert not rule.accepts("550")
    assert not rule.accepts("r551")
    assert MinimumVersion("96.00.9F.00.01").accepts("96.00.A5.00.01")


def test_rules_without_meaning_cannot_be_made() -> None:
    policy = SimulatedGpuSet(SEED, (SimulatedGpu(),), now=NOW).policy()
    with pytest.raises(ValueError, match="a version"):
        MinimumVersion("newest")
    with pytest.raises(ValueError, match="allow-list"):
        AllowedVersions(())
    with pytest.raises(ValueError, match="a policy"):
        replace(policy, chips=frozenset())
    with pytest.raises(ValueError, match="a policy"):
        replace(policy, gpu_count=0)
    with pytest.raises(ValueError, match="a policy"):
        replace(policy, max_ocsp_age=timedelta(0))


def test_a_verified_manifest_cannot_be_forged_by_construction() -> None:
    genuine = SimulatedGpuSet(SEED, (SimulatedGpu(),), now=NOW)
    known = _result(genuine).verified_rims[0]
    with pytest.raises(TypeError):
        VerifiedRim(known.sha256, known.root_sha256, known.rim, known.chain, object())


# What is remembered is never believed about other bytes or under other roots


def _result(
    gpus: SimulatedGpuSet,
    known: tuple[VerifiedRim, ...] = (),
    endorsements: NvidiaEndorsements | None = None,
) -> GpuSetResult:
    return appraise_gpus(
        gpus.collect(NONCE),
        endorsements or gpus.endorsements(NOW),
        roots=gpus.roots(),
        policy=gpus.policy(),
        expected_nonce=NONCE,
        now=NOW,
        known_rims=known,
    )


def test_a_known_manifest_is_only_used_for_its_bytes_and_root() -> None:
    gpus = SimulatedGpuSet(SEED, (SimulatedGpu(),), now=NOW)
    known = _result(gpus).verified_rims
    assert _result(gpus, known).verified_rims == known
    edited = SimulatedGpuSet(SEED, (SimulatedGpu(),), now=NOW, fault=GpuFault.RIM_EDITED)
    with pytest.raises(EvidenceRejected) as caught:
        _result(edited, known)
    assert caught.value.reason is Reason.RIM_DIGEST_MISMATCH
    foreign = SimulatedGpuSet(b"foreign", (SimulatedGpu(),), now=NOW)
    mixed = replace(foreign.endorsements(NOW), rims=gpus.endorsements(NOW).rims)
    with pytest.raises(EvidenceRejected) as caught:
        _result(foreign, known, mixed)
    assert caught.value.reason is Reason.RIM_CHAIN_INVALID


# Bounds


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        ((), Reason.GPU_MISSING),
        ((GpuEvidence(b"r", b"c"),) * 17, Reason.TOPOLOGY_COUNT),
        ((GpuEvidence(b"r" * 0x2001, b"c"),), Reason.REPORT_MALFORMED),
        ((GpuEvidence(b"r", b"c" * 0x4001),), Reason.CHAIN_MALFORMED),
        ((GpuEvidence(b"r", b""),), Reason.CHAIN_MALFORMED),
        ((GpuEvidence(b"r", b"not PEM"),), Reason.CHAIN_MALFORMED),
    ],
)
def test_bounds(devices: tuple[GpuEvidence, ...], reason: Reason) -> None:
    gpus = SimulatedGpuSet(SEED, (SimulatedGpu(),), now=NOW)
    with pytest.raises(EvidenceRejected) as caught:
        appraise_gpus(
            devices,
            gpus.endorsements(NOW),
            roots=gpus.roots(),
            policy=gpus.policy(),
            expected_nonce=NONCE,
            now=NOW,
        )
    assert caught.value.reason is reason


def test_one_manifest_id_twice_is_ambiguous() -> None:
    gpus = SimulatedGpuSet(SEED, (SimulatedGpu(),), now=NOW)
    endorsements = gpus.endorsements(NOW)
    twice = (*endorsements.rims, RimDocument(endorsements.rims[0].id, b"other"))
    with pytest.raises(EvidenceRejected) as caught:
        _result(gpus, endorsements=replace(endorsements, rims=twice))
    assert caught.value.reason is Reason.RIM_MALFORMED


@pytest.mark.parametrize(("nonce", "now"), [(b"short", NOW), (NONCE, NOW.replace(tzinfo=None))])
def test_misuse_is_no_verdict(nonce: bytes, now: datetime) -> None:
    gpus = SimulatedGpuSet(SEED, (SimulatedGpu(),), now=NOW)
    with pytest.raises(ValueError, match="nonce has 32 bytes"):
        appraise_gpus(
            gpus.collect(NONCE),
            gpus.endorsements(NOW),
            roots=gpus.roots(),
            policy=gpus.policy(),
            expected_nonce=nonce,
            now=now,
        )


# Names, as an authority in error would certify them


def _named(
    leaf_name: str = "GH100 A01 GSP FMC LF", device_name: bytes | None = b"NVIDIA:GH100:48B02D00"
) -> tuple[SimulatedGpuSet, tuple[GpuEvidence, ...]]:
    """Return a set whose only device got another leaf from its own BROM, and its evidence."""
    gpus = SimulatedGpuSet(SEED, (SimulatedGpu(),), now=NOW)
    (device,) = gpus._devices
    extensions = [*end_entity_extensions(device.leaf_key, device.brom.key)]
    if device_name is not None:
        text = encode_tlv(0x0C, device_name)
        oid = encode_oid("1.3.6.1.4.1.412.274.1")
        other = encode_tlv(0xA0, oid, encode_tlv(0xA0, text))
        extensions.append(extension("2.5.29.17", encode_tlv(SEQUENCE, other)))
    der = issue(
        subject=name(CN=leaf_name),
        subject_key=device.leaf_key,
        issuer=device.brom.subject,
        issuer_key=device.brom.key,
        serial=99,
        period=PERIOD,
        extensions=extensions,
    )
    return gpus, (replace(device, chain=(der, *device.chain[1:])).evidence(NONCE),)


@pytest.mark.parametrize(
    "change",
    [
        {"leaf_name": "GB100 A01 GSP FMC LF"},
        {"leaf_name": "GH100 A01 GSP BROM"},
        {"leaf_name": "TEST"},
        {"device_name": None},
        {"device_name": b"NVIDIA:GB100:48B02D00"},
        {"device_name": b"NVIDIA:GH100"},
        {"device_name": b"OTHER:GH100:48B02D00"},
        {"leaf_name": "GX999 A01 GSP FMC LF", "device_name": b"NVIDIA:GX999:00"},
    ],
)
def test_all_names_have_to_agree(change: dict[str, str]) -> None:
    gpus, devices = _named(**change)  # type: ignore[arg-type]
    with pytest.raises(EvidenceRejected) as caught:
        appraise_gpus(
            devices,
            gpus.endorsements(NOW),
            roots=gpus.roots(),
            policy=gpus.policy(),
            expected_nonce=NONCE,
            now=NOW,
        )
    assert caught.value.reason is Reason.ARCH_MISMATCH


@pytest.mark.parametrize(
    ("identity", "provisioner"),
    [
        ("NVIDIA GH100 Identity", "NVIDIA GH100 Provisioner"),
        ("NVIDIA GH100 Identity", "NVIDIA GB100 Provisioner ICA 1"),
        ("NVIDIA GB100 Identity", "NVIDIA GH100 Provisioner ICA 1"),
        ("NVIDIA LS_10 Identity", "NVIDIA GH100 Provisioner ICA 1"),
    ],
)
def test_the_authorities_are_those_of_the_chip(identity: str, provisioner: str) -> None:
    gpus = SimulatedGpuSet(SEED, (SimulatedGpu(),), now=NOW)
    (device,) = gpus._devices
    root = DeviceAuthorities.make(SEED, "GH100").root
    second = authority(SEED, "other identity", name(CN=identity), PERIOD, parent=root)
    first = authority(SEED, "other ICA", name(CN=provisioner), PERIOD, parent=second)
    made = make_device(
        SEED,
        device.identity,
        DeviceAuthorities(root, second, first),
        blocks=device.blocks,
        opaque=device.opaque,
        fault=None,
    )
    with pytest.raises(EvidenceRejected) as caught:
        appraise_gpus(
            (made.evidence(NONCE),),
            gpus.endorsements(NOW),
            roots=gpus.roots(),
            policy=gpus.policy(),
            expected_nonce=NONCE,
            now=NOW,
        )
    assert caught.value.reason is Reason.ARCH_MISMATCH


@pytest.mark.parametrize("chip", ["GH100", "GB100"])
def test_modes_that_a_chip_does_not_have_are_refused(chip: str) -> None:
    mode = GpuMode.MPT if chip == "GH100" else GpuMode.PPCIE
    gpus = SimulatedGpuSet(SEED, (SimulatedGpu(chip=chip, mode=mode),), now=NOW)
    with pytest.raises(EvidenceRejected) as caught:
        _result(gpus)
    assert caught.value.reason is Reason.MODE_MISMATCH


def _with_fields(
    gpu: SimulatedGpu, change: dict[int, bytes | None]
) -> tuple[SimulatedGpuSet, GpuEvidence]:
    """A report whose opaque entries were changed, or left out, before the device signed it."""
    gpus = SimulatedGpuSet(SEED, (gpu,), now=NOW)
    (device,) = gpus._devices
    report = parse_report(device.evidence(NONCE).report, GPU)
    opaque = tuple(
        (number, value)
        for number, value in ((n, change.get(n, old)) for n, old in report.opaque)
        if value is not None
    )
    message = encode_report(replace(report, opaque=opaque, signature=b""))
    chain = device.evidence(NONCE).chain_pem
    return gpus, GpuEvidence(message + device.leaf_key.sign(message), chain)


def _appraised(gpus: SimulatedGpuSet, device: GpuEvidence) -> GpuSetResult:
    return appraise_gpus(
        (device,),
        gpus.endorsements(NOW),
        roots=gpus.roots(),
        policy=gpus.policy(),
        expected_nonce=NONCE,
        now=NOW,
    )


BLACKWELL_MPT = SimulatedGpu(chip="GB100", mode=GpuMode.MPT)


@pytest.mark.parametrize(
    ("gpu", "change"),
    [
        (BLACKWELL_MPT, {34: None}),
        (BLACKWELL_MPT, {34: b"\0\0"}),
        (BLACKWELL_MPT, {36: None}),
        (SimulatedGpu(), {34: None, 36: b"\x02\0"}),
        (SimulatedGpu(), {36: None}),
    ],
)
def test_a_mode_that_two_fields_tell_differently_is_refused(
    gpu: SimulatedGpu, change: dict[int, bytes | None]
) -> None:
    with pytest.raises(EvidenceRejected) as caught:
        _appraised(*_with_fields(gpu, change))
    assert caught.value.reason is Reason.MODE_MISMATCH


@pytest.mark.parametrize("version", [None, b"\0\0"])
@pytest.mark.parametrize("flag", [None, b"\0\0"])
def test_a_report_of_the_old_layout_is_read_by_field_21(
    version: bytes | None, flag: bytes | None
) -> None:
    result = _appraised(*_with_fields(SimulatedGpu(), {34: version, 36: flag}))
    assert result.mode is GpuMode.SPT


def test_a_mode_is_read_from_field_36_where_field_21_is_absent() -> None:
    gpus, device = _with_fields(SimulatedGpu(mode=GpuMode.PPCIE), {21: None})
    with pytest.raises(EvidenceRejected) as caught:
        _appraised(gpus, device)
    (mode,) = {finding.detail for finding in caught.value.findings if finding.step == "nvidia/10"}
    assert mode == GpuMode.PPCIE
    assert caught.value.reason is Reason.TOPOLOGY_COUNT


@pytest.mark.parametrize(("own", "reason"), [(True, None), (False, Reason.FWID_MISMATCH)])
def test_a_switch_that_reports_a_firmware_id_is_held_to_it(
    own: bool,
    reason: Reason | None,
) -> None:
    system = simulated_ppcie(SEED, now=NOW)
    switch = system._devices[8]
    chain = parse_pem_chain(
        switch.evidence(NONCE).chain_pem, max_certificates=5, what="x", reason=Reason.FWID_MISSING
    )
    dice = parse_composite_device_id(chain[0].extension(COMPOSITE_DEVICE_ID) or b"")
    report = parse_report(switch.evidence(NONCE).report, SWITCH)
    opaque = (*report.opaque, (20, dice.fwid if own else bytes(48)))
    message = encode_report(replace(report, opaque=opaque, signature=b""))
    device = replace(switch.evidence(NONCE), report=message + switch.leaf_key.sign(message))
    with pytest.raises(EvidenceRejected) as caught:
        _appraised(system, device)
    (found,) = {finding.reason for finding in caught.value.findings if finding.step == "nvidia/7"}
    assert found is reason


@pytest.mark.parametrize("kind", ["gpu", "switch"])
def test_a_report_of_another_kind_of_device_is_told_apart(kind: Literal["gpu", "switch"]) -> None:
    system = simulated_ppcie(SEED, now=NOW)
    devices = {device.kind: device for device in system.collect(NONCE)}
    other = devices["switch" if kind == "gpu" else "gpu"]
    with pytest.raises(EvidenceRejected) as caught:
        _appraised(system, replace(other, kind=kind))
    (found,) = {finding.reason for finding in caught.value.findings if finding.step == "nvidia/4"}
    assert found is Reason.ARCH_MISMATCH


def test_a_report_shorter_than_a_signature_is_malformed() -> None:
    gpus = SimulatedGpuSet(SEED, (SimulatedGpu(),), now=NOW)
    device = gpus.collect(NONCE)[0]
    with pytest.raises(EvidenceRejected) as caught:
        appraise_gpus(
            (replace(device, report=device.report[:96]),),
            gpus.endorsements(NOW),
            roots=gpus.roots(),
            policy=gpus.policy(),
            expected_nonce=NONCE,
            now=NOW,
        )
    assert caught.value.reason is Reason.REPORT_MALFORMED
