"""SIMULATED Tinfoil enclaves: documents in the exact shapes, over quotes of a simulated platform.

Shapes: docs/protocols/tinfoil.md §2 to §5. Nothing here was signed by Intel, NVIDIA or Sigstore:
quotes and reports end in simulated roots, and the Sigstore bundle has a signature of zeros that
no verifier accepts.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote as url_quote

from confide.simulator.tdx import SimulatedLaunch
from confide.wire.collateral import parse_collateral
from confide.wire.json import JsonValue, b64encode, jcs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.simulator.tdx import SimulatedTdxPlatform
    from confide.wire.evidence import GpuEvidence

__all__ = ["SimulatedEnclave", "gzip_bytes", "pcs_responses", "report_data_v3", "sigstore_bundle"]

_BASE: Final = "https://tinfoil.sh/"
_REPORT_DATA: Final = _BASE + "report-data/v1"


def gzip_bytes(raw: bytes) -> bytes:
    """Return one gzip member without a time: equal input, equal bytes."""
    packer = zlib.compressobj(wbits=31)
    return packer.compress(raw) + packer.flush()


def report_data_v3(nonce: bytes, crypto_material: bytes, device_evidence: bytes) -> bytes:
    """Return the 64 bytes that a version 3 enclave asks its hardware to sign."""
    digests = (hashlib.sha256(part).digest() for part in (crypto_material, device_evidence))
    return hashlib.sha256(_REPORT_DATA.encode() + nonce + b"".join(digests)).digest() + bytes(32)


def sigstore_bundle(registers: dict[str, str], *, digest: bytes) -> dict[str, JsonValue]:
    """Return a SIMULATED Sigstore bundle: the real statement shape under a signature of zeros."""
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "SIMULATED", "digest": {"sha256": digest.hex()}}],
        "predicateType": _BASE + "predicate/snp-tdx-multiplatform/v1",
        "predicate": {
            "snp_measurement": registers["snp"],
            "tdx_measurement": {name: registers[name] for name in ("rtmr1", "rtmr2")},
            "vm_shape": {"cpus": 1, "memory_mb": 1, "gpus": 0, "disks": 1},
        },
    }
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"certificate": {"rawBytes": ""}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": b64encode(jcs(statement)),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": b64encode(bytes(64))}],
        },
    }


def pcs_responses(collateral: bytes) -> dict[str, JsonValue]:
    """Return a collateral container as captured responses of a SIMULATED Intel."""
    found = parse_collateral(collateral)
    base = "https://api.trustedservices.intel.com/"
    rows: tuple[tuple[str, bytes, dict[str, bytes]], ...] = (
        (
            base + "tdx/certification/v4/tcb?fmspc=SIMULATED",
            b'{"tcbInfo":%b,"signature":"%b"}'
            % (found.tcb_info, found.tcb_info_signature.hex().encode()),
            {"Tcb-Info-Issuer-Chain": found.tcb_info_chain},
        ),
        (
            base + "tdx/certification/v4/qe/identity",
            b'{"enclaveIdentity":%b,"signature":"%b"}'
            % (found.qe_identity, found.qe_identity_signature.hex().encode()),
            {"Sgx-Enclave-Identity-Issuer-Chain": found.qe_identity_chain},
        ),
        (
            base + "sgx/certification/v4/pckcrl?ca=platform&encoding=der",
            found.pck_crl,
            {"Sgx-Pck-Crl-Issuer-Chain": found.pck_crl_chain},
        ),
        ("https://certificates.trustedservices.intel.com/IntelSGXRootCA.der", found.root_crl, {}),
    )
    return {
        "responses": [
            {
                "url": url,
                "headers": {name: [url_quote(pem.decode())] for name, pem in headers.items()},
                "body_base64": b64encode(body),
            }
            for url, body, headers in rows
        ]
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedEnclave:
    """
    One SIMULATED enclave on a simulated TDX platform.

    `tls` is the SHA-256 of its TLS key's SPKI, `hpke` its X25519 key, `release` the digest of its
    release. RTMR1 and RTMR2 are the ones that its statement names.
    """

    platform: SimulatedTdxPlatform
    tls: bytes
    hpke: bytes
    release: bytes

    def launch(self) -> SimulatedLaunch:
        """Return the registers of this enclave; RTMR3 is zero."""
        rtmr = tuple(hashlib.sha384(b"SIMULATED rtmr%d" % number).digest() for number in range(3))
        return SimulatedLaunch(
            mr_td=hashlib.sha384(b"SIMULATED firmware").digest(),
            rtmr=(rtmr[0], rtmr[1], rtmr[2], bytes(48)),
            mr_config_id=bytes(48),
        )

    def statement(self) -> dict[str, JsonValue]:
        """Return the SIMULATED Sigstore bundle over this enclave's registers."""
        rtmr = self.launch().rtmr
        registers = {"snp": "00" * 48, "rtmr1": rtmr[1].hex(), "rtmr2": rtmr[2].hex()}
        return sigstore_bundle(registers, digest=self.release)

    def v2(self) -> dict[str, JsonValue]:
        """Return a document of version 2: keys in the report data, no nonce."""
        raw = self.platform.quote(self.launch(), report_data=self.tls + self.hpke)
        return {
            "format": _BASE + "predicate/tdx-guest/v2",
            "body": b64encode(gzip_bytes(raw)),
        }

    def bundle(self) -> dict[str, JsonValue]:
        """Return what the attestation service gives out for this enclave."""
        return {
            "domain": "enclave.simulated.example",
            "enclaveAttestationReport": self.v2(),
            "digest": self.release.hex(),
            "sigstoreBundle": self.statement(),
            "vcek": "",
            "enclaveCert": "",
        }

    def v3(self, nonce: bytes, *, gpus: Sequence[GpuEvidence] = ()) -> dict[str, JsonValue]:
        """Return a document of version 3 for `nonce` (32 bytes), with the evidence of `gpus`."""
        keys = jcs(
            {
                "format": _BASE + "crypto-material/v1",
                "items": [
                    {
                        "id": "tls",
                        "format": _BASE + "key/spki-fp-sha256/v1",
                        "data": self.tls.hex(),
                    },
                    {
                        "id": "hpke",
                        "format": _BASE + "key/x25519-hpke/v1",
                        "data": self.hpke.hex(),
                    },
                ],
            }
        )
        devices = jcs({"format": _BASE + "device-evidence/v1", "items": _items(gpus, nonce)})
        report_data = report_data_v3(nonce, keys, devices)
        raw = self.platform.quote(self.launch(), report_data=report_data)
        return {
            "format": _BASE + "predicate/attestation/v3",
            "challenge": {
                "nonce": nonce.hex(),
                "report_data": report_data.hex(),
                "report_data_algorithm": _REPORT_DATA,
            },
            "cpu_evidence": {
                "format": _BASE + "format/tdx-quote/v1",
                "report_base64": b64encode(raw),
                "endorsed": {
                    "crypto_material_hash": hashlib.sha256(keys).hexdigest(),
                    "device_evidence_hash": hashlib.sha256(devices).hexdigest(),
                },
            },
            "crypto_material": b64encode(keys),
            "device_evidence": b64encode(devices),
            "collateral": self._collateral(),
        }

    def _collateral(self) -> list[JsonValue]:
        return [
            {
                "id": "intel",
                "role": "endorsement",
                "format": _BASE + "collateral/intel-pcs/v1",
                "subjects": ["cpu"],
                "data": pcs_responses(self.platform.collateral()),
            },
            {
                "id": "code",
                "role": "reference-values",
                "format": _BASE + "collateral/sigstore-code/v1",
                "subjects": ["cpu"],
                "data": {
                    "repo": "simulated/enclave",
                    "tag": "v0.0.0",
                    "digest": self.release.hex(),
                    "sigstore_bundle": self.statement(),
                },
            },
        ]


def _items(gpus: Sequence[GpuEvidence], nonce: bytes) -> list[JsonValue]:
    def entry(device: GpuEvidence) -> dict[str, JsonValue]:
        return {
            "arch": "LS10" if device.kind == "switch" else "HOPPER",
            "certificate": b64encode(device.chain_pem),
            "evidence": b64encode(device.report),
            "nonce": nonce.hex(),
        }

    cards = [device for device in gpus if device.kind == "gpu"]
    switches = [device for device in gpus if device.kind == "switch"]
    found: list[JsonValue] = [
        {
            "id": f"gpu{index}",
            "kind": "gpu",
            "vendor": "nvidia",
            "format": _BASE + "format/nvidia-gpu-evidence/v1",
            "evidence": entry(device),
        }
        for index, device in enumerate(cards)
    ]
    if switches:
        found.append(
            {
                "id": "nvswitch0",
                "kind": "nvswitch",
                "vendor": "nvidia",
                "format": _BASE + "format/nvidia-nvswitch-evidence/v1",
                "evidence": {
                    "result_code": 0,
                    "evidences": [entry(device) for device in switches],
                },
            }
        )
    return found
