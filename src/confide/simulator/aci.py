"""A SIMULATED service that speaks ACI (`aci/1`): reports, receipts and sessions.

Shapes: docs/protocols/aci.md. The quote is signed by the simulated platform over a simulated dstack
guest, so reports pass the same appraisal as genuine ones once a caller names the simulated root.
Equal arguments, equal bytes. The documents are plain JSON values that tests may edit.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from confide.channel.aci import keyset_digest, report_data, session_id, statement
from confide.crypto.ed25519 import Ed25519Signer
from confide.simulator.dstack_launch import launch_guest
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.wire.json import jcs

if TYPE_CHECKING:
    from datetime import datetime

    from confide.wire.json import JsonValue

__all__ = ["SimulatedAci"]

_EVIDENCE: Final = b"SIMULATED upstream evidence"


def _sha256(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


class SimulatedAci:
    """One machine with a keyset; `now` is the day of certificates and of receipts."""

    def __init__(self, seed: bytes, now: datetime) -> None:
        self._now = now
        self.platform = SimulatedTdxPlatform(seed, now)
        self.signer = Ed25519Signer(hashlib.sha256(b"SIMULATED ACI receipts" + seed).digest())
        services = "services:\n  gateway:\n    image: example/simulated@sha256:" + "0" * 64 + "\n"
        self.compose = json.dumps(
            {
                "manifest_version": 2,
                "name": "simulated-aci",
                "runner": "docker-compose",
                "docker_compose_file": services,
            },
            indent=2,
        ).encode()
        self.guest = launch_guest(self.compose, label="aci")
        self.spki_sha256 = hashlib.sha256(b"SIMULATED TLS key" + seed).digest()
        self.e2ee_key = hashlib.sha256(b"SIMULATED E2EE key" + seed).digest()

    def keyset(self) -> dict[str, JsonValue]:
        """Return the keyset document: one key of each kind, valid for thirty days."""
        return {
            "subject": "dstack-app://simulated",
            "not_after": int((self._now + timedelta(days=30)).timestamp()),
            "receipt_signing_keys": [
                {"key_id": "r1", "algo": "ed25519", "public_key": self.signer.public_key.hex()}
            ],
            "e2ee_public_keys": [
                {
                    "key_id": "e1",
                    "algo": "x25519-aes-256-gcm-hkdf-sha256",
                    "public_key": self.e2ee_key.hex(),
                }
            ],
            "tls_public_keys": [
                {"spki_sha256": self.spki_sha256.hex(), "domain": "simulated.invalid"}
            ],
        }

    def report(
        self, nonce: bytes | None, *, serving: Literal["direct", "aggregator"] = "direct"
    ) -> dict[str, JsonValue]:
        """Return the attestation report for `nonce` (32 bytes), or one that nobody challenged."""
        digest = keyset_digest(self.keyset())
        slot = report_data(statement(digest, nonce.hex() if nonce is not None else None))
        quote = self.platform.quote(self.guest.launch, report_data=slot)
        return {
            "api_version": "aci/1",
            "workload_keyset_digest": digest,
            "attestation": {
                "tee_type": "tdx",
                "workload_keyset": self.keyset(),
                "report_data": slot.hex(),
                "source_provenance": {
                    "repo_url": "https://simulated.invalid/source",
                    "repo_commit": "0" * 40,
                    "image_digest": _sha256(b"SIMULATED image"),
                    "image_provenance": None,
                },
                "evidence": {
                    "quote": quote.hex(),
                    "quote_report_data": slot.hex(),
                    "event_log": json.dumps(self.guest.log),
                    "app_compose": self.compose.decode(),
                    "vm_config": json.dumps(self.guest.vm_config),
                    "key_custody": "SIMULATED",
                    "downstream_tls_binding": None,
                },
            },
            "service_capabilities": {"supported_e2ee_versions": ["2"], "serving": serving},
        }

    def session(self) -> dict[str, JsonValue]:
        """Return the document of one verified upstream session."""
        begin = int(self._now.timestamp())
        unknown: dict[str, JsonValue] = {"status": "unknown"}
        return {
            "api_version": "aci/1",
            "upstream_name": "simulated-upstream",
            "endpoint": "https://upstream.invalid",
            "verifier_id": "simulated/1",
            "established_at": begin,
            "expires_at": begin + 3600,
            "identity": None,
            "channel_binding": [
                {
                    "type": "tls_spki_sha256",
                    "origin": "https://upstream.invalid",
                    "spki_sha256": "d1" * 32,
                }
            ],
            "claims": {
                "tee_attested": {
                    "status": "asserted",
                    "source": "hardware_proven",
                    "reason": "SIMULATED",
                },
                "gpu_attested": unknown,
                "model_weights_provenance": unknown,
                "extra": {"tcb_status": "UpToDate"},
            },
            "evidence": {
                "digest": _sha256(_EVIDENCE),
                "data": f"data:text/plain;base64,{b64encode(_EVIDENCE).decode()}",
            },
        }

    def events(self, request: bytes, response: bytes) -> list[JsonValue]:
        """Return the events of one exchange with the upstream of `session`."""
        return [
            {"type": "request.received", "body_hash": _sha256(request)},
            {"type": "request.forwarded", "body_hash": _sha256(request)},
            {
                "type": "upstream.verified",
                "result": "verified",
                "required": True,
                "model_id": "simulated-model",
                "session_id": session_id(self.session()),
            },
            {"type": "response.returned", "body_hash": _sha256(response)},
        ]

    def receipt(
        self, request: bytes, response: bytes, *, events: list[JsonValue] | None = None
    ) -> dict[str, JsonValue]:
        """Return the signed receipt of one exchange; `events` stand in for the honest ones."""
        unsigned: dict[str, JsonValue] = {
            "api_version": "aci/1",
            "receipt_id": "rcpt-simulated",
            "chat_id": "chatcmpl-1",
            "model": "simulated-model",
            "workload_keyset_digest": keyset_digest(self.keyset()),
            "endpoint": "/v1/chat/completions",
            "method": "POST",
            "served_at": int(self._now.timestamp()),
            "event_log": self.events(request, response) if events is None else events,
            "key_id": "r1",
        }
        return {**unsigned, "signature": self.signer.sign(jcs(unsigned)).hex()}
