"""A node as a client of the key broker: asks with its evidence, takes what a receipt vouches for.

Clauses: docs/protocols/broker.md §2 to §5, state.md 2.1. One link is for one run and one
Expectation; every session has a key of its own, drawn for it. The broker is believed by its key,
which the Expectation names, and never by where it answers: whoever sits between can withhold a
secret and not replace one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from confide.broker.attested import session_of
from confide.broker.names import parse_resource
from confide.broker.receipt import verify_release
from confide.broker.released import ReleasedSecret
from confide.crypto.aead import OpenError
from confide.crypto.jwe import EPHEMERAL_BYTES, derive_unwrapping_key
from confide.errors import (
    FormatError,
    Reason,
    ReceiptRejected,
    ReleaseRefused,
    RemoteProtocolError,
    Unavailable,
)
from confide.rats import Finding, Status
from confide.receipts.inline import decode_inline
from confide.wire.jwe import MAX_JWE_BYTES, KeyCurve, encode_wrapping_key, parse_jwe, thumbprint
from confide.wire.kbs import (
    SESSION_COOKIE,
    KbsRequest,
    NodeEvidence,
    encode_attestation,
    parse_challenge,
    parse_kbs_error,
    parse_token,
    runtime_claim,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from confide.adapters.kbs_http import KbsAnswer, KbsHttp
    from confide.crypto.jwe import UnwrappingKey
    from confide.expectation import Expectation
    from confide.node.attester import Attests
    from confide.ports import Entropy, Sleeper
    from confide.wire.dsse import Envelope
    from confide.wire.release_receipt import ReleaseReceipt

__all__ = ["Asker", "BrokerLink", "BrokerPlace", "LinkSession", "OpenedAnswer"]

T = TypeVar("T")
_DOC: Final = "docs/protocols/broker.md"
_SMALL: Final = 64 * 1024
_JSON: Final = {"content-type": "application/json"}
# A broker that turns somebody away under load serves them when they come again (6.2).
_WAITS: Final = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class BrokerPlace:
    """The broker that an Expectation names: its Ed25519 key (32 bytes) and the repository."""

    key: bytes
    repository: str


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: a node under an Expectation, for a run (32 bytes; None on a model node)."""

    role: Literal["agent", "model"]
    expectation: Expectation
    run: bytes | None = field(repr=False)
    attester: Attests


@dataclass(frozen=True, slots=True)
class LinkSession:
    """One attested session, from the side of the node."""

    session: bytes
    token: str = field(repr=False)
    key: UnwrappingKey

    @property
    def headers(self) -> dict[str, str]:
        """What a request in this session carries."""
        return {"authorization": f"Bearer {self.token}"}


@dataclass(frozen=True, slots=True)
class OpenedAnswer:
    """What was sealed to the session, and the receipt that vouches for it."""

    decision: ReleaseReceipt
    receipt: Envelope
    value: bytes = field(repr=False)


class BrokerLink:
    """
    The part of `ports.SecretSession` that releases secrets.

    `open` and `ask` are for whoever adds state to it (docs/protocols/state.md §4).
    """

    def __init__(
        self,
        http: KbsHttp,
        place: BrokerPlace,
        asker: Asker,
        *,
        entropy: Entropy,
        sleeper: Sleeper,
        curve: KeyCurve = "P-256",
    ) -> None:
        self._http = http
        self._place = place
        self._asker = asker
        self._entropy = entropy
        self._sleeper = sleeper
        self._curve: KeyCurve = curve
        self._session: LinkSession | None = None

    async def secret(self, name: str) -> ReleasedSecret:
        """
        Return the secret that the Expectation lists as `name`.

        Raises `ReleaseRefused` with the broker's reason, `Unavailable`, `RemoteProtocolError`.
        """
        resource = f"{self._place.repository}/secret/{name}"
        parse_resource(resource, reason=Reason.RESOURCE_UNKNOWN)
        path = f"/kbs/v0/resource/{resource}"
        session, answer = await self.ask("GET", path, max_bytes=MAX_JWE_BYTES)
        opened = self.open(session, resource, answer)
        version = opened.decision.version
        if version is None:
            raise RuntimeError("a release without a version was verified")
        return ReleasedSecret(name, version, opened.receipt, opened.value)

    async def session(self, *, instead_of: LinkSession | None = None) -> LinkSession:
        """Return the attested session, begun where there is none or it is the one given."""
        if self._session is None or self._session is instead_of:
            return await self._begin()
        return self._session

    async def close(self) -> None:
        """Forget the session and its key; never raises."""
        self._session = None

    async def ask(
        self,
        method: str,
        path: str,
        *,
        max_bytes: int,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[LinkSession, KbsAnswer]:
        """
        Ask in an attested session; return the session and an answer with status 200.

        A session that is over, or that a restart of the broker forgot, is begun anew, once. Raises
        as `secret` does.
        """
        old = self._session
        session = old or await self._begin()
        given = {**session.headers, **(headers or {})}
        try:
            answer = await self._patiently(
                method, path, max_bytes=max_bytes, body=body, headers=given
            )
        except ReleaseRefused as error:
            if old is None or error.reason is not Reason.SESSION_UNKNOWN:
                raise
            self._session = None
            return await self.ask(method, path, max_bytes=max_bytes, body=body, headers=headers)
        return session, answer

    def open(self, session: LinkSession, resource: str, answer: KbsAnswer) -> OpenedAnswer:
        """
        Open what the broker sealed to `session`, where its receipt says so (5.2).

        Raises `RemoteProtocolError` with SECRET_MISMATCH for any other answer.
        """
        try:
            receipt = decode_inline(answer.receipt)
            decision = verify_release(
                receipt,
                key=self._place.key,
                session=session.session,
                tee_pubkey=thumbprint(session.key.public),
                resource=resource,
                jwe=hashlib.sha256(answer.body).digest(),
            )
            opened = session.key.open(parse_jwe(answer.body))
        except (FormatError, ReceiptRejected, OpenError) as error:
            raise RemoteProtocolError(
                "the answer is not what the Expectation's broker released to this session",
                reason=Reason.SECRET_MISMATCH,
            ) from error
        return OpenedAnswer(decision, receipt, opened)

    async def _begin(self) -> LinkSession:
        """Attest (§2, §3), with a key and a challenge of this session alone."""
        request = KbsRequest("tdx", "sha384").encode()
        answer = await self._patiently(
            "POST", "/kbs/v0/auth", max_bytes=_SMALL, body=request, headers=_JSON
        )
        nonce = _read(parse_challenge, answer.body).nonce
        key = derive_unwrapping_key(self._curve, self._entropy.token(EPHEMERAL_BYTES))
        asker, digest = self._asker, self._asker.expectation.digest
        claim = runtime_claim(nonce=nonce, tee_pubkey=encode_wrapping_key(key.public))
        evidence = await asker.attester.attest(
            purpose="release", nonce=nonce, expectation=digest, claim=claim
        )
        node = NodeEvidence(asker.role, asker.expectation.canonical(), asker.run, evidence)
        accepted = await self._patiently(
            "POST",
            "/kbs/v0/attest",
            max_bytes=_SMALL,
            body=encode_attestation(node, nonce=nonce, key=key.public),
            headers={**_JSON, "cookie": f"{SESSION_COOKIE}={answer.cookie}"},
        )
        token = _read(parse_token, accepted.body)
        self._session = LinkSession(session_of(nonce), token, key)
        return self._session

    async def _patiently(
        self,
        method: str,
        path: str,
        *,
        max_bytes: int,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> KbsAnswer:
        """Ask, and again where the broker is busy; return an answer with status 200."""
        for wait in (*_WAITS, None):
            answer = await self._http.ask(
                method, path, max_bytes=max_bytes, body=body, headers=headers
            )
            if answer.status == 200:
                return answer
            if wait is None or _reason(answer) is not Reason.NODE_BUSY:
                break
            await self._sleeper.sleep(wait)
        raise _refused(answer, path.removeprefix("/kbs/v0/"))


def _read(parse: Callable[[bytes], T], raw: bytes) -> T:
    try:
        return parse(raw)
    except FormatError as error:
        raise RemoteProtocolError("no message of a broker", reason=error.reason) from error


def _reason(answer: KbsAnswer) -> Reason | None:
    """Return why the broker refused; None where it gives no reason that is known here."""
    try:
        return parse_kbs_error(answer.body)
    except FormatError:
        return None


def _refused(answer: KbsAnswer, what: str) -> Exception:
    """Return what to raise for an answer without what was asked for."""
    if answer.status >= 500:
        return Unavailable(f"the broker answered {answer.status}")
    reason = _reason(answer)
    if reason is None:
        return RemoteProtocolError(f"the broker answered {answer.status} without a reason")
    # Not authenticated: whoever sits between can refuse in the broker's name, which is no more
    # than withholding.
    detail = f"the broker refused {what} with {answer.status}"
    return ReleaseRefused(
        (Finding(Status.FAIL, "broker-link/1", f"{_DOC}#4.4", "broker", detail, reason),)
    )
