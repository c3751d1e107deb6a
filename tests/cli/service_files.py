"""SIMULATED evidence of several services as files: what somebody has on disk before `verify`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import reader_cases as cases
from services import NONCE, NOW, near_case

from confide.simulator.aci import SimulatedAci
from confide.simulator.nvidia import SimulatedGpuSet, simulated_nvidia_roots
from confide.simulator.nvidia_gpu import SimulatedGpu
from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine
from confide.simulator.trustee import SimulatedPod
from confide.trust.roots import Roots, encode_roots_file, make_simulated_roots
from confide.wire.bundle import encode_bundle
from confide.wire.ccel import encode_ccel
from confide.wire.endorsements import Endorsements, SnpEndorsement
from confide.wire.json import jcs
from confide.wire.service import Capture

if TYPE_CHECKING:
    from pathlib import Path

    from confide.wire.evidence import GpuEvidence

AT = NOW.strftime("%Y-%m-%dT%H:%M:%SZ")
KINDS = ("near", "aci", "tinfoil", "trustee", "bare", "snp")


@dataclass(frozen=True)
class Service:
    """What one service presents, what vendors say about it, and the roots of its simulation."""

    capture: Capture
    endorsements: Endorsements
    roots: Roots

    @property
    def bundle(self) -> bytes:
        """The bundle that `confide capture` would write."""
        return encode_bundle(self.capture, self.endorsements)


@dataclass(frozen=True)
class Files:
    """The files of one service, and the words with which its owner accepts the simulation."""

    service: Service
    bundle: Path
    roots: Path

    @property
    def trust(self) -> tuple[str, ...]:
        """The words that name the simulated roots and the time of the capture."""
        return "--simulated-roots", str(self.roots), "--at", AT

    @property
    def look(self) -> tuple[str, ...]:
        """The same, under the profile for looking at a service."""
        return *self.trust, "--policy", "audit"


def write(service: Service, folder: Path) -> Files:
    """Write bundle and roots into `folder`."""
    files = Files(service, folder / "service.bundle", folder / "service.roots")
    files.bundle.write_bytes(service.bundle)
    files.roots.write_bytes(encode_roots_file(service.roots))
    return files


@cache
def service(kind: str) -> Service:
    """Return one simulated service of `kind`."""
    return _MAKERS[kind]()


def _near() -> Service:
    case = near_case()
    return Service(case.capture, case.endorsements, case.roots)


def _aci() -> Service:
    aci = SimulatedAci(b"foreign", NOW)
    capture = Capture(
        documents={"report": json.dumps(aci.report(NONCE)).encode()},
        nonce=NONCE,
        tls_spki_sha256=aci.spki_sha256,
        at=NOW,
    )
    roots = make_simulated_roots(aci.platform.anchor(), simulated_nvidia_roots(b"foreign"))
    return Service(capture, Endorsements(tdx=(aci.platform.collateral(),)), roots)


@cache
def _gpus() -> SimulatedGpuSet:
    return SimulatedGpuSet(cases.SEED, (SimulatedGpu(),), now=cases.NOW)


def _collect(nonce: bytes) -> tuple[GpuEvidence, ...]:
    return _gpus().collect(nonce)


@cache
def _amd() -> SimulatedSnpMachine:
    return SimulatedSnpMachine(cases.SEED, cases.NOW)


def _read(**documents: bytes) -> Service:
    capture = Capture(documents=documents, nonce=NONCE, tls_spki_sha256=cases.TLS, at=NOW)
    platform, amd = cases.platform(), _amd()
    roots = make_simulated_roots(platform.anchor(), simulated_nvidia_roots(cases.SEED), amd.roots())
    endorsed = SnpEndorsement(leaf_der=amd.leaf_der, chain_pem=amd.chain_pem, crl_der=amd.crl_der)
    nvidia = _gpus().endorsements(cases.NOW)
    return Service(
        capture, Endorsements(tdx=(platform.collateral(),), snp=(endorsed,), nvidia=nvidia), roots
    )


def _tinfoil() -> Service:
    return _read(document=jcs(cases.enclave().v3(cases.NONCE, gpus=_collect(cases.NONCE))))


def _trustee() -> Service:
    pod = SimulatedPod(
        platform=cases.platform(),
        init_data=cases.INIT_DATA,
        firmware_log=encode_ccel(()),
        gpus=_collect,
    )
    return _read(**pod.exchange(cases.NONCE))


def _bare() -> Service:
    return _read(quote=cases.quote())


def _snp() -> Service:
    launch = SimulatedSnpLaunch(measurement=bytes(48), host_data=bytes(32))
    return _read(report=_amd().report(launch, report_data=bytes(64)))


_MAKERS = {
    "near": _near,
    "aci": _aci,
    "tinfoil": _tinfoil,
    "trustee": _trustee,
    "bare": _bare,
    "snp": _snp,
}


def with_document(found: Service, raw: bytes) -> Service:
    """Return the service with other bytes in its first document."""
    documents = dict(found.capture.documents)
    documents[next(iter(documents))] = raw
    return replace(found, capture=replace(found.capture, documents=documents))
