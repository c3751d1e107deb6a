"""The NEAR face: NEAR AI's routes, report, signatures and encryption in front of a model node.

Clauses: docs/protocols/near-face.md. Which connection a request came over decides what it may do:
on one that others can read, calls have sealed fields or are refused; over the node's own TLS port
or Oblivious HTTP they may be in clear.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from confide.channel.keys import KeyRing
from confide.errors import ConfideError
from confide.inference.faults import ApiFault
from confide.node.asgi import send_fault, send_whole, spelled_path
from confide.node.faces import TLS_KEY
from confide.node.near_calls import NearCalls
from confide.node.near_keys import NearKeyring
from confide.node.near_ohttp import OhttpGateway
from confide.node.near_report import NearReporter, ReportRefused, parse_query
from confide.node.near_signatures import SignatureStore
from confide.wire.faces import FaceName, Way

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from confide.node.asgi import Headers
    from confide.node.identity import NodeIdentity
    from confide.node.machine import Machine

__all__ = ["NearFace"]

_REPORT: Final = "/v1/attestation/report"
_SIGNATURE: Final = "/v1/signature/"
_MODELS: Final = frozenset({"/v1/models", "/v1/model/list"})
_CONFIGS: Final = frozenset({"/.well-known/ohttp-gateway", "/v1/ohttp/config"})
_OHTTP: Final = "/ohttp"
# From: near-wire.md §2: the routes of the model machines, as the node's application calls them.
_CALLS: Final = {
    **{
        path: path
        for path in (
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/rerank",
            "/v1/score",
            "/v1/images/generations",
            "/v1/images/edits",
            "/v1/audio/transcriptions",
            "/tokenize",
        )
    },
    "/v1/tokenize": "/tokenize",
}
_READ: Final = frozenset({_REPORT, *_MODELS, *_CONFIGS})
_JSON: Headers = (("content-type", "application/json"), ("cache-control", "no-store"))
_KEYS: Headers = (("content-type", "application/ohttp-keys"), ("cache-control", "no-store"))


_REFUSED: Final = "invalid_request_error"
_METHOD: Final = ApiFault(405, _REFUSED, "method_not_allowed", "This route has another method.")
_NO_ROUTE: Final = ApiFault(404, _REFUSED, "not_found", "No such route.")
_NO_SIGNATURE: Final = ApiFault(404, _REFUSED, "not_found", "Chat id not found or expired")
_NO_EVIDENCE: Final = ApiFault(
    503, "server_error", "no_evidence", "No evidence can be made now.", retry_after=5
)


class NearFace:
    """
    The `Face` called `near`.

    `fingerprint` is the SHA-256 of the SubjectPublicKeyInfo of the TLS that ends in this process.
    Raises `ConfigurationError` on a machine that lacks what its reports need.
    """

    name = FaceName.NEAR

    def __init__(
        self,
        *,
        identity: NodeIdentity,
        machine: Machine,
        inner: ASGIApp,
        model: str,
        fingerprint: bytes | None,
    ) -> None:
        self._identity = identity
        self._model = model
        self._keyring = NearKeyring(identity)
        self._reporter = NearReporter(
            identity=identity,
            machine=machine,
            keyring=self._keyring,
            model=model,
            entropy=identity.entropy,
            fingerprint=fingerprint,
        )
        self._signatures = SignatureStore()
        self._ohttp = OhttpGateway(self._inside, identity.entropy)
        self._calls = NearCalls(
            inner,
            model=model,
            keyring=self._keyring,
            signatures=self._signatures,
            clock=identity.clock,
            entropy=identity.entropy,
        )

    def takes(self, scope: Scope) -> bool:
        """Whether the path is one of NEAR's."""
        path = spelled_path(scope)
        return path in _READ or path in _CALLS or path == _OHTTP or path.startswith(_SIGNATURE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP scope that it takes."""
        if spelled_path(scope) != _OHTTP:
            way = Way.NEAR_TLS if scope.get(TLS_KEY) else None
            await self._serve(scope, receive, send, way)
        elif scope["method"] != "POST":
            await send_fault(send, _METHOD)
        else:
            ring = KeyRing(tuple(known.ohttp for known in self._keyring.known()))
            await self._ohttp.serve(scope, receive, send, ring=ring)

    async def _inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        # No request is opened twice: `/ohttp` is no route inside itself.
        if self.takes(scope) and spelled_path(scope) != _OHTTP:
            await self._serve(scope, receive, send, Way.NEAR_OHTTP)
        else:
            await send_fault(send, _NO_ROUTE)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, way: Way | None) -> None:
        path = spelled_path(scope)
        if scope["method"] != ("POST" if path in _CALLS else "GET"):
            await send_fault(send, _METHOD)
        elif path in _CALLS:
            await self._calls.infer({**scope, "path": _CALLS[path]}, receive, send, way=way)
        elif path == _REPORT:
            await self._report(scope, send)
        elif path in _MODELS:
            await self._calls.ask({**scope, "path": "/v1/models"}, receive, send)
        elif path in _CONFIGS:
            await send_whole(send, 200, _KEYS, self._keyring.current.key_config)
        else:
            await self._signature(path.removeprefix(_SIGNATURE), scope, send, way)

    async def _report(self, scope: Scope, send: Send) -> None:
        try:
            query = parse_query(scope.get("query_string", b""), model=self._model)
            report = await self._reporter.report(query)
        except ReportRefused as error:
            await send_fault(send, ApiFault(error.status, _REFUSED, "report_refused", error.words))
        except ConfideError:
            await send_fault(send, _NO_EVIDENCE)
        else:
            await send_whole(send, 200, _JSON, report)

    async def _signature(self, name: str, scope: Scope, send: Send, way: Way | None) -> None:
        try:
            query = parse_query(scope.get("query_string", b""), model=self._model)
        except ReportRefused as error:
            await send_fault(
                send, ApiFault(error.status, _REFUSED, "signature_refused", error.words)
            )
            return
        found = self._signatures.find(name, hidden=way is not None, now=self._identity.clock.now())
        if found is None:
            await send_fault(send, _NO_SIGNATURE)
            return
        answer = found.document(query.algorithm)
        await send_whole(send, 200, _JSON, json.dumps(answer, ensure_ascii=False).encode())
