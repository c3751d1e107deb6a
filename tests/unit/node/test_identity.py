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
from confide.node.identity import OVERLAP, ROTATE_AFTER, Identity, NodeIdentity

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    owners = identity.owners()
    assert all(owners[key_id] is old for key_id, _ in old.keys.seal)
    assert all(owners[key_id] is new for key_id, _ in new.keys.seal)
    assert len(owners) == len(old.keys.seal) + len(new.keys.seal), "no key id is used twice"


def test_time_rotates_and_ends_the_overlap(identity: NodeIdentity, clock: FixedClock) -> None:
    rings: list[tuple[KeyRing, Mapping[int, Identity]]] = []
    identity.on_rotation(lambda ring, owners: rings.append((ring, owners)))
    first = identity.current
    identity.tick()
    assert identity.current is first
    assert rings == []
    clock.time = NOW + ROTATE_AFTER
    identity.tick()
    assert identity.current is not first
    both = {config.key_id for config in rings[-1][0].configs}
    assert both == rings[-1][1].keys()
    clock.time = NOW + ROTATE_AFTER + OVERLAP + timedelta(seconds=1)
    identity.tick()
    ring, owners = rings[-1]
    assert {config.key_id for config in ring.configs} == owners.keys() < both
    assert set(map(id, owners.values())) == {id(identity.current)}, "nobody speaks for an old key"


def test_a_succession_document_is_read_strictly(identity: NodeIdentity) -> None:
    document = identity.rotate().document()
    with pytest.raises(FormatError):
        parse_succession({**document, "more": 1})
