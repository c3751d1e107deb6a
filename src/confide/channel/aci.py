"""ACI (`aci/1`) compatibility: keyset digest, report data, session id, receipts, E2EE v2 data.

Specification: ACI aci/1 draft; docs/protocols/channel.md 8.2. Canonical JSON is RFC 8785. An ACI
receipt is self-asserted: its signature says which key issued it, not that its statements are
true or when it was issued. The keyset must be bound by evidence first; nothing here does that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from confide.crypto.ed25519 import verify_ed25519
from confide.crypto.errors import BadSignature
from confide.errors import FormatError, Reason, ReceiptRejected
from confide.rats import Finding, Status
from confide.wire.json import JsonValue, Members, is_hex, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from confide.crypto.ed25519 import Ed25519Signer
    from confide.wire.keyset import Keyset

__all__ = [
    "CHANNEL_ALGORITHMS",
    "SIGNING_ALGORITHM",
    "AciReceipt",
    "e2ee_request_aad",
    "issue_receipt",
    "keyset_digest",
    "keyset_document",
    "report_data",
    "session_id",
    "statement",
    "verify_receipt",
]

_API_VERSION = "aci/1"
# From: ACI E2EE v2: the one algorithm that these keysets name.
_E2EE_ALGORITHM = "x25519-aes-256-gcm-hkdf-sha256"
# From: docs/protocols/faces.md §2.
SIGNING_ALGORITHM = "aci-Ed25519"
# From: docs/protocols/aci-face.md 2.2: our keys by the names that ACI's readers pass over.
CHANNEL_ALGORITHMS = {
    "MLKEM768-X25519": "confide-channel-mlkem768-x25519",
    "X25519": "confide-channel-x25519",
    "ehbp-X25519": "ehbp-x25519-hkdf-sha256-aes-256-gcm",
}


def keyset_document(keyset: Keyset, *, tls_spki_sha256: bytes | None) -> dict[str, JsonValue]:
    """
    Return the ACI keyset of a node's keyset: the key that signs ACI receipts, the sealing keys.

    `tls_spki_sha256` is the key of TLS that ends in the node, where it does. The report data of
    ACI commits to this document, and so to every key that a client may send to; receipts of ours
    are signed with a key that is not in it.
    """
    signing: list[JsonValue] = []
    sealing: list[JsonValue] = []
    for key in keyset.keys:
        entry = {"key_id": str(key.id), "public_key": key.public_key.hex()}
        if key.algorithm == SIGNING_ALGORITHM:
            signing.append({**entry, "algo": "ed25519"})
        elif key.algorithm in CHANNEL_ALGORITHMS:
            sealing.append({**entry, "algo": CHANNEL_ALGORITHMS[key.algorithm]})
    return {
        "subject": None,
        "not_after": int(keyset.not_after.timestamp()),
        "receipt_signing_keys": signing,
        "e2ee_public_keys": sealing,
        "tls_public_keys": (
            [] if tls_spki_sha256 is None else [{"spki_sha256": tls_spki_sha256.hex()}]
        ),
    }


def issue_receipt(
    signer: Ed25519Signer,
    *,
    key_id: str,
    body: Mapping[str, JsonValue],
    events: Sequence[JsonValue],
) -> bytes:
    """
    Return the signed receipt of one exchange, canonical.

    `body` holds what `receipt_id`, `chat_id`, `model`, `workload_keyset_digest`, `endpoint`,
    `method` and `served_at` are; the first of `events` is `request.received`.
    """
    unsigned: dict[str, JsonValue] = {
        "api_version": _API_VERSION,
        **body,
        "event_log": list(events),
        "key_id": key_id,
    }
    return jcs({**unsigned, "signature": signer.sign(jcs(unsigned)).hex()})


def keyset_digest(keyset: Mapping[str, object]) -> str:
    """Return `sha256:<hex>` over the canonical keyset; `ValueError` for what JSON cannot say."""
    return f"sha256:{hashlib.sha256(jcs(keyset)).hexdigest()}"


def statement(digest: str, nonce: str | None) -> bytes:
    """
    Return the exact bytes that report data commits to.

    Raises `FormatError` unless `nonce` is None or 64 lower-case hex characters.
    """
    # From: ACI §report data: exactly 64 lower-case hex.
    if nonce is not None and not is_hex(nonce, 32):
        raise FormatError(
            "nonce: 64 lower-case hex characters were expected",
            reason=Reason.CHANNEL_FORMAT,
            clause="ACI report data",
        )
    return jcs({"keyset_digest": digest, "nonce": nonce, "purpose": "aci.report_data.v1"})


def report_data(statement_bytes: bytes) -> bytes:
    """Return the 64 bytes of the report-data slot: a SHA-256 and zeros."""
    return hashlib.sha256(statement_bytes).digest() + bytes(32)


def session_id(document: Mapping[str, object]) -> str:
    """Return the id of a session document, hex."""
    return hashlib.sha256(jcs(document)).hexdigest()


def e2ee_request_aad(*, field: str, model: str, nonce: str, timestamp: int) -> bytes:
    """Return the associated data of one encrypted field, such as `messages.0.content`."""
    return jcs(
        {
            "algo": _E2EE_ALGORITHM,
            "field": field,
            "model": model,
            "nonce": nonce,
            "purpose": "aci.e2ee.request.v2",
            "ts": timestamp,
        }
    )


@dataclass(frozen=True, slots=True)
class AciReceipt:
    """A receipt whose signature verified under a keyset key; made by `verify_receipt` alone."""

    receipt_id: str
    key_id: str
    keyset_digest: str
    events: tuple[str, ...]


def verify_receipt(raw: bytes, *, keyset: Mapping[str, JsonValue]) -> AciReceipt:
    """
    Establish that `raw` was signed by the Ed25519 key it names in `keyset`.

    (1) `api_version` is known. (2) The keyset digest is that of `keyset`. (3) The first event is
    `request.received`. (4) The key is in the keyset, which also fixes the algorithm. (5) The
    signature covers the canonical document without `signature`.

    **Does not check** hashes against bodies, event meaning, time, or the keyset itself. Raises
    `FormatError` for what is no receipt and `ReceiptRejected` for what is not believed.
    """
    value = parse_json(raw, what="ACI receipt", reason=Reason.RECEIPT_FORMAT)
    members = Members(value, what="ACI receipt", reason=Reason.RECEIPT_FORMAT)
    version, receipt_id = members.text("api_version"), members.text("receipt_id")
    digest, key_id = members.text("workload_keyset_digest"), members.text("key_id")
    signature = members.hexes("signature", 64)
    events = tuple(
        Members(item, what="ACI event", reason=Reason.RECEIPT_FORMAT).text("type")
        for item in members.items("event_log")
    )
    if version != _API_VERSION:
        _refuse("aci/1", "unknown api_version", Reason.RECEIPT_FORMAT)
    if digest != keyset_digest(keyset):
        _refuse("aci/2", "issued under another keyset", Reason.KEYSET_MISMATCH)
    if not events or events[0] != "request.received":
        _refuse("aci/3", "the first event is not request.received", Reason.TRANSCRIPT_BROKEN)
    public_key = _signing_key(keyset, key_id)
    unsigned = {k: v for k, v in _object(value).items() if k != "signature"}
    try:
        verify_ed25519(public_key, signature, jcs(unsigned))
    except BadSignature:
        _refuse("aci/5", "the signature does not verify", Reason.RECEIPT_SIGNATURE)
    return AciReceipt(receipt_id, key_id, digest, events)


def _object(value: JsonValue) -> dict[str, JsonValue]:
    if not isinstance(value, dict):  # pragma: no cover - `Members` refused it already
        raise TypeError("not an object")
    return value


def _signing_key(keyset: Mapping[str, JsonValue], key_id: str) -> bytes:
    top = Members(dict(keyset), what="ACI keyset", reason=Reason.KEYSET_MISMATCH)
    for item in top.items("receipt_signing_keys"):
        entry = Members(item, what="ACI signing key", reason=Reason.KEYSET_MISMATCH)
        if entry.text("key_id") == key_id and entry.text("algo") == "ed25519":
            return entry.hexes("public_key", 32)
    return _refuse("aci/4", "the signing key is not in the keyset", Reason.KEYSET_MISMATCH)


def _refuse(step: str, detail: str, reason: Reason) -> NoReturn:
    finding = Finding(Status.FAIL, step, "ACI receipts", "ACI receipt", detail, reason)
    raise ReceiptRejected((finding,))
