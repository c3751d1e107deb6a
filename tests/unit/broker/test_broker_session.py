"""Challenges without memory, sessions in bounded memory, tokens of one process."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.broker.attested import Attested, GuestProof, NodeProof, session_of
from confide.broker.session import (
    CHALLENGE_SECONDS,
    Challenges,
    SessionLimits,
    Sessions,
    Tokens,
)
from confide.errors import Reason, ReleaseRefused
from confide.wire.jose import b64url_encode
from confide.wire.jwe import EcPoint
from confide.wire.kbs import KbsRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.wire.kbs import Hash, Tee

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
REQUEST = KbsRequest("snp", "sha512")
NONCE = bytes(range(32))
KEY = EcPoint("P-256", bytes(64))


def refused(work: Callable[[], object]) -> Reason:
    with pytest.raises(ReleaseRefused) as caught:
        work()
    return caught.value.reason


def attested(number: int, *, seconds: int = 300) -> Attested:
    # Sessions never look at what was proven.
    proof = cast("Any", None)
    session = session_of(b"%d" % number)
    return Attested(session, KEY, bytes(32), proof, NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize("tee", ["tdx", "snp"])
@pytest.mark.parametrize("algorithm", ["sha384", "sha512", "sha256"])
def test_a_cookie_says_what_was_asked_for(tee: Tee, algorithm: Hash) -> None:
    challenges = Challenges(b"k" * 32)
    issued, cookie = challenges.issue(KbsRequest(tee, algorithm), nonce=NONCE, now=NOW)
    assert challenges.recognise(cookie) == issued
    assert (issued.tee, issued.challenge.algorithm, issued.at) == (tee, algorithm, NOW)
    assert issued.session == session_of(NONCE)


@given(at=st.integers(0, 97), bit=st.integers(0, 7))
def test_no_bit_of_a_cookie_can_be_changed(at: int, bit: int) -> None:
    challenges = Challenges(b"k" * 32)
    issued, cookie = challenges.issue(REQUEST, nonce=NONCE, now=NOW)
    raw = bytearray(cookie.encode())
    raw[at] ^= 1 << bit
    changed = raw.decode("latin-1")
    assert issued.session == session_of(NONCE)
    assert refused(lambda: challenges.recognise(changed)) is Reason.SESSION_UNKNOWN


def test_a_cookie_of_another_process_is_nobodys() -> None:
    _, cookie = Challenges(b"k" * 32).issue(REQUEST, nonce=NONCE, now=NOW)
    assert refused(lambda: Challenges(b"l" * 32).recognise(cookie)) is Reason.SESSION_UNKNOWN
    with pytest.raises(ValueError, match="32"):
        Challenges(b"k" * 16)


@pytest.mark.parametrize("seconds", [-CHALLENGE_SECONDS - 1, CHALLENGE_SECONDS + 1])
def test_a_challenge_is_good_for_a_while(seconds: int) -> None:
    challenges = Challenges(b"k" * 32)
    issued, _ = challenges.issue(REQUEST, nonce=NONCE, now=NOW)
    for near in (0, CHALLENGE_SECONDS, -CHALLENGE_SECONDS):
        challenges.require_fresh(issued, now=NOW + timedelta(seconds=near))
    late = NOW + timedelta(seconds=seconds)
    assert refused(lambda: challenges.require_fresh(issued, now=late)) is Reason.SESSION_UNKNOWN


def test_a_session_is_found_until_it_is_over() -> None:
    sessions = Sessions(SessionLimits())
    one = attested(1, seconds=10)
    sessions.admit(one, weight=5, now=NOW)
    assert sessions.find(one.session, now=NOW + timedelta(seconds=9)) is one
    over = NOW + timedelta(seconds=10)
    assert refused(lambda: sessions.find(one.session, now=over)) is Reason.SESSION_UNKNOWN
    assert len(sessions) == 0
    assert refused(lambda: sessions.find(one.session, now=NOW)) is Reason.SESSION_UNKNOWN


def test_a_challenge_is_spent_once_and_stays_so_when_its_session_is_gone() -> None:
    sessions = Sessions(SessionLimits(max_sessions=1))
    one = attested(1)
    assert not sessions.spent(one.session)
    sessions.admit(one, weight=0, now=NOW)
    sessions.admit(attested(2), weight=0, now=NOW)
    assert len(sessions) == 1
    assert sessions.spent(one.session)
    assert refused(lambda: sessions.admit(one, weight=0, now=NOW)) is Reason.REPLAYED


def test_evidence_that_is_held_has_a_bound_and_the_oldest_makes_room() -> None:
    sessions = Sessions(SessionLimits(max_bytes=10))
    for number in range(3):
        sessions.admit(attested(number), weight=4, now=NOW)
    assert refused(lambda: sessions.find(attested(0).session, now=NOW)) is Reason.SESSION_UNKNOWN
    assert sessions.find(attested(2).session, now=NOW) == attested(2)
    # The newest stays, however large it is.
    sessions.admit(attested(3), weight=99, now=NOW)
    assert len(sessions) == 1
    assert sessions.find(attested(3).session, now=NOW) == attested(3)


def test_too_many_spent_challenges_are_a_matter_of_time() -> None:
    sessions = Sessions(SessionLimits(max_spent=2))
    for number in range(2):
        sessions.admit(attested(number), weight=0, now=NOW)
    assert refused(lambda: sessions.admit(attested(2), weight=0, now=NOW)) is Reason.NODE_BUSY
    # Set ahead and back again: what was spent is still spent.
    later = NOW + timedelta(seconds=2 * CHALLENGE_SECONDS + 1)
    assert refused(lambda: sessions.find(attested(0).session, now=later)) is Reason.SESSION_UNKNOWN
    assert sessions.spent(attested(0).session)
    sessions.admit(attested(2), weight=0, now=later)
    assert not sessions.spent(attested(0).session)
    assert sessions.spent(attested(1).session)


def test_a_token_names_its_session_to_the_process_that_signed_it() -> None:
    tokens, one = Tokens(b"s" * 32), attested(1)
    token = tokens.issue(one, now=NOW)
    assert tokens.recognise(token) == one.session
    assert refused(lambda: Tokens(b"t" * 32).recognise(token)) is Reason.SESSION_UNKNOWN
    other = tokens.issue(attested(2), now=NOW).split(".")
    head, body, signature = token.split(".")
    none = b64url_encode(json.dumps({"alg": "none"}).encode())
    mine = b64url_encode(json.dumps({"alg": "ES384"}).encode())
    for forged in (
        f"{head}.{other[1]}.{signature}",
        f"{head}.{body}.{other[2]}",
        f"{head}.{body}.",
        f"{none}.{body}.",
        f"{mine}.{body}.{signature}",
        body,
    ):
        assert refused(partial(tokens.recognise, forged)) is Reason.SESSION_UNKNOWN


@pytest.mark.parametrize("kind", [NodeProof, GuestProof])
def test_nobody_makes_a_proof_but_who_proves(kind: Any) -> None:
    with pytest.raises(TypeError, match="only"):
        kind(None, None, None, None, seal=object())


def test_a_session_tells_its_key_by_the_thumbprint() -> None:
    one = attested(1)
    assert one.thumbprint == replace(one, evidence=bytes(32)).thumbprint
    assert len(one.thumbprint) == 32
