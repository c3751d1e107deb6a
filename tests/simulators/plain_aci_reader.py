"""A small reader of `aci/1`, written from its description alone: it shares no code with ours.

Canonical JSON is `json.dumps` with sorted names, which is RFC 8785 for the ASCII names and the
integers of these documents. The quote is cut at fixed offsets and not verified.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

# From: Intel TDX DCAP quote version 4: 48 bytes of header, REPORTDATA at 520 of the report.
_REPORT_DATA = slice(48 + 520, 48 + 584)
_MRS = slice(48 + 328, 48 + 520)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _sha256(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def require_bound(report: dict[str, Any], nonce: str | None) -> dict[str, Any]:
    """Return the keyset of `report`, which hardware signed together with `nonce`."""
    attestation = report["attestation"]
    keyset: dict[str, Any] = attestation["workload_keyset"]
    digest = _sha256(_canonical(keyset))
    assert report["api_version"] == "aci/1"
    assert report["workload_keyset_digest"] == digest
    said = "null" if nonce is None else f'"{nonce}"'
    line = f'{{"keyset_digest":"{digest}","nonce":{said},"purpose":"aci.report_data.v1"}}'
    expected = hashlib.sha256(line.encode()).digest()
    assert attestation["report_data"] == expected.hex()
    quote = bytes.fromhex(attestation["evidence"]["quote"])
    assert quote[_REPORT_DATA] == expected + bytes(32)
    assert attestation["evidence"]["quote_report_data"] == quote[_REPORT_DATA].hex()
    register = bytes(48)
    for event in json.loads(attestation["evidence"]["event_log"]):
        assert event["imr"] == 3
        register = hashlib.sha384(register + bytes.fromhex(event["digest"])).digest()
    assert quote[_MRS][-48:] == register
    return keyset


def require_receipt(
    raw: bytes, keyset: dict[str, Any], request: bytes, response: bytes
) -> dict[str, Any]:
    """Return the receipt in `raw`: signed by a key of `keyset`, about these bytes."""
    receipt: dict[str, Any] = json.loads(raw)
    signature = bytes.fromhex(receipt.pop("signature"))
    assert receipt["workload_keyset_digest"] == _sha256(_canonical(keyset))
    [key] = [key for key in keyset["receipt_signing_keys"] if key["key_id"] == receipt["key_id"]]
    assert key["algo"] == "ed25519"
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key["public_key"]))
    public.verify(signature, _canonical(receipt))
    events = receipt["event_log"]
    assert events[0] == {"type": "request.received", "body_hash": _sha256(request)}
    [returned] = [event for event in events if event["type"] == "response.returned"]
    assert returned["body_hash"] == _sha256(response)
    return receipt
