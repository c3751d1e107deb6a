"""The ACI face: attestation reports of `aci/1` about this node's keys, and calls over its own TLS.

Clauses: docs/protocols/aci-face.md §2, §3. What a report holds is public and served in clear. Calls
and receipts (`node/aci_receipts.py`) are not: they come through the channel, or over TLS that ends
in this process under a key that the report binds.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from urllib.parse import parse_qsl

from confide.channel.aci import (
    SIGNING_ALGORITHM,
    keyset_digest,
    keyset_document,
    report_data,
    statement,
)
from confide.errors import ConfideError, FormatError
from confide.inference.faults import ApiFault
from confide.inference.plan import Endpoint
from confide.node.asgi import send_fault, send_whole, spelled_path
from confide.node.faces import TLS_KEY, FaceRecord
from confide.node.sealed import SCOPE_KEY
from confide.wire.faces import LACKS, FaceName, Way
from confide.wire.json import jcs
from confide.wire.rtmr_log import encode_log

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from confide.node.asgi import Headers
    from confide.node.identity import Identity, NodeIdentity
    from confide.wire.json import JsonValue
    from confide.wire.keyset import Keyset

__all__ = ["ATTESTATION_PATH", "VERSION", "AciFace", "Serving", "aci_digest", "aci_headers"]

# From: ACI aci/1 §4.
ATTESTATION_PATH: Final = "/v1/aci/attestation"
VERSION: Final = "aci/1"
Serving: TypeAlias = "Literal['direct', 'aggregator']"
# As for our own evidence: more callers wait, they do not pile up.
_MAX_CONCURRENT = 4
_MAX_QUERY_BYTES = 1024
_BAD_NONCE = ApiFault(
    400, "invalid_request_error", "invalid_nonce", "A nonce is 64 lower-case hex characters, once."
)
_NO_EVIDENCE = ApiFault(503, "api_error", "evidence_unavailable", "No evidence can be made now.")
_METHOD = ApiFault(
    405, "invalid_request_error", "method_not_allowed", "This route has another method."
)
_NO_E2EE = ApiFault(
    400, "invalid_request_error", "unsupported_e2ee", "This node has no E2EE extension of ACI."
)
# From: ACI E2EE v2: a caller who sends one of these believes that fields are sealed.
_E2EE_FIELDS = frozenset(
    {
        *(b"x-e2ee-version", b"x-e2ee-nonce", b"x-e2ee-timestamp"),
        *(b"x-client-pub-key", b"x-model-pub-key", b"x-signing-algo"),
    }
)
_CALLS = frozenset(endpoint.value for endpoint in Endpoint)
_READ = ("/v1/aci/", "/v1/receipts/", "/v1/models")
_CUSTODY: Final = (
    "drawn in memory at this boot, never written; nothing attests to that but the code"
)


@lru_cache(maxsize=4)
def aci_digest(keyset: Keyset, fingerprint: bytes | None) -> str:
    """Return the digest of the ACI keyset of `keyset` and the TLS key: every answer names it."""
    return keyset_digest(keyset_document(keyset, tls_spki_sha256=fingerprint))


def aci_headers(digest: str) -> Headers:
    """Return what every answer over ACI says about itself: hints (aci/1 §5.2)."""
    return (("x-aci-version", VERSION), ("x-aci-keyset-digest", digest))


class AciFace:
    """
    Reports of `identity`, and calls of `inside` over TLS that ends here.

    `inside` answers with receipts of ACI; `serving` is "direct" where the engine is inside this
    machine; `fingerprint` is the SHA-256 of the TLS key's SubjectPublicKeyInfo.
    """

    name = FaceName.ACI

    def __init__(
        self,
        identity: NodeIdentity,
        inside: ASGIApp,
        *,
        serving: Serving,
        fingerprint: bytes | None,
    ) -> None:
        self._identity = identity
        self.inside = inside
        self._serving = serving
        self._fingerprint = fingerprint
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)
        # Two protocols of one and the same call: the other has no place for receipts of this one.
        self._calls = FaceName.NEAR not in identity.current.keys.faces

    def takes(self, scope: Scope) -> bool:
        """Whether a report is asked for, or anything else over TLS that ends here."""
        path = spelled_path(scope)
        if path == ATTESTATION_PATH:
            return True
        served = path in _CALLS or path.startswith(_READ)
        return self._calls and scope.get(TLS_KEY) is not None and served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP scope that `takes` takes."""
        path = spelled_path(scope)
        headers = aci_headers(aci_digest(self._identity.current.keys.keyset, self._fingerprint))
        if scope["method"] != ("POST" if path in _CALLS else "GET"):
            await send_fault(send, _METHOD, headers)
        elif path == ATTESTATION_PATH:
            await self._attest(scope, send)
        elif any(bytes(name).lower() in _E2EE_FIELDS for name, _ in scope["headers"]):
            await send_fault(send, _NO_E2EE, headers)
        else:
            key_id = self._identity.current.keys.face[SIGNING_ALGORITHM].id
            # The receipt is asked for by its id: a stream must stay what its receipt hashes.
            record = FaceRecord(Way.ACI_TLS, key_id, None, receipt_inline=False)
            inner = {**scope, "client": None, "server": None, SCOPE_KEY: record}
            await self.inside(inner, _hashed(receive, record), send)

    async def _attest(self, scope: Scope, send: Send) -> None:
        current = self._identity.current
        headers = aci_headers(aci_digest(current.keys.keyset, self._fingerprint))
        try:
            nonce = _nonce(scope["query_string"])
        except FormatError:
            await send_fault(send, _BAD_NONCE, headers)
            return
        try:
            async with self._slots:
                report = await self._report(current, nonce)
        except ConfideError:
            await send_fault(send, _NO_EVIDENCE, headers)
            return
        head = (("content-type", "application/json"), ("cache-control", "no-store"), *headers)
        await send_whole(send, 200, head, jcs(report))

    def _tls_binding(self) -> JsonValue:
        if self._fingerprint is None:
            return None
        return {"spki_sha256": self._fingerprint.hex()}

    async def _report(self, identity: Identity, nonce: str | None) -> dict[str, JsonValue]:
        keyset = keyset_document(identity.keys.keyset, tls_spki_sha256=self._fingerprint)
        digest = aci_digest(identity.keys.keyset, self._fingerprint)
        slot = report_data(statement(digest, nonce))
        quote, events = await identity.attester.quote_for_face(slot)
        faces = identity.keys.faces
        evidence: JsonValue = {
            "quote": quote.hex(),
            "quote_report_data": slot.hex(),
            "event_log": json.dumps(encode_log(events)),
            "key_custody": _CUSTODY,
            "downstream_tls_binding": self._tls_binding(),
            "confide": {
                "keyset": identity.keys.keyset.digest.hex(),
                "lacks": [LACKS[face] for face in faces],
            },
        }
        return {
            "api_version": VERSION,
            "workload_keyset_digest": digest,
            "attestation": {
                "tee_type": "tdx",
                "workload_keyset": keyset,
                "report_data": slot[:32].hex(),
                "source_provenance": {
                    "repo_url": None,
                    "repo_commit": None,
                    "image_digest": None,
                    "image_provenance": None,
                },
                "evidence": evidence,
            },
            "service_capabilities": {"supported_e2ee_versions": [], "serving": self._serving},
        }


def _hashed(receive: Receive, record: FaceRecord) -> Receive:
    """Return `receive` with the digest of the body going into `record` (faces.md 3.2)."""
    digest = hashlib.sha256()

    async def hashed() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            digest.update(message.get("body", b""))
            if not message.get("more_body", False):
                record.request_sha256 = digest.digest()
        return message

    return hashed


def _nonce(query: bytes) -> str | None:
    """Return the one `nonce` of a query, None where there is none. Raises `FormatError`."""
    pairs = parse_qsl(query[:_MAX_QUERY_BYTES].decode("latin-1"), keep_blank_values=True)
    found = [value for name, value in pairs if name == "nonce"]
    if len(query) > _MAX_QUERY_BYTES or len(found) > 1:
        found = [""]
    nonce = found[0] if found else None
    statement("", nonce)  # refuses what is no nonce
    return nonce
