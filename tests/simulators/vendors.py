"""The services of Intel, AMD and NVIDIA on one SIMULATED host, and hardware that they know."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

from cryptography.x509 import ocsp
from http_stand_ins import Asked, FakeClock, FixedEntropy, NoSleep, Reply, StandIn, client_context

from confide.client.online import VendorServices, open_online
from confide.crypto.x509_rsa import parse_leaf_der
from confide.errors import Reason
from confide.simulator.nras import SimulatedNras
from confide.simulator.nvidia import simulated_ppcie
from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine
from confide.simulator.tdx import SimulatedLaunch, SimulatedTdxPlatform
from confide.wire.collateral import parse_collateral
from confide.wire.json import b64encode

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from confide.adapters.bounded_http import FetchLimits
    from confide.client.online import Online
    from confide.wire.collateral import Collateral
    from confide.wire.evidence import GpuEvidence, NvidiaEndorsements

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
SEED = b"vendors"
NONCE = bytes(range(32))
FMSPC = "5300000000aa"
SNP_LAUNCH = SimulatedSnpLaunch(measurement=bytes(48))
_JSON = ("content-type", "application/json")


def product_of(machine: SimulatedSnpMachine) -> str:
    """The product that the issuer of the machine's leaf names."""
    leaf = parse_leaf_der(machine.leaf_der, what="leaf", reason=Reason.CHAIN)
    return leaf.issuer.rpartition("-")[2]


class Vendors(StandIn):
    """All services on one host; `always` and `script` (by part of the target) make them fail."""

    def __init__(self, *, now: datetime = NOW, seed: bytes = SEED) -> None:
        super().__init__(self._honest)
        self.time = now
        self.seed = seed
        self.sleeper = NoSleep()
        self.clock = FakeClock(now)
        self.machines: tuple[SimulatedSnpMachine, ...] = (SimulatedSnpMachine(seed, now),)

    @cached_property
    def platform(self) -> SimulatedTdxPlatform:
        return SimulatedTdxPlatform(self.seed, self.time)

    @cached_property
    def collateral(self) -> Collateral:
        return parse_collateral(self.platform.collateral())

    @cached_property
    def quote(self) -> bytes:
        register = bytes(48)
        launch = SimulatedLaunch(register, (register, register, register, register))
        return self.platform.quote(launch, report_data=bytes(64))

    @cached_property
    def devices(self) -> tuple[GpuEvidence, ...]:
        """Eight GPUs and four switches."""
        return simulated_ppcie(self.seed, now=self.time).collect(NONCE)

    @cached_property
    def nvidia(self) -> NvidiaEndorsements:
        return simulated_ppcie(self.seed, now=self.time).endorsements(self.time)

    def report(self, machine: int = 0) -> bytes:
        """A report of one of the SNP machines."""
        return self.machines[machine].report(SNP_LAUNCH, report_data=bytes(64))

    @cached_property
    def key_set(self) -> bytes:
        return SimulatedNras(self.seed, self.time).jwks()

    @cached_property
    def _statuses(self) -> dict[int, bytes]:
        found = ((ocsp.load_der_ocsp_response(each.der), each.der) for each in self.nvidia.ocsp)
        return {response.serial_number: der for response, der in found}

    def services(self, *, pccs: bool = False) -> VendorServices:
        """Return where everything is."""
        return VendorServices(
            pccs=self.url if pccs else None,
            pcs=self.url,
            root_crl=f"{self.url}/IntelSGXRootCA.der",
            kds=self.url,
            rim=self.url,
            ocsp=f"{self.url}/ocsp",
            nras=self.url,
        )

    def online(
        self,
        *,
        cache: Path | None = None,
        fresh: bool = False,
        pccs: bool = False,
        limits: FetchLimits | None = None,
        entropy: FixedEntropy | None = None,
    ) -> AbstractAsyncContextManager[Online]:
        """Open the network of a client for which these are the vendors."""
        return open_online(
            clock=self.clock,
            entropy=entropy or FixedEntropy(),
            cache=cache,
            services=self.services(pccs=pccs),
            fresh=fresh,
            sleeper=self.sleeper,
            limits=limits,
            tls=client_context(),
        )

    def _honest(self, asked: Asked) -> Reply:
        for prefix, route in (
            ("/tdx/", self._intel),
            ("/sgx/", self._intel),
            ("/IntelSGXRootCA.der", self._intel),
            ("/vcek/", self._amd),
            ("/vlek/", self._amd),
            ("/v1/rim/", self._rim),
            ("/ocsp", self._ocsp),
            ("/.well-known/jwks.json", lambda _: Reply(self.key_set, headers=(_JSON,))),
            ("/v4/attest/", lambda _: Reply(b'[["JWT","a.b.c"],{"GPU-0":"a.b.c"}]')),
        ):
            if asked.target.startswith(prefix):
                return route(asked)
        return Reply(status=404)

    def tcb_info(self, fmspc: str = FMSPC) -> Reply:
        """The answer about `fmspc`, wrapped as Intel does; with another FMSPC it is a lie."""
        document = self.collateral.tcb_info.replace(FMSPC.upper().encode(), fmspc.upper().encode())
        return self._signed("tcbInfo", document, "TCB-Info-Issuer-Chain")

    def _signed(self, member: str, document: bytes, header: str) -> Reply:
        signature = (
            self.collateral.tcb_info_signature
            if member == "tcbInfo"
            else self.collateral.qe_identity_signature
        )
        body = b'{"%b":%b,"signature":"%b"}' % (
            member.encode(),
            document,
            signature.hex().encode(),
        )
        chain = quote(self.collateral.tcb_info_chain.decode())
        return Reply(body, headers=(_JSON, (header, chain)))

    def _intel(self, asked: Asked) -> Reply:
        query = parse_qs(urlsplit(asked.target).query)
        chain = quote(self.collateral.pck_crl_chain.decode())
        if asked.path == "/sgx/certification/v4/pckcrl" and query == {
            "ca": ["platform"],
            "encoding": ["der"],
        }:
            headers = ("content-type", "application/pkix-crl"), ("SGX-PCK-CRL-Issuer-Chain", chain)
            return Reply(self.collateral.pck_crl, headers=headers)
        if asked.path == "/tdx/certification/v4/tcb" and query == {"fmspc": [FMSPC]}:
            return self.tcb_info()
        plain = {
            "/tdx/certification/v4/qe/identity": self._signed(
                "enclaveIdentity", self.collateral.qe_identity, "SGX-Enclave-Identity-Issuer-Chain"
            ),
            "/sgx/certification/v4/rootcacrl": Reply(self.collateral.root_crl.hex().encode()),
            "/IntelSGXRootCA.der": Reply(self.collateral.root_crl),
        }
        return plain.get(asked.path, Reply(status=404))

    def _amd(self, asked: Asked) -> Reply:
        _, kind, _, product, thing = asked.path.split("/")
        for machine in self.machines:
            of = machine.parsed_report(SNP_LAUNCH, report_data=bytes(64))
            if (of.signing_key, product_of(machine)) != (kind.upper(), product):
                continue
            named = {"cert_chain": machine.chain_pem, "crl": machine.crl_der or b""}
            if kind == "vcek":
                named[machine.hardware_id.hex()] = machine.leaf_der
            if thing in named:
                return Reply(named[thing])
        return Reply(status=404)

    def rim(self, rim_id: str, *, under: str = "") -> Reply:
        """The manifest `rim_id`; with `under` it is served as if it were that one."""
        found = {each.id: each.xml for each in self.nvidia.rims}.get(rim_id)
        if found is None:
            return Reply(b'{"message":"RIM_NOT_FOUND"}', status=404, headers=(_JSON,))
        document = {
            "id": under or rim_id,
            "rim": b64encode(found),
            "sha256": "",
            "last_updated": "2026-11-01T00:00:00Z",
            "rim_format": "TCG",
            "request_id": "7",
        }
        return Reply(json.dumps(document).encode(), headers=(_JSON,))

    def _rim(self, asked: Asked) -> Reply:
        return self.rim(asked.path.removeprefix("/v1/rim/"))

    def _ocsp(self, asked: Asked) -> Reply:
        request = ocsp.load_der_ocsp_request(asked.body)
        return Reply(
            self._statuses[request.serial_number],
            headers=(("content-type", "application/ocsp-response"),),
        )
