"""Candidates of stage `nvidia`: each fault as a device, a set, an appraisal or an OCSP answer."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

from confide.crypto.x509 import parse_pem_chain
from confide.errors import Reason
from confide.simulator.machine import make_gpus
from confide.simulator.nvidia import SimulatedGpuSet
from confide.simulator.nvidia_faults import EXPECTED, GpuFault
from confide.simulator.nvidia_gpu import SimulatedGpu
from conformance.own.candidate import NONCE, NOW, SEED, Candidate
from conformance.own.snp import pem_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.wire.evidence import GpuEvidence

__all__ = ["candidates", "document"]

_KINDS = ("device", "set", "appraise", "ocsp")
_ROOT_FILES = {"device": "roots-device.pem", "rim": "roots-rim.pem"}


def document() -> dict[str, Any]:
    """Return the top of the index: the simulated roots."""
    return {"roots": _ROOT_FILES}


def _evidence(devices: tuple[GpuEvidence, ...]) -> bytes:
    rows = [
        {
            "arch": "LS10" if device.kind == "switch" else "HOPPER",
            "nonce": NONCE.hex(),
            "evidence": base64.b64encode(device.report).decode("ascii"),
            "certificate": base64.b64encode(device.chain_pem).decode("ascii"),
        }
        for device in devices
    ]
    return json.dumps(rows, indent=1).encode()


def _candidates(
    slug: str, gpus: SimulatedGpuSet, reason: Reason | None, kinds: tuple[str, ...]
) -> Iterator[Candidate]:
    devices, vouched = gpus.collect(NONCE), gpus.endorsements(NOW)
    roots = gpus.roots()
    common = {"nonce": NONCE.hex(), "now": NOW.isoformat().replace("+00:00", "Z")}
    files = {
        "evidence.json": _evidence(devices),
        _ROOT_FILES["device"]: pem_of([roots.device]),
        _ROOT_FILES["rim"]: pem_of([roots.rim]),
    }
    fixed = tuple(_ROOT_FILES.values())
    rims = {
        name: document.xml
        for document in vouched.rims
        if (name := "driver_rim" if "_DRIVER_" in document.id else "vbios_rim")
    }
    for kind in kinds:
        named: dict[str, Any] = {"evidence": "evidence.json"}
        more = dict(files)
        if kind == "appraise":
            for name, xml in rims.items():
                named[name] = f"{name}.xml"
                more[f"{name}.xml"] = xml
        if kind == "ocsp":
            yield from _answers(slug, gpus, common, files, reason)
            continue
        case = {**common, "kind": kind, "files": named}
        yield Candidate(slug, case, more, reason, roles=fixed)


def _answers(
    slug: str,
    gpus: SimulatedGpuSet,
    common: dict[str, Any],
    files: dict[str, bytes],
    reason: Reason | None,
) -> Iterator[Candidate]:
    """Yield each OCSP answer about the first device that the fault could be in."""
    devices, vouched = gpus.collect(NONCE), gpus.endorsements(NOW)
    if not devices:
        return
    answers = {answer.certificate_sha256: answer.der for answer in vouched.ocsp}
    chain = parse_pem_chain(
        devices[0].chain_pem, max_certificates=5, what="chain", reason=Reason.CHAIN_MALFORMED
    )
    for number, certificate in enumerate(chain[:-1]):
        der = answers.get(hashlib.sha256(certificate.der).hexdigest())
        if der is None:
            continue
        subject = {"evidence": "evidence.json", "index": 0, "cert": number}
        case = {**common, "kind": "ocsp", "files": {"response": "ocsp.der", "subject": subject}}
        fixed = tuple(_ROOT_FILES.values())
        yield Candidate(slug, case, {**files, "ocsp.der": der}, reason, roles=fixed)


def candidates() -> Iterator[Candidate]:
    """Yield every way of showing a fault; the generator keeps the first that shows it."""
    honest = make_gpus(SEED, NOW, ())
    yield from _candidates("honest", honest, None, ("appraise",))
    one = (SimulatedGpu(),)
    for fault in GpuFault:
        gpus = SimulatedGpuSet(SEED, one, now=NOW, fault=fault)
        yield from _candidates(fault.value, gpus, EXPECTED[fault], _KINDS)
