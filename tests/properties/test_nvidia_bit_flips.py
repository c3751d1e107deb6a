"""Every bit of one GPU report, of one manifest and of one OCSP answer decides.

Exhaustive in the slow run; otherwise a sample that moves through every bit position of every part.
Everything is SIMULATED: it is signed under roots of its own and verified by the same code.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING

import pytest
from lxml import etree

from confide.appraisal.nvidia import NvidiaPolicy, VerifiedSignatures, appraise_gpus
from confide.appraisal.nvidia_chain import SignatureMemory
from confide.appraisal.nvidia_device import GENUINE_STEPS
from confide.appraisal.nvidia_ocsp import require_good
from confide.appraisal.nvidia_rim import verify_rim
from confide.appraisal.nvidia_state import Context, DeviceState
from confide.appraisal.steps import Refused, run_steps
from confide.crypto.ecdsa import Curve, derive_signing_key
from confide.crypto.x509 import Certificate, parse_certificate_der, parse_pem_chain
from confide.crypto.xmldsig import sign_enveloped, verify_enveloped
from confide.errors import FormatError, Reason
from confide.simulator.nvidia import SimulatedGpu, SimulatedGpuSet
from confide.wire.evidence import GpuEvidence, NvidiaEndorsements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
NONCE = hashlib.sha256(b"flip").digest()
SEED = b"flip"
# One bit in so many; coprime to 8, so that every position in a byte is met.
SAMPLE = 211


@cache
def _gpus() -> SimulatedGpuSet:
    return SimulatedGpuSet(SEED, (SimulatedGpu(),), now=NOW)


@cache
def _endorsements() -> NvidiaEndorsements:
    return _gpus().endorsements(NOW)


def _certificate(der: bytes) -> Certificate:
    return parse_certificate_der(der, what="test", reason=Reason.CHAIN_MALFORMED)


def _flips(raw: bytes, every: int) -> Iterator[tuple[int, bytes]]:
    data = bytearray(raw)
    for bit in range(0, len(raw) * 8, every):
        data[bit // 8] ^= 1 << (bit % 8)
        yield bit, bytes(data)
        data[bit // 8] ^= 1 << (bit % 8)


def _accepted(raw: bytes, every: int, verify: Callable[[bytes], object]) -> list[int]:
    """Return the bits whose change is not refused; the bytes themselves are accepted."""
    verify(raw)
    found = []
    for bit, flipped in _flips(raw, every):
        try:
            verify(flipped)
        except (Refused, FormatError):
            continue
        found.append(bit)
    return found


# A report


def _report_is_signed(raw: bytes) -> None:
    """Run the steps up to the signature of the report, with the chain known."""
    state = DeviceState(GpuEvidence(raw, _device().chain_pem), _context())
    for finding in run_steps(GENUINE_STEPS[:3], state, subject="gpu"):
        if finding.reason is not None:
            raise Refused(finding.reason)


@cache
def _device() -> GpuEvidence:
    return _gpus().collect(NONCE)[0]


@cache
def _context() -> Context:
    gpus = _gpus()
    policy: NvidiaPolicy = gpus.policy()
    return Context(
        _endorsements(),
        roots=gpus.roots(),
        policy=policy,
        expected_nonce=NONCE,
        now=NOW,
        memory=SignatureMemory(_known()),
        known_rims=(),
    )


@cache
def _known() -> VerifiedSignatures:
    gpus = _gpus()
    result = appraise_gpus(
        (_device(),),
        _endorsements(),
        roots=gpus.roots(),
        policy=gpus.policy(),
        expected_nonce=NONCE,
        now=NOW,
    )
    return result.verified_signatures


def test_a_sample_of_the_bits_of_a_report() -> None:
    assert _accepted(_device().report, SAMPLE, _report_is_signed) == []


@pytest.mark.slow
def test_every_bit_of_a_report() -> None:
    assert _accepted(_device().report, 1, _report_is_signed) == []


# A manifest


@cache
def _manifest() -> bytes:
    """
    Return a whole manifest with few entries, in the canonical form in which it is signed.

    In other forms some changes are no change of what is signed: white space between attributes,
    kinds of quotes, an empty element written with two tags.
    """
    genuine = _endorsements().rims[0].xml
    lines = genuine.partition(b"<ds:Signature")[0].splitlines(keepends=True)
    kept = [line for line in lines if b"<ns0:Resource" not in line or b'active="True"' in line]
    resources = [line for line in kept if b"<ns0:Resource" in line]
    short = b"".join(line for line in kept if line not in resources[2:]) + b"</SoftwareIdentity>"
    certificates = tuple(c.der for c in verify_enveloped(genuine).certificates)
    key = derive_signing_key(Curve.P384, SEED, "rim GH100 driver signer")
    signed = sign_enveloped(short, key, certificates)
    return etree.tostring(etree.fromstring(signed), method="c14n")


@cache
def _memory() -> SignatureMemory:
    # What is remembered is good for exactly its bytes, so it may be kept from flip to flip.
    return SignatureMemory(VerifiedSignatures())


@cache
def _rim_root() -> Certificate:
    return _certificate(_gpus().roots().rim)


def _verify_manifest(raw: bytes) -> None:
    verify_rim(raw, root=_rim_root(), memory=_memory())


def test_a_sample_of_the_bits_of_a_manifest() -> None:
    assert _accepted(_manifest(), SAMPLE, _verify_manifest) == []


@pytest.mark.slow
def test_every_bit_of_a_manifest() -> None:
    assert _accepted(_manifest(), 1, _verify_manifest) == []


# An OCSP answer


@cache
def _answer() -> tuple[bytes, Certificate, Certificate]:
    chain = parse_pem_chain(
        _device().chain_pem, max_certificates=5, what="chain", reason=Reason.CHAIN_MALFORMED
    )
    answers = {answer.certificate_sha256: answer.der for answer in _endorsements().ocsp}
    return answers[chain[1].sha256], chain[1], chain[2]


def _verify_answer(raw: bytes) -> None:
    _, certificate, issuer = _answer()
    require_good(
        raw,
        certificate,
        issuer,
        now=NOW,
        max_age=timedelta(hours=24),
        memory=SignatureMemory(VerifiedSignatures()),
    )


def test_a_sample_of_the_bits_of_an_answer() -> None:
    assert _accepted(_answer()[0], 17, _verify_answer) == []


@pytest.mark.slow
def test_every_bit_of_an_answer() -> None:
    assert _accepted(_answer()[0], 1, _verify_answer) == []
