"""Challenges without memory, sessions with a bounded one, tokens. Pure state machines.

Clauses: docs/protocols/broker.md 2.3, 3.1, 3.7. Time and randomness are arguments; keys live as
long as the process, so a restart ends every session. A session that has to make room is forgotten:
its guest attests again. A challenge that was used is never forgotten while it could be good.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from confide.broker.attested import session_of
from confide.broker.refusal import refusal
from confide.crypto.ecdsa import Curve, derive_signing_key, verify
from confide.crypto.errors import BadSignature
from confide.errors import FormatError, Reason
from confide.wire.jose import b64url_decode, b64url_encode, parse_compact_jws
from confide.wire.json import jcs
from confide.wire.jwe import encode_wrapping_key
from confide.wire.kbs import HASHES, NONCE_BYTES, TEES, KbsChallenge

if TYPE_CHECKING:
    from confide.broker.attested import Attested
    from confide.errors import ReleaseRefused
    from confide.wire.kbs import KbsRequest, Tee

__all__ = [
    "CHALLENGE_SECONDS",
    "SESSION_SECONDS",
    "Challenges",
    "Issued",
    "SessionLimits",
    "Sessions",
    "Tokens",
]

# From: broker.md 2.3 and 3.7. The confidential-containers broker's tokens last as long.
CHALLENGE_SECONDS: Final = 300
SESSION_SECONDS: Final = 300
_COOKIE: Final = b"confide/kbs-cookie/v1\0"
_BODY_BYTES: Final = 2 + 8 + NONCE_BYTES
_MAC_BYTES: Final = 32
_ALGORITHM: Final = "ES256"


def _unknown(detail: str) -> ReleaseRefused:
    return refusal(Reason.SESSION_UNKNOWN, detail, step="1", clause="2.3")


@dataclass(frozen=True, slots=True)
class Issued:
    """A challenge of this process, as its cookie says it: what was asked for, and when."""

    challenge: KbsChallenge
    tee: Tee
    at: datetime

    @property
    def session(self) -> bytes:
        """The name of the session that it may become."""
        return session_of(self.challenge.nonce)


class Challenges:
    """Issues challenges and knows them again by their MAC. `key` is 32 random bytes."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("a MAC key has 32 bytes")
        self._key = key

    def issue(self, request: KbsRequest, *, nonce: bytes, now: datetime) -> tuple[Issued, str]:
        """Return the challenge over `nonce` (32 fresh bytes) and its cookie."""
        issued = Issued(KbsChallenge(nonce, request.algorithm), request.tee, now)
        kinds = bytes((TEES.index(request.tee), HASHES.index(request.algorithm)))
        body = kinds + int(now.timestamp()).to_bytes(8, "big") + nonce
        return issued, b64url_encode(body + self._mac(body))

    def recognise(self, cookie: str) -> Issued:
        """Return what `cookie` says; whether it is still good is for `require_fresh`."""
        try:
            raw = b64url_decode(cookie[:256], what="cookie", reason=Reason.SESSION_UNKNOWN)
        except FormatError as error:
            raise _unknown("no cookie of this broker") from error
        body, mac = raw[:_BODY_BYTES], raw[_BODY_BYTES:]
        if len(mac) != _MAC_BYTES or not hmac.compare_digest(mac, self._mac(body)):
            raise _unknown("no cookie of this broker process")
        at = datetime.fromtimestamp(int.from_bytes(body[2:10], "big"), UTC)
        return Issued(KbsChallenge(body[10:], HASHES[body[1]]), TEES[body[0]], at)

    def require_fresh(self, issued: Issued, *, now: datetime) -> None:
        """Raise `ReleaseRefused` for a challenge of more than 300 s ago, or ahead."""
        if abs(now - issued.at) > timedelta(seconds=CHALLENGE_SECONDS):
            raise _unknown(f"the challenge is good for {CHALLENGE_SECONDS} s")

    def _mac(self, body: bytes) -> bytes:
        return hmac.new(self._key, _COOKIE + body, hashlib.sha256).digest()


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """
    How much is remembered.

    Evidence of guests is held for their session, at most `max_bytes` of it in all. Every spent
    challenge stands for one appraisal that passed: `max_spent` are 100 a second for ten minutes.
    """

    max_sessions: int = 4096
    max_bytes: int = 256 << 20
    max_spent: int = 1 << 16


@dataclass(slots=True)
class _Held:
    attested: Attested
    weight: int


@dataclass(slots=True)
class Sessions:
    """Who is attested now, oldest first, and which challenges were used."""

    limits: SessionLimits
    _held: dict[bytes, _Held] = field(default_factory=dict)
    _spent: dict[bytes, datetime] = field(default_factory=dict)
    _weight: int = 0

    def __len__(self) -> int:
        return len(self._held)

    def spent(self, session: bytes) -> bool:
        """Whether an attestation was accepted for this challenge."""
        return session in self._spent

    def admit(self, attested: Attested, *, weight: int, now: datetime) -> None:
        """
        Begin a session, once for its challenge; `weight` is the bytes that it holds.

        Raises `ReleaseRefused` with REPLAYED, or NODE_BUSY where too many challenges were spent.
        """
        if attested.session in self._spent:
            raise refusal(
                Reason.REPLAYED, "an attestation was accepted already", step="1", clause="3.1"
            )
        self._make_room(now)
        self._spent[attested.session] = now
        self._held[attested.session] = _Held(attested, weight)
        self._weight += weight
        while len(self._held) > self.limits.max_sessions or (
            self._weight > self.limits.max_bytes and len(self._held) > 1
        ):
            self._drop(next(iter(self._held)))

    def find(self, session: bytes, *, now: datetime) -> Attested:
        """Return the session that is not over. Raises `ReleaseRefused` with SESSION_UNKNOWN."""
        held = self._held.get(session)
        if held is not None and held.attested.until <= now:
            self._drop(session)
            held = None
        if held is None:
            raise _unknown("no attested session, or it is over: attest again")
        return held.attested

    def _make_room(self, now: datetime) -> None:
        while self._held and (first := next(iter(self._held))):
            if self._held[first].attested.until > now:
                break
            self._drop(first)
        # Challenges are forgotten for want of room alone: a clock that is set ahead and back again
        # then brings none back to life.
        if len(self._spent) < self.limits.max_spent:
            return
        oldest = next(iter(self._spent))
        if now - self._spent[oldest] <= timedelta(seconds=2 * CHALLENGE_SECONDS):
            raise refusal(Reason.NODE_BUSY, "too many sessions at once", step="1", clause="6.1")
        del self._spent[oldest]

    def _drop(self, session: bytes) -> None:
        self._weight -= self._held.pop(session).weight


class Tokens:
    """JWTs of one process: ES256 under a key that it drew. `seed` is 32 random bytes."""

    __slots__ = ("_key",)

    def __init__(self, seed: bytes) -> None:
        self._key = derive_signing_key(Curve.P256, seed, "confide/kbs-token/v1")

    def issue(self, attested: Attested, *, now: datetime) -> str:
        """Return the token that names the session of `attested` (3.7)."""
        claims = {
            "exp": int(attested.until.timestamp()),
            "iat": int(now.timestamp()),
            "jti": attested.session.hex(),
            "tee-pubkey": encode_wrapping_key(attested.key),
        }
        header = jcs({"alg": _ALGORITHM, "typ": "JWT"})
        text = f"{b64url_encode(header)}.{b64url_encode(jcs(claims))}"
        return f"{text}.{b64url_encode(self._key.sign(text.encode('ascii')))}"

    def recognise(self, token: str) -> bytes:
        """
        Return the session that `token` names; whether it is over is for `Sessions.find`.

        Raises `ReleaseRefused` with SESSION_UNKNOWN for everything that this process did not sign.
        """
        what, reason = "token", Reason.SESSION_UNKNOWN
        try:
            jws = parse_compact_jws(token, what=what, reason=reason)
            if jws.algorithm != _ALGORITHM:
                raise _unknown("a token that is not ES256")
            signature = jws.signature(what=what, reason=reason)
            verify(self._key.public, signature, jws.signing_input)
            named = jws.payload(what=what, reason=reason).get("jti")
        except (FormatError, BadSignature) as error:
            raise _unknown("no token of this broker process") from error
        return bytes.fromhex(str(named))
