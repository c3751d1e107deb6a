"""Intel, AMD, NVIDIA: what is asked, and answers that are about something else."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import (
    Certificate,
    CertificateBuilder,
    Name,
    NameAttribute,
    OCSPNonce,
    load_pem_x509_certificates,
    ocsp,
)
from cryptography.x509.oid import NameOID
from http_stand_ins import Asked, FixedEntropy, Reply
from vendors import FMSPC, NONCE, NOW, SEED, SNP_LAUNCH, Vendors

from confide.adapters.amd_kds import vcek_path
from confide.adapters.intel_pcs import platform_of
from confide.appraisal.nvidia import appraise_gpus
from confide.appraisal.tdx import verify_collateral, verify_quote
from confide.crypto.x509_rsa import parse_leaf_der
from confide.errors import EvidenceRejected, FormatError, Reason, Unavailable
from confide.simulator.nvidia import SimulatedGpu, SimulatedGpuSet, simulated_ppcie
from confide.simulator.nvidia_pki import ocsp_unavailable
from confide.simulator.snp import SimulatedSnpMachine
from confide.wire.collateral import parse_collateral
from confide.wire.service import SnpPart
from confide.wire.snp import Product, SigningKeyKind, encode_report, parse_report
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from confide.client.online import Online
    from confide.wire.endorsements import SnpEndorsement

Value = TypeVar("Value")


def ask(
    vendors: Vendors, what: Callable[[Online], Awaitable[Value]], *, pccs: bool = False
) -> Value:
    """Return what a client of `vendors` gets."""

    async def main() -> Value:
        async with vendors.running(), vendors.online(pccs=pccs) as net:
            return await what(net)

    return asyncio.run(main())


def collateral(vendors: Vendors, *, pccs: bool = False) -> bytes:
    return ask(vendors, lambda net: net.sources.tdx.collateral(vendors.quote), pccs=pccs)


def refused(vendors: Vendors, what: Callable[[Online], Awaitable[object]]) -> str:
    with pytest.raises(Unavailable) as caught:
        ask(vendors, what)
    return str(caught.value)


# Intel


def test_collateral_is_what_the_platform_has_byte_for_byte_and_verifies() -> None:
    vendors = Vendors()
    found = parse_collateral(collateral(vendors))
    assert found == vendors.collateral
    verified = verify_collateral(found, roots=(vendors.platform.anchor(),), now=NOW)
    verify_quote(parse_quote(vendors.quote), verified, now=NOW)
    assert sorted(vendors.targets()) == [
        "/IntelSGXRootCA.der",
        "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        "/tdx/certification/v4/qe/identity",
        f"/tdx/certification/v4/tcb?fmspc={FMSPC}",
    ]


def test_a_pccs_gives_the_same_and_is_the_only_one_asked() -> None:
    vendors = Vendors()
    assert parse_collateral(collateral(vendors, pccs=True)) == vendors.collateral
    assert "/sgx/certification/v4/rootcacrl" in vendors.targets()
    assert "/IntelSGXRootCA.der" not in vendors.targets()


def test_the_pccs_is_named_in_messages() -> None:
    vendors = Vendors()
    vendors.always["tcb?"] = Reply(b"Platform not found in the cache", status=461)
    with pytest.raises(Unavailable, match=f"PCCS: no TDX TCB info of FMSPC {FMSPC}: status 461"):
        collateral(vendors, pccs=True)


_QE_HEADER = ("SGX-Enclave-Identity-Issuer-Chain", "-----BEGIN CERTIFICATE-----%0A")
_CHAIN_HEADER = ("TCB-Info-Issuer-Chain", "-----BEGIN CERTIFICATE-----%0A")
_INTEL_FAULTS: dict[str, tuple[str, Callable[[Vendors], Reply], str]] = {
    "another platform": (
        "tcb?",
        lambda v: v.tcb_info("5300000000ab"),
        "the TCB info is of another platform",
    ),
    "the wrapper only": ("tcb?", lambda _: Reply(b"{}", headers=(_CHAIN_HEADER,)), "not tcbInfo"),
    "no header": ("tcb?", lambda v: replace(v.tcb_info(), headers=()), "issuer chain is missing"),
    "a chain of nothing": (
        "identity",
        lambda v: replace(
            v.answer(Asked("GET", "/tdx/certification/v4/qe/identity", {}, b"")),
            headers=(_QE_HEADER,),
        ),
        "not a chain of at most 3 PEM certificates",
    ),
    "not JSON": ("identity", lambda _: Reply(b"\x1f\x8b"), "something else"),
    "the other document": ("identity", lambda v: v.tcb_info(), "not enclaveIdentity"),
    "the root's list": (
        "pckcrl",
        lambda v: Reply(v.collateral.root_crl),
        "the revocation list is of another authority",
    ),
    "no list": ("pckcrl", lambda _: Reply(b"-----BEGIN"), "not a revocation list"),
    "the authority's list": (
        "RootCA.der",
        lambda v: Reply(v.collateral.pck_crl),
        "the revocation list is of another authority",
    ),
    "half a list": ("RootCA.der", lambda v: Reply(v.collateral.root_crl[:-1]), "not a revocation"),
}


@pytest.mark.parametrize("fault", _INTEL_FAULTS)
def test_what_intel_was_not_asked_for_is_unavailable(fault: str) -> None:
    part, reply, why = _INTEL_FAULTS[fault]
    vendors = Vendors()
    vendors.always[part] = reply(vendors)
    message = refused(vendors, lambda net: net.sources.tdx.collateral(vendors.quote))
    assert message.startswith("Intel PCS: no ")
    assert why in message
    assert "--pccs" in message


def test_everything_that_intel_does_not_give_is_told_at_once() -> None:
    vendors = Vendors()
    vendors.always["/"] = Reply(status=404)
    message = refused(vendors, lambda net: net.sources.tdx.collateral(vendors.quote))
    for part in ("TCB info", "QE identity", "list of the platform CA", "list of the root"):
        assert part in message


def test_a_signature_that_is_wrong_passes_here_and_not_the_verifier() -> None:
    vendors = Vendors()
    honest = vendors.tcb_info()
    edited = honest.body.replace(b'"tcbEvaluationDataNumber":18', b'"tcbEvaluationDataNumber":99')
    vendors.always["tcb?"] = replace(honest, body=edited)
    found = parse_collateral(collateral(vendors))
    with pytest.raises(EvidenceRejected) as caught:
        verify_collateral(found, roots=(vendors.platform.anchor(),), now=NOW)
    assert caught.value.reason is Reason.TCB_INFO_SIGNATURE


def test_the_collateral_of_another_root_passes_here_and_not_the_verifier() -> None:
    vendors, other = Vendors(), Vendors(seed=b"other vendors")
    vendors.collateral = other.collateral
    found = parse_collateral(collateral(vendors))
    with pytest.raises(EvidenceRejected):
        verify_collateral(found, roots=(vendors.platform.anchor(),), now=NOW)


def test_a_quote_that_names_no_platform_is_malformed() -> None:
    vendors = Vendors()
    with pytest.raises(FormatError):
        ask(vendors, lambda net: net.sources.tdx.collateral(b"no quote"))
    assert vendors.asked == []


def test_genuine_quotes_name_their_platform(vectors: Path) -> None:
    index = json.loads((vectors / "tdx" / "index.json").read_text())
    named = set()
    for case in index["cases"]:
        if case["outcome"] != "accept" or case.get("anchor", "intel") != "intel":
            continue
        platform = platform_of((vectors / "tdx" / case["quote"]).read_bytes())
        named.add((platform.fmspc, platform.authority))
        assert len(platform.fmspc) == 12
    assert {authority for _, authority in named} <= {"platform", "processor"}
    assert named


# AMD


def _snp(vendors: Vendors, part: SnpPart) -> SnpEndorsement:
    return ask(vendors, lambda net: net.sources.snp.endorsement(part))


def _machine(
    product: Product = Product.MILAN,
    *,
    version: int = 3,
    kind: SigningKeyKind = SigningKeyKind.VCEK,
) -> SimulatedSnpMachine:
    return SimulatedSnpMachine(SEED, NOW, product=product, version=version, kind=kind)


@pytest.mark.parametrize("product", Product)
def test_a_vcek_is_asked_for_by_chip_and_reported_tcb(product: Product) -> None:
    vendors = Vendors()
    vendors.machines = (_machine(product),)
    found = _snp(vendors, SnpPart(report=vendors.report()))
    machine = vendors.machines[0]
    assert found.leaf_der == machine.leaf_der
    assert (found.chain_pem, found.crl_der) == (machine.chain_pem, machine.crl_der)
    (target,) = vendors.targets("SPL=")
    tcb = parse_report(vendors.report()).reported_tcb.components(product)
    fmc = f"fmcSPL={tcb.fmc:02d}&" if product is Product.TURIN else ""
    chip = machine.hardware_id.hex()
    assert len(chip) == (16 if product is Product.TURIN else 128)
    assert target == (
        f"/vcek/v1/{product}/{chip}?{fmc}blSPL={tcb.boot_loader:02d}&teeSPL={tcb.tee:02d}"
        f"&snpSPL={tcb.snp:02d}&ucodeSPL={tcb.microcode:02d}"
    )
    assert len(vendors.asked) == 3


@pytest.mark.parametrize("product", [Product.MILAN, Product.GENOA])
def test_a_report_of_version_2_does_not_say_its_product(product: Product) -> None:
    vendors = Vendors()
    vendors.machines = (_machine(product, version=2),)
    assert _snp(vendors, SnpPart(report=vendors.report())).leaf_der == vendors.machines[0].leaf_der
    assert len(vendors.targets("SPL=")) == (1 if product is Product.MILAN else 2)


def test_a_chip_that_nobody_knows_is_unavailable() -> None:
    vendors = Vendors()
    report = _machine(version=2).report(SNP_LAUNCH, report_data=bytes(64))
    vendors.machines = ()
    message = refused(vendors, lambda net: net.sources.snp.endorsement(SnpPart(report=report)))
    assert message.startswith("AMD KDS: no VCEK of the Genoa chip ")
    assert "try again in a minute" in message


def test_a_leaf_that_came_along_is_used_and_not_asked_for() -> None:
    vendors = Vendors()
    leaf = vendors.machines[0].leaf_der
    assert _snp(vendors, SnpPart(report=vendors.report(), leaf_der=leaf)).leaf_der == leaf
    assert vendors.targets("SPL=") == []


def test_a_vlek_can_only_come_along() -> None:
    vendors = Vendors()
    vendors.machines = (_machine(kind=SigningKeyKind.VLEK),)
    bare = SnpPart(report=vendors.report())
    assert "AMD gives it to the cloud alone" in refused(
        vendors, lambda net: net.sources.snp.endorsement(bare)
    )
    leaf = vendors.machines[0].leaf_der
    found = _snp(vendors, replace(bare, leaf_der=leaf))
    assert found.chain_pem == vendors.machines[0].chain_pem
    assert {each.split("/")[1] for each in vendors.targets()} == {"vlek"}


def test_a_chip_that_hides_cannot_be_asked_about() -> None:
    vendors = Vendors()
    hidden = replace(parse_report(vendors.report()), mask_chip_key=True)
    part = SnpPart(report=encode_report(hidden))
    message = refused(vendors, lambda net: net.sources.snp.endorsement(part))
    assert "hides which chip" in message
    assert vendors.asked == []


_AMD_FAULTS: dict[str, tuple[str, Callable[[Vendors], Reply], str]] = {
    "another chip": (
        "SPL=",
        lambda _: Reply(SimulatedSnpMachine(b"other", NOW).leaf_der),
        "the certificate is of another chip",
    ),
    "another product": (
        "cert_chain",
        lambda _: Reply(_machine(Product.GENOA).chain_pem),
        "the chain is of another product",
    ),
    "half a chain": ("cert_chain", lambda v: Reply(v.machines[0].chain_pem[:-40]), "not a chain"),
    "another list": (
        "/crl",
        lambda _: Reply(_machine(Product.TURIN).crl_der or b""),
        "the revocation list is of another product",
    ),
    "no list": ("/crl", lambda _: Reply(b""), "not a revocation list"),
    "too often": ("SPL=", lambda _: Reply(status=429), "status 429, 4 times"),
}


@pytest.mark.parametrize("fault", _AMD_FAULTS)
def test_what_amd_was_not_asked_for_is_unavailable(fault: str) -> None:
    part, reply, why = _AMD_FAULTS[fault]
    vendors = Vendors()
    vendors.always[part] = reply(vendors)
    report = SnpPart(report=vendors.report())
    message = refused(vendors, lambda net: net.sources.snp.endorsement(report))
    assert message.startswith("AMD KDS: no ")
    assert why in message


def test_genuine_certificates_are_those_that_would_be_asked_for(vectors: Path) -> None:
    for name in ("a", "b", "azure", "debug"):
        report = parse_report((vectors / "snp" / f"report-milan-{name}.bin").read_bytes())
        leaf = parse_leaf_der(
            (vectors / "snp" / f"leaf-milan-{name}.der").read_bytes(),
            what="leaf",
            reason=Reason.CHAIN,
        )
        identifier = leaf.extension("1.3.6.1.4.1.3704.1.4")
        assert identifier == report.chip_id
        assert vcek_path(report, Product.MILAN).startswith(f"/vcek/v1/Milan/{identifier.hex()}?")


# NVIDIA


def test_twelve_devices_get_everything_once_and_side_by_side() -> None:
    vendors = Vendors()
    found = ask(vendors, lambda net: net.sources.nvidia.endorsements(vendors.devices))
    assert {rim.id: rim.xml for rim in found.rims} == {r.id: r.xml for r in vendors.nvidia.rims}
    assert {a.certificate_sha256: a.der for a in found.ocsp} == {
        a.certificate_sha256: a.der for a in vendors.nvidia.ocsp
    }
    assert len(vendors.asked) == len(found.rims) + len(found.ocsp)
    assert 1 < vendors.most_busy <= 8
    system = simulated_ppcie(SEED, now=NOW)
    appraise_gpus(
        vendors.devices,
        found,
        roots=system.roots(),
        policy=system.policy(),
        expected_nonce=NONCE,
        now=NOW,
    )


def test_ocsp_questions_are_sha_384_with_a_critical_nonce() -> None:
    vendors = Vendors()
    ask(vendors, lambda net: net.sources.nvidia.endorsements(vendors.devices[:1]))
    questions = [each for each in vendors.asked if each.target == "/ocsp"]
    # Three of the chain; two manifests share all but their signers.
    assert len(questions) == 3 + 4
    for each in questions:
        assert each.headers["content-type"] == "application/ocsp-request"
        request = ocsp.load_der_ocsp_request(each.body)
        assert request.hash_algorithm.name == "sha384"
        (extension,) = request.extensions
        assert extension.critical
        assert len(extension.value.nonce) == 32


def test_a_blackwell_gpu_is_asked_about_under_its_own_names() -> None:
    vendors = Vendors()
    gpus = SimulatedGpuSet(SEED, (SimulatedGpu(chip="GB100"),), now=NOW)
    vendors.nvidia = gpus.endorsements(NOW)
    ask(vendors, lambda net: net.sources.nvidia.endorsements(gpus.collect(NONCE)))
    assert sorted(vendors.targets("/v1/rim/")) == [
        "/v1/rim/NV_GPU_CC_DRIVER_GB100_590.48.01",
        "/v1/rim/NV_GPU_VBIOS_G525_0220_886_9700D90035",
    ]


def _other_rim(vendors: Vendors) -> Reply:
    """The manifest of a switch, served under the id of the GPU's driver."""
    switch = next(rim.id for rim in vendors.nvidia.rims if "SWITCH" in rim.id)
    driver = next(rim.id for rim in vendors.nvidia.rims if "DRIVER" in rim.id)
    return vendors.rim(switch, under=driver)


def _edited_rim(vendors: Vendors) -> Reply:
    driver = next(rim for rim in vendors.nvidia.rims if "DRIVER" in rim.id)
    edited = replace(driver, xml=driver.xml.replace(b'active="True"', b'active="False"', 1))
    vendors.nvidia = replace(vendors.nvidia, rims=(edited,))
    return vendors.rim(driver.id)


_RIM_FAULTS: dict[str, tuple[Callable[[Vendors], Reply], str]] = {
    "not published": (lambda v: v.rim("none"), "the service does not know it"),
    "another manifest": (_other_rim, "describes another version or product"),
    "another id": (
        lambda v: v.rim(next(r.id for r in v.nvidia.rims if "SWITCH" in r.id)),
        "the answer is another manifest",
    ),
    "edited": (_edited_rim, "the manifest's own signature is wrong"),
    "no manifest": (
        lambda _: Reply(b'{"id":"NV_GPU_DRIVER_GH100_580.95.05"}'),
        "the answer holds no manifest",
    ),
    "not base64": (
        lambda _: Reply(b'{"id":"NV_GPU_DRIVER_GH100_580.95.05","rim":"%%"}'),
        "not base64",
    ),
    "a bomb of entities": (
        lambda _: Reply(b'{"id":"NV_GPU_DRIVER_GH100_580.95.05","rim":"PCFET0NUWVBFIGE+PGEvPg=="}'),
        "document type declaration",
    ),
    "not JSON": (lambda _: Reply(b"<xml/>"), "not JSON"),
}


@pytest.mark.parametrize("fault", _RIM_FAULTS)
def test_a_manifest_that_is_not_the_one_is_unavailable(fault: str) -> None:
    reply, why = _RIM_FAULTS[fault]
    vendors = Vendors()
    devices = vendors.devices
    vendors.always["NV_GPU_DRIVER"] = reply(vendors)
    message = refused(vendors, lambda net: net.sources.nvidia.endorsements(devices))
    assert message.startswith("NVIDIA RIM service: no manifest NV_GPU_DRIVER_GH100_580.95.05: ")
    assert why in message
    assert "ask the operator" in message


def test_an_answer_about_another_certificate_is_unavailable() -> None:
    vendors = Vendors()
    vendors.always["/ocsp"] = Reply(vendors.nvidia.ocsp[0].der)
    message = refused(vendors, lambda net: net.sources.nvidia.endorsements(vendors.devices[:1]))
    assert "the answer is about another certificate" in message
    assert "NVIDIA OCSP: no status of certificate 2 of the device's chain" in message


def test_a_responder_that_is_busy_is_asked_again() -> None:
    vendors = Vendors()
    vendors.script["/ocsp"] = [Reply(ocsp_unavailable())] * 3
    found = ask(vendors, lambda net: net.sources.nvidia.endorsements(vendors.devices[:1]))
    assert len(found.ocsp) == 7
    assert len(vendors.sleeper.slept) == 3
    vendors.always["/ocsp"] = Reply(ocsp_unavailable())
    assert "the responder has no answer now, 4 times" in refused(
        vendors, lambda net: net.sources.nvidia.endorsements(vendors.devices[:1])
    )


@cache
def _responder() -> tuple[ec.EllipticCurvePrivateKey, Certificate]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = Name([NameAttribute(NameOID.COMMON_NAME, "TEST ONLY responder")])
    builder = (
        CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    return key, builder.sign(key, hashes.SHA384())


class _OtherNonce(Vendors):
    """A responder that answers honestly, and signs another nonce than the one asked with."""

    nonce = b"another nonce"

    def _ocsp(self, asked: Asked) -> Reply:
        request = ocsp.load_der_ocsp_request(asked.body)
        key, responder = _responder()
        chain = load_pem_x509_certificates(self.devices[0].chain_pem)
        for certificate, issuer in pairwise(chain):
            if certificate.serial_number == request.serial_number:
                builder = ocsp.OCSPResponseBuilder().add_response(
                    certificate,
                    issuer,
                    hashes.SHA384(),
                    ocsp.OCSPCertStatus.GOOD,
                    NOW,
                    NOW + timedelta(hours=24),
                    None,
                    None,
                )
                signed = (
                    builder.responder_id(ocsp.OCSPResponderEncoding.HASH, responder)
                    .add_extension(OCSPNonce(self.nonce), critical=False)
                    .sign(key, hashes.SHA384())
                )
                return Reply(signed.public_bytes(Encoding.DER))
        return super()._ocsp(asked)


def test_an_answer_with_another_nonce_is_unavailable() -> None:
    vendors = _OtherNonce()
    message = refused(vendors, lambda net: net.sources.nvidia.endorsements(vendors.devices[:1]))
    assert "the answer has another nonce" in message


def test_an_answer_with_the_nonce_is_taken_and_out_of_the_cache_too(tmp_path: Path) -> None:
    vendors = _OtherNonce()

    async def main() -> None:
        async with vendors.running():
            for byte in (0x11, 0x22):
                vendors.nonce = bytes([0x11]) * 32
                entropy = FixedEntropy(byte)
                async with vendors.online(cache=tmp_path, entropy=entropy) as net:
                    found = await net.sources.nvidia.endorsements(vendors.devices[:1])
                assert len(found.ocsp) == 7

    asyncio.run(main())
    assert len(vendors.targets("/ocsp")) == 7


def test_a_device_that_cannot_be_read_needs_nothing() -> None:
    vendors = Vendors()
    broken = (
        replace(vendors.devices[0], report=b""),
        replace(vendors.devices[0], chain_pem=b""),
        replace(vendors.devices[0], kind="switch"),
    )
    found = ask(vendors, lambda net: net.sources.nvidia.endorsements(broken))
    assert (found.rims, found.ocsp, vendors.asked) == ((), (), [])


# NVIDIA's remote service


def test_a_key_set_comes_exactly_as_served() -> None:
    vendors = Vendors()
    assert ask(vendors, lambda net: net.sources.nras.keys()) == vendors.key_set


@pytest.mark.parametrize("body", [b"", b"{}", b'{"keys":[]}', b'{"keys":7}'])
def test_what_is_no_key_set_is_unavailable(body: bytes) -> None:
    vendors = Vendors()
    vendors.always["jwks"] = Reply(body)
    assert refused(vendors, lambda net: net.sources.nras.keys()).startswith(
        "NVIDIA NRAS: no key set: "
    )


def test_a_token_is_asked_for_with_all_devices_of_one_kind() -> None:
    vendors = Vendors()
    token = ask(vendors, lambda net: net.nras.token(vendors.devices[:8], nonce=NONCE))
    assert token.startswith(b'[["JWT"')
    (asked,) = vendors.asked
    assert asked.target == "/v4/attest/gpu"
    body = json.loads(asked.body)
    assert (body["nonce"], body["arch"], len(body["evidence_list"])) == (NONCE.hex(), "HOPPER", 8)
    ask(vendors, lambda net: net.nras.token(vendors.devices[8:], nonce=NONCE))
    assert vendors.asked[-1].target == "/v4/attest/switch"


def test_a_token_for_none_or_several_kinds_is_not_asked_for() -> None:
    vendors = Vendors()
    for devices in ((), vendors.devices):
        with pytest.raises(FormatError):
            ask(vendors, lambda net, devices=devices: net.nras.token(devices, nonce=NONCE))  # type: ignore[misc]
    assert vendors.asked == []


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'[["JWT","x"]]', b'[["X","y"],{}]'])
def test_what_is_no_token_is_unavailable(body: bytes) -> None:
    vendors = Vendors()
    vendors.always["attest"] = Reply(body)
    assert "NVIDIA NRAS: no token for 1 device(s) of GH100" in refused(
        vendors, lambda net: net.nras.token(vendors.devices[:1], nonce=NONCE)
    )
