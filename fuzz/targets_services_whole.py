"""Target: the whole verifier of foreign services, over mutated documents of every format.

Beside the invariant of all targets, every word of a result is printable: text that a peer chose
reaches no terminal. The quotes stay genuine, SIMULATED ones, so that what stands around them is
judged to the end.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import reader_cases as cases

from confide.appraisal.nvidia_policy import GpuMode
from confide.appraisal.service_profiles import AUDIT, STRICT
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import ConfideError, Rejected
from confide.formats import registry
from confide.formats.verify import verify
from confide.simulator.aci import SimulatedAci
from confide.simulator.near import SimulatedNear, encode_report
from confide.simulator.nvidia import SimulatedGpuSet, simulated_nvidia_roots
from confide.simulator.nvidia_gpu import SimulatedGpu
from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine
from confide.trust.roots import make_simulated_roots
from confide.wire.bundle import encode_bundle, looks_like_bundle
from confide.wire.endorsements import Endorsements, SnpEndorsement
from confide.wire.json import b64encode, jcs
from confide.wire.service import Capture
from fuzz.driver import Target

if TYPE_CHECKING:
    from confide.appraisal.service_policy import Policy
    from confide.rats import AttestationResult
    from confide.trust.roots import Roots

_NOW, _NONCE, _SEED = cases.NOW, cases.NONCE, cases.SEED
_LOOK = replace(AUDIT, unsafe_simulated=True)
_POLICIES: tuple[Policy, ...] = (
    # Nothing stops at the first contradiction, and everything is decided.
    replace(_LOOK, claims=replace(_LOOK.claims, unsafe_tolerate=UnsafeAny())),
    replace(STRICT, unsafe_simulated=True),
)


@cache
def _near() -> SimulatedNear:
    return SimulatedNear(_SEED, _NOW, gpus=1, mode=GpuMode.SPT)


@cache
def _aci() -> SimulatedAci:
    return SimulatedAci(_SEED, _NOW)


@cache
def _gpus() -> SimulatedGpuSet:
    return SimulatedGpuSet(_SEED, (SimulatedGpu(),), now=_NOW)


@cache
def _amd() -> SimulatedSnpMachine:
    return SimulatedSnpMachine(_SEED, _NOW)


@cache
def _roots(name: str) -> Roots:
    if name == "near":
        return _near().roots()
    platform = _aci().platform if name == "aci" else cases.platform()
    return make_simulated_roots(platform.anchor(), simulated_nvidia_roots(_SEED), _amd().roots())


@cache
def _endorsements(name: str) -> Endorsements:
    if name == "near":
        return _near().endorsements(_NOW)
    platform = _aci().platform if name == "aci" else cases.platform()
    machine = _amd()
    return Endorsements(
        tdx=(platform.collateral(),),
        snp=(
            SnpEndorsement(
                leaf_der=machine.leaf_der, chain_pem=machine.chain_pem, crl_der=machine.crl_der
            ),
        ),
        nvidia=_gpus().endorsements(_NOW),
    )


def _dstack_answer() -> bytes:
    answer = {
        "quote": cases.quote(_NONCE + bytes(32)).hex(),
        "event_log": "[]",
        "report_data": _NONCE.hex(),
        "vm_config": json.dumps({"mr_config": "", "os_image_hash": "00" * 32}),
    }
    return json.dumps(answer).encode()


def _gpu_document() -> bytes:
    (device,) = _gpus().collect(_NONCE)
    entry = {
        "arch": "HOPPER",
        "evidence": b64encode(device.report),
        "certificate": b64encode(device.chain_pem),
    }
    bundle = {
        "vendor": "nvidia",
        "format": "nvidia-nvattest-collect-evidence-json-v1",
        "evidence": json.dumps({"evidences": [entry]}),
    }
    return json.dumps({"bundles": [bundle]}).encode()


@cache
def _seeds() -> tuple[bytes, ...]:
    enclave, (card,) = cases.enclave(), _gpus().collect(_NONCE)
    entry = {
        "arch": "HOPPER",
        "nonce": _NONCE.hex(),
        "evidence": b64encode(card.report),
        "certificate": b64encode(card.chain_pem),
    }
    report = encode_report(_near().gateway_report(_NONCE))
    saved = Capture(documents={"report": report}, format="near", nonce=_NONCE)
    return (
        report,
        encode_report(_near().direct_report(_NONCE)),
        json.dumps(_aci().report(_NONCE)).encode(),
        _dstack_answer(),
        jcs(enclave.v2()),
        jcs(enclave.v3(_NONCE, gpus=(card,))),
        cases.pod(devices=False).exchange(_NONCE)["attestation"],
        jcs(cases.pod(devices=False).evidence(_NONCE)),
        jcs([entry]),
        cases.quote(),
        _amd().report(SimulatedSnpLaunch(measurement=b"m" * 48), report_data=bytes(64)),
        encode_bundle(saved, Endorsements()),
    )


@cache
def _beside(name: str) -> dict[str, bytes]:
    """The documents that a format takes beside its main one."""
    if name == "dstack":
        return {"gpu": _gpu_document()}
    return {"init-data": cases.INIT_DATA} if name == "trustee" else {}


def _verify(raw: bytes) -> None:
    try:
        _read_and_judge(raw)
    except ConfideError as error:
        if not str(error).replace("\n", "").isprintable():
            raise AssertionError(f"text of a peer in an error: {error!s}") from error
        raise


def _read_and_judge(raw: bytes) -> None:
    if looks_like_bundle(raw):
        _judge(raw, "near")
        return
    known = registry.recognise(raw)
    main = {"near": "report", "aci": "report", "dstack": "quote"}.get(known.name, "attestation")
    capture = Capture(
        documents={main: raw, **_beside(known.name)},
        format=known.name,
        # What a bundle says of its nonce is of any length.
        nonce=_NONCE if len(raw) % 2 else raw[: len(raw) % 70],
        tls_spki_sha256=_near().gateway.spki_sha256,
    )
    _judge(capture, known.name)


def _judge(shown: Capture | bytes, name: str) -> None:
    for policy in _POLICIES:
        try:
            result = verify(
                shown, _endorsements(name), policy, now=_NOW, roots=_roots(name), nonce=_NONCE
            )
        except Rejected as error:
            if error.result is None:
                raise
            result = error.result
        _require_printable(result)


def _require_printable(result: AttestationResult) -> None:
    for part in (result, *result.parts):
        words = [part.subject, *part.limits]
        words += [text for claim in part.claims for text in (claim.name, claim.source, claim.value)]
        words += [text for found in part.findings for text in (found.subject, found.detail)]
        odd = [word for word in words if not word.isprintable()]
        if odd:
            raise AssertionError(f"text of a peer in a result: {odd[0]!r}")


SERVICE_WHOLE_TARGETS: tuple[Target, ...] = (
    Target("services-whole", _verify, _seeds, json_values=True, tokens=(b"\\u001b[2J", b"\x1b")),
)
