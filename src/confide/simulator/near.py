"""SIMULATED NEAR AI Cloud: reports and signatures in its exact shapes, under simulated roots.

Shapes: docs/protocols/near.md and the service's published wire format. Everything that hardware
would sign is signed by the simulated platform and the simulated GPUs, so the reports pass the same
appraisal as genuine ones once a caller names the simulated roots. Equal arguments, equal bytes.
The documents are plain JSON values: a test that wants a dishonest service edits them.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from confide.appraisal.nvidia_policy import GpuMode
from confide.crypto.ecdsa import Curve, SigningKey, derive_signing_key
from confide.crypto.ed25519 import Ed25519Signer
from confide.crypto.ethereum import (
    address_of,
    derive_secp256k1_public_key,
    sign_personal_message,
)
from confide.crypto.issuing import CertificateTemplate, encode_pem, issue_certificate
from confide.simulator.dstack_launch import SimulatedGuestLaunch, launch_guest
from confide.simulator.nvidia import SimulatedGpuSet
from confide.simulator.nvidia_gpu import SimulatedGpu
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.trust.roots import Roots, make_simulated_roots
from confide.wire.endorsements import Endorsements
from confide.wire.evidence import NvidiaEndorsements, OcspAnswer, RimDocument
from confide.wire.json import jcs
from confide.wire.ohttp import Kem, KeyConfig, encode_key_config

if TYPE_CHECKING:
    from datetime import datetime

    from confide.wire.evidence import GpuEvidence
    from confide.wire.json import JsonValue

__all__ = ["Algorithm", "SimulatedNear", "SimulatedNearNode", "encode_report"]

Algorithm = Literal["ecdsa", "ed25519"]
_MODEL: Final = "simulated/model-8b"


def encode_report(document: JsonValue) -> bytes:
    """Return a report as it goes over the wire: compact JSON in the order of its members."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _compose(name: str) -> bytes:
    # dstack hashes the bytes it got, in whatever style: here indented, members not sorted.
    image = f"example/simulated@sha256:{hashlib.sha256(b'SIMULATED image').hexdigest()}"
    services = f"services:\n  {name}:\n    image: {image}\n"
    document = {
        "manifest_version": 2,
        "name": f"simulated-{name}",
        "runner": "docker-compose",
        "docker_compose_file": services,
        "kms_enabled": True,
        "gateway_enabled": False,
        "local_key_provider_enabled": False,
        "key_provider_id": "",
        "public_logs": False,
        "public_sysinfo": False,
        "allowed_envs": [],
        "no_instance_id": False,
        "secure_time": False,
        "pre_launch_script": "# SIMULATED, with a letter outside ASCII: é\n",
    }
    return json.dumps(document, indent=4, ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedNearNode:
    """One machine: its launch, its keys, its GPUs (none for a gateway)."""

    name: str
    compose: bytes
    guest: SimulatedGuestLaunch
    secret: bytes = field(repr=False)
    ed25519: Ed25519Signer = field(repr=False)
    tls: SigningKey = field(repr=False)
    gpus: SimulatedGpuSet | None

    @property
    def spki_sha256(self) -> bytes:
        """SHA-256 of the SubjectPublicKeyInfo of the machine's TLS key."""
        return hashlib.sha256(self.tls.public.spki()).digest()

    def public_key(self, algorithm: Algorithm) -> bytes:
        """Return the signing key: X ‖ Y for ecdsa, 32 bytes for ed25519."""
        if algorithm == "ecdsa":
            return derive_secp256k1_public_key(self.secret)
        return self.ed25519.public_key

    def address(self, algorithm: Algorithm) -> bytes:
        """Return what report data commits to: 20 or 32 bytes."""
        public = self.public_key(algorithm)
        return address_of(public) if algorithm == "ecdsa" else public


class SimulatedNear:
    """
    A gateway and `nodes` machines that serve one model, each with `gpus` GPUs of `chip`.

    `now` is the day of certificates and manifests. The documents are fresh copies.
    """

    def __init__(
        self,
        seed: bytes,
        now: datetime,
        *,
        nodes: int = 1,
        gpus: int = 8,
        chip: str = "GH100",
        mode: GpuMode = GpuMode.PPCIE,
    ) -> None:
        self._seed, self._now, self._chip = seed, now, chip
        self.platform = SimulatedTdxPlatform(seed, now)
        self.gateway = self._node("gateway", _compose("gateway"), None)
        self.nodes = tuple(
            self._node(f"model-{at}", _compose("inference"), self._gpu_set(at, gpus, mode))
            for at in range(nodes)
        )
        # From: near-wire.md §7: the same key on all nodes of a model.
        ohttp = hashlib.sha256(b"SIMULATED OHTTP key" + seed).digest()
        self.key_config = encode_key_config(
            KeyConfig(
                key_id=1, kem=Kem.X25519, public_key=ohttp, algorithms=((0x0001, 1), (0x0001, 3))
            )
        )

    def _gpu_set(self, node: int, gpus: int, mode: GpuMode) -> SimulatedGpuSet:
        devices = tuple(
            SimulatedGpu(label=f"near-{node}-{at}", chip=self._chip, mode=mode)
            for at in range(gpus)
        )
        return SimulatedGpuSet(self._seed, devices, now=self._now)

    def _node(self, name: str, compose: bytes, gpus: SimulatedGpuSet | None) -> SimulatedNearNode:
        def derive(label: bytes) -> bytes:
            return hashlib.sha256(b"SIMULATED " + label + name.encode() + self._seed).digest()

        return SimulatedNearNode(
            name=name,
            compose=compose,
            guest=launch_guest(compose, label=name),
            secret=derive(b"secp256k1"),
            ed25519=Ed25519Signer(derive(b"ed25519")),
            tls=derive_signing_key(Curve.P256, self._seed, f"near tls {name}"),
            gpus=gpus,
        )

    def roots(self) -> Roots:
        """Return the simulated roots; naming them to a verifier accepts these reports."""
        gpus = self.nodes[0].gpus
        if gpus is None:  # pragma: no cover - model machines have GPUs
            raise ValueError("a model machine has GPUs")
        return make_simulated_roots(self.platform.anchor(), gpus.roots())

    def endorsements(self, now: datetime) -> Endorsements:
        """Return collateral, manifests and OCSP answers (made at `now`) for all machines."""
        rims: dict[str, RimDocument] = {}
        ocsp: dict[str, OcspAnswer] = {}
        for node in self.nodes:
            if node.gpus is not None:
                found = node.gpus.endorsements(now)
                rims |= {item.id: item for item in found.rims}
                ocsp |= {item.certificate_sha256: item for item in found.ocsp}
        return Endorsements(
            tdx=(self.platform.collateral(),),
            nvidia=NvidiaEndorsements(tuple(rims.values()), tuple(ocsp.values())),
        )

    def certificate_pem(self) -> str:
        """Return the certificate chain of the gateway's TLS key, self-signed."""
        template = CertificateTemplate(
            common_name="SIMULATED gateway",
            organization="SIMULATED",
            not_before=self._now - timedelta(days=1),
            not_after=self._now + timedelta(days=60),
        )
        key = self.gateway.tls
        return encode_pem(issue_certificate(template, key.public, issuer=None, issuer_key=key))

    def attestation(
        self, node: SimulatedNearNode, nonce: bytes, *, algorithm: Algorithm, tls: bool
    ) -> dict[str, JsonValue]:
        """Return one attestation object of a model machine."""
        document: dict[str, JsonValue] = {
            "model_name": _MODEL,
            **self._signer(node, algorithm),
            "signing_public_key": node.public_key(algorithm).hex(),
            "request_nonce": nonce.hex(),
            "intel_quote": self._quote(node, nonce, algorithm, tls=tls).hex(),
            "nvidia_payload": self._payload(node, nonce),
            "event_log": list(node.guest.log),
            "info": _info(node),
        }
        if tls:
            document["tls_cert_fingerprint"] = node.spki_sha256.hex()
        return document

    def direct_report(
        self, nonce: bytes, *, algorithm: Algorithm = "ed25519", tls: bool = True
    ) -> dict[str, JsonValue]:
        """Return the report of the first machine, with all machines and everything optional."""
        each = [self.attestation(n, nonce, algorithm=algorithm, tls=tls) for n in self.nodes]
        return {
            **each[0],
            "all_attestations": [*each],
            "compose_manager_attestation": self._manager(nonce),
            "ohttp_key_config": self.key_config.hex(),
            "ohttp_attestation": {
                "signing_algo": "ed25519",
                "signing_key": self.nodes[0].ed25519.public_key.hex(),
                "key_config": self.key_config.hex(),
                "signature": self.nodes[0].ed25519.sign(self.key_config).hex(),
            },
        }

    def gateway_report(
        self, nonce: bytes, *, algorithm: Algorithm = "ed25519", tls: bool = True
    ) -> dict[str, JsonValue]:
        """Return the report of the gateway with one direct object for each machine."""
        node = self.gateway
        quote = self._quote(node, nonce, algorithm, tls=tls)
        gateway: dict[str, JsonValue] = {
            **self._signer(node, algorithm),
            "intel_quote": quote.hex(),
            "event_log": json.dumps(node.guest.log),
            "report_data": self._report_data(node, nonce, algorithm, tls=tls).hex(),
            "request_nonce": nonce.hex(),
            "info": _info(node, as_text=True),
            "vpc": {"vpc_server_app_id": node.guest.app_id.hex(), "vpc_hostname": "simulated"},
        }
        if tls:
            gateway["tls_cert_fingerprint"] = node.spki_sha256.hex()
        return {
            "gateway_attestation": gateway,
            "model_attestations": [
                self.attestation(n, nonce, algorithm=algorithm, tls=False) for n in self.nodes
            ],
            "tls_certificate": self.certificate_pem(),
        }

    def signature(
        self,
        request: bytes,
        response: bytes,
        *,
        algorithm: Algorithm = "ed25519",
        model: str | None = _MODEL,
        node: SimulatedNearNode | None = None,
    ) -> dict[str, JsonValue]:
        """Return the answer of the signature look-up; `model` None gives the older text."""
        signer = node or self.nodes[0]
        digests = [hashlib.sha256(body).hexdigest() for body in (request, response)]
        text = ":".join(digests if model is None else [model, *digests])
        raw = text.encode()
        signed = (
            "0x" + sign_personal_message(signer.secret, raw).hex()
            if algorithm == "ecdsa"
            else signer.ed25519.sign(raw).hex()
        )
        return {
            "text": text,
            "signature": signed,
            **self._signer(signer, algorithm),
            "signature_kind": "provider_tee",
        }

    def _signer(self, node: SimulatedNearNode, algorithm: Algorithm) -> dict[str, JsonValue]:
        prefix = "0x" if algorithm == "ecdsa" else ""
        return {
            "signing_address": prefix + node.address(algorithm).hex(),
            "signing_algo": algorithm,
        }

    def _report_data(
        self, node: SimulatedNearNode, nonce: bytes, algorithm: Algorithm, *, tls: bool
    ) -> bytes:
        address = node.address(algorithm)
        if tls:
            return hashlib.sha256(address + node.spki_sha256).digest() + nonce
        return address.ljust(32, b"\0") + nonce

    def _quote(
        self, node: SimulatedNearNode, nonce: bytes, algorithm: Algorithm, *, tls: bool
    ) -> bytes:
        report_data = self._report_data(node, nonce, algorithm, tls=tls)
        return self.platform.quote(node.guest.launch, report_data=report_data)

    def _payload(self, node: SimulatedNearNode, nonce: bytes) -> JsonValue:
        if node.gpus is None:
            return None
        arch = "HOPPER" if self._chip == "GH100" else "BLACKWELL"
        devices = node.gpus.collect(nonce)
        payload: dict[str, JsonValue] = {
            "arch": arch,
            "nonce": nonce.hex(),
            "evidence_list": [_device(device, arch, nonce) for device in devices],
        }
        return json.dumps(payload)

    def _manager(self, nonce: bytes) -> dict[str, JsonValue]:
        node = self.nodes[0]
        actions: list[JsonValue] = [
            {"timestamp": "2026-06-29T00:00:00Z", "action": "compose_manager_started"},
            {
                "timestamp": "2026-06-29T00:00:09Z",
                "action": "compose_up",
                "tag": "SIMULATED é",
                "services": ["engine"],
                "file_sha256": hashlib.sha256(b"SIMULATED compose file").hexdigest(),
            },
        ]
        digest = hashlib.sha256(jcs(actions)).digest()
        return {
            "actions": actions,
            "actions_hash": digest.hex(),
            "nonce": nonce.hex(),
            "nonce_source": "request",
            "quote": self.platform.quote(node.guest.launch, report_data=digest + nonce).hex(),
            "event_log": list(node.guest.log),
            "report_data": (digest + nonce).hex(),
            "vm_config": json.dumps(node.guest.vm_config),
        }


def _device(device: GpuEvidence, arch: str, nonce: bytes) -> JsonValue:
    return {
        "arch": arch,
        "certificate": b64encode(device.chain_pem).decode(),
        "evidence": b64encode(device.report).decode(),
        "nonce": nonce.hex(),
    }


def _info(node: SimulatedNearNode, *, as_text: bool = False) -> JsonValue:
    """Return the unattested description; with `as_text` its inner object is JSON in a string."""
    launch, compose_hash = node.guest.launch, hashlib.sha256(node.compose).hexdigest()
    os_image = node.guest.vm_config["os_image_hash"]
    tcb_info: dict[str, JsonValue] = {
        "mrtd": launch.mr_td.hex(),
        **{f"rtmr{at}": value.hex() for at, value in enumerate(launch.rtmr)},
        "os_image_hash": os_image,
        "compose_hash": compose_hash,
        "device_id": hashlib.sha256(b"").hexdigest(),
        "app_compose": node.compose.decode(),
        "event_log": list(node.guest.log),
    }
    return {
        "app_id": node.guest.app_id.hex(),
        "instance_id": node.guest.instance_id.hex(),
        "app_name": "simulated",
        "compose_hash": compose_hash,
        "key_provider_info": json.dumps({"name": "kms", "id": b"SIMULATED provider".hex()}),
        "os_image_hash": os_image,
        "vm_config": json.dumps(node.guest.vm_config),
        "tcb_info": json.dumps(tcb_info) if as_text else tcb_info,
    }
