"""Rotation: the old keyset signs the new one, requests keep theirs, three ends are told apart."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from nodes import NOW, FixedClock, SimulatedNode

from confide.channel.succession import parse_succession, require_current, verify_succession
from confide.errors import EvidenceRejected, FormatError, Reason
from confide.node.identity import OVERLAP, ROTATE_AFTER, NodeIdentity

if TYPE_CHECKING:
    from confide.channel.keys import KeyRing


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def identity(clock: FixedClock) -> NodeIdentity:
    node = SimulatedNode("agent")
    asyncio.run(node.boot())
    return NodeIdentity(node.keys, node.attester, clock=clock, entropy=node.entropy, simulated=True)


def reason_of(error: pytest.ExceptionInfo[EvidenceRejected]) -> Reason:
    return error.value.reason


def test_a_successor_is_lawful_where_the_old_keyset_signed_it(identity: NodeIdentity) -> None:
    old = identity.current.keys.keyset
    succession = identity.rotate()
    new = identity.current.keys.keyset
    assert new.digest != old.digest
    verify_succession(old, new, parse_succession(succession.document()), now=NOW)


def test_evidence_for_the_new_keyset_carries_the_succession(identity: NodeIdentity) -> None:
    succession = identity.rotate()
    bundle = asyncio.run(
        identity.current.attester.attest(purpose="channel", nonce=b"n" * 32, expectation=b"e" * 32)
    )
    assert parse_succession(bundle.succession) == succession
    assert bundle.keyset == identity.current.keys.keyset.document()


def test_a_keyset_without_a_succession_is_somebody_else(identity: NodeIdentity) -> None:
    old = identity.current.keys.keyset
    identity.rotate()
    with pytest.raises(EvidenceRejected) as error:
        verify_succession(old, identity.current.keys.keyset, None, now=NOW)
    assert reason_of(error) is Reason.KEYSET_MISMATCH


@pytest.mark.parametrize("what", ["signature", "overlap_until", "new"])
def test_a_changed_succession_is_refused(identity: NodeIdentity, what: str) -> None:
    old = identity.current.keys.keyset
    succession = identity.rotate()
    changed = {
        "signature": replace(succession, signature=bytes(64)),
        "overlap_until": replace(succession, overlap_until=NOW + timedelta(days=9)),
        "new": replace(succession, new=b"x" * 32),
    }[what]
    with pytest.raises(EvidenceRejected) as error:
        verify_succession(old, identity.current.keys.keyset, changed, now=NOW)
    assert reason_of(error) is Reason.KEYSET_MISMATCH


def test_expired_and_revoked_are_different_ends(identity: NodeIdentity) -> None:
    old = identity.current.keys.keyset
    succession = identity.rotate()
    require_current(old, succession, now=NOW + OVERLAP)
    with pytest.raises(EvidenceRejected) as error:
        require_current(old, succession, now=NOW + OVERLAP + timedelta(seconds=1))
    assert reason_of(error) is Reason.KEYSET_REVOKED
    with pytest.raises(EvidenceRejected) as error:
        require_current(old, None, now=old.not_after + timedelta(seconds=1))
    assert reason_of(error) is Reason.KEYSET_EXPIRED


def test_requests_keep_the_keyset_they_were_sealed_to(identity: NodeIdentity) -> None:
    old = identity.current
    identity.rotate()
    new = identity.current
    assert identity.for_key(old.keys.seal[0][0]) is old
    assert identity.for_key(new.keys.seal[0][0]) is new
    ids = {key_id for known in (old, new) for key_id, _ in known.keys.seal}
    assert len(ids) == len(old.keys.seal) + len(new.keys.seal), "no key id is used twice"


def test_time_rotates_and_ends_the_overlap(identity: NodeIdentity, clock: FixedClock) -> None:
    rings: list[KeyRing] = []
    identity.on_rotation(rings.append)
    first = identity.current
    identity.tick()
    assert identity.current is first
    assert rings == []
    clock.time = NOW + ROTATE_AFTER
    identity.tick()
    assert identity.current is not first
    both = {config.key_id for config in rings[-1].configs}
    clock.time = NOW + ROTATE_AFTER + OVERLAP + timedelta(seconds=1)
    identity.tick()
    assert {config.key_id for config in rings[-1].configs} < both
    assert identity.for_key(first.keys.seal[0][0]) is identity.current


def test_a_succession_document_is_read_strictly(identity: NodeIdentity) -> None:
    document = identity.rotate().document()
    with pytest.raises(FormatError):
        parse_succession({**document, "more": 1})
