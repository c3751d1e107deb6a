"""The ACI face: attestation reports of `aci/1` about this node's keys.

Clauses: docs/protocols/aci-face.md §2, §3. What a report holds is public and served in clear;
nothing else of ACI is, receipts are inside the channel (`node/aci_receipts.py`). The report binds
the keys that a client may seal to; it is no way of sending a request.
"""

from __future__ import annotations

import asyncio
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from urllib.parse import parse_qsl

from confide.channel.aci import keyset_digest, keyset_document, report_data, statement
from confide.errors import ConfideError, FormatError
from confide.inference.faults import ApiFault
from confide.node.asgi import send_fault, send_whole
from confide.wire.faces import LACKS, FaceName
from confide.wire.json import jcs
from confide.wire.rtmr_log import encode_log

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

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
_GET_ONLY = ApiFault(405, "invalid_request_error", "method_not_allowed", "GET only.")
_CUSTODY: Final = (
    "drawn in memory at this boot, never written; nothing attests to that but the code"
)


@lru_cache(maxsize=4)
def aci_digest(keyset: Keyset) -> str:
    """Return the digest of the ACI keyset of `keyset`: every answer names it."""
    return keyset_digest(keyset_document(keyset))


def aci_headers(digest: str) -> Headers:
    """Return what every answer over ACI says about itself: hints (aci/1 §5.2)."""
    return (("x-aci-version", VERSION), ("x-aci-keyset-digest", digest))


class AciFace:
    """Reports of `identity`. `serving` is "direct" where the engine is inside this machine."""

    name = FaceName.ACI

    def __init__(self, identity: NodeIdentity, *, serving: Serving) -> None:
        self._identity = identity
        self._serving = serving
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)

    def takes(self, scope: Scope) -> bool:
        """Whether a report is asked for."""
        return bool(scope["path"] == ATTESTATION_PATH)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Serve one HTTP scope that `takes` takes."""
        current = self._identity.current
        headers = aci_headers(aci_digest(current.keys.keyset))
        if scope["method"] != "GET":
            await send_fault(send, _GET_ONLY, headers)
            return
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

    async def _report(self, identity: Identity, nonce: str | None) -> dict[str, JsonValue]:
        digest = aci_digest(identity.keys.keyset)
        slot = report_data(statement(digest, nonce))
        quote, events = await identity.attester.quote_for_face(slot)
        faces = identity.keys.faces
        evidence: JsonValue = {
            "quote": quote.hex(),
            "quote_report_data": slot.hex(),
            "event_log": json.dumps(encode_log(events)),
            "key_custody": _CUSTODY,
            "downstream_tls_binding": None,
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
                "workload_keyset": keyset_document(identity.keys.keyset),
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


def _nonce(query: bytes) -> str | None:
    """Return the one `nonce` of a query, None where there is none. Raises `FormatError`."""
    pairs = parse_qsl(query[:_MAX_QUERY_BYTES].decode("latin-1"), keep_blank_values=True)
    found = [value for name, value in pairs if name == "nonce"]
    if len(query) > _MAX_QUERY_BYTES or len(found) > 1:
        found = [""]
    nonce = found[0] if found else None
    statement("", nonce)  # refuses what is no nonce
    return nonce
