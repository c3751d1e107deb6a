"""What owners decide about a repository: values, releases, revocations, and who the owners are."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from owner_world import (
    ALICE,
    BOB,
    CAROL,
    CONSORTIUM,
    DATASET,
    MALLORY,
    NEW_CODE,
    OLD_CODE,
    SOLE,
    VALUE,
    World,
    addressed,
    owners,
    release,
    signed,
)

from confide.broker.beside import Submission
from confide.broker.statement import add_signature
from confide.broker.statement_kinds import Listing, OwnersChange, Removal, Revocation
from confide.errors import ConfigurationError, Reason, ReleaseRefused
from confide.wire.tlog_proof import parse_tlog_proof

if TYPE_CHECKING:
    from confide.broker.owners import Owners

POLICY = b'type = "confide/policy/v1"\nname = "theirs"\nprofile = "strict"\n'


@pytest.fixture
def here() -> World:
    """A broker with one owner."""
    return World()


@pytest.fixture
def consortium() -> World:
    """A broker whose repository belongs to three, all of whom have to sign; a dataset is there."""
    here = World((CONSORTIUM,))
    here.put(VALUE, ALICE, BOB, CAROL)
    return here


def refused(reason: Reason) -> pytest.RaisesExc[ReleaseRefused]:
    return pytest.raises(ReleaseRefused, check=lambda error: error.reason is reason)


def test_a_value_that_was_put_is_there_under_its_version_also_after_a_restart(here: World) -> None:
    version = here.put()
    for desk in (here.desk, here.restart()):
        held = desk.value(DATASET)
        assert held is not None
        assert (held.version, held.value) == (version, VALUE)
        assert VALUE.decode() not in repr(held)
    assert here.desk.value("acme/secret/other") is None


def test_a_new_value_replaces_the_old_one_and_releases_go_on(here: World) -> None:
    here.put()
    named = here.release(OLD_CODE)
    version = here.put(b"another")
    held = here.desk.value(DATASET)
    assert held is not None
    assert (held.version, held.value) == (version, b"another")
    assert here.open() == named


def test_a_removed_value_is_destroyed_and_only_the_version_that_was_named(here: World) -> None:
    version = here.put()
    with refused(Reason.RESOURCE_UNKNOWN):
        here.say(Removal(DATASET, OLD_CODE))
    assert here.say(Removal(DATASET, version))["state"] == "removed"
    assert here.desk.value(DATASET) is None
    with refused(Reason.RESOURCE_UNKNOWN):
        here.say(Removal(DATASET, version))
    assert not [record for kind, record in here.memory.rows if kind == "secret"]


def test_a_release_holds_once_it_is_in_the_log(here: World) -> None:
    with refused(Reason.RELEASE_MISSING):
        here.open()
    answer = here.say(release(OLD_CODE))
    assert answer["state"] == "in-force"
    proof = parse_tlog_proof(str(answer["log"]).encode())
    assert proof.extra is not None
    assert here.open().hex() == answer["statement"] == here.log.asked[0].hex()
    with refused(Reason.RELEASE_MISSING):
        here.open(NEW_CODE)
    with refused(Reason.RELEASE_MISSING):
        here.open(resource="acme/secret/other")


def test_an_expectation_is_no_policy_of_the_same_digest(here: World) -> None:
    here.release(OLD_CODE)
    with refused(Reason.RELEASE_MISSING):
        here.desk.require_release(DATASET, accepts="policy", digest=OLD_CODE, now=here.now)


def test_a_state_is_released_without_a_value(here: World) -> None:
    state = "acme/state/agent"
    here.say(release(OLD_CODE, resources=(state, DATASET)))
    assert here.open(resource=state)
    assert here.desk.value(state) is None


def test_a_release_begins_and_ends(here: World) -> None:
    start = here.now + timedelta(days=1)
    assert here.say(release(OLD_CODE, start=start, days=1))["state"] == "not-yet"
    for at, reason in (
        (start - timedelta(seconds=1), Reason.RELEASE_NOT_YET),
        (start, None),
        (start + timedelta(days=1, seconds=-1), None),
        (start + timedelta(days=1), Reason.RELEASE_EXPIRED),
    ):
        here.clock.at = at
        if reason is None:
            assert here.open()
        else:
            with refused(reason):
                here.open()


def test_a_policy_travels_with_its_release(here: World) -> None:
    envelope = signed(SOLE, release(policy=POLICY), ALICE)
    for wrong in (None, POLICY + b"\n"):
        with refused(Reason.RELEASE_FORMAT):
            here.send(envelope, policy=wrong)
    with refused(Reason.RELEASE_FORMAT):
        here.send(signed(SOLE, release(policy=b"name = 1"), ALICE), policy=b"name = 1")
    with refused(Reason.RELEASE_FORMAT):
        here.send(signed(SOLE, release(policy=b"\xff"), ALICE), policy=b"\xff")
    assert here.desk.policies(DATASET, now=here.now) == ()
    here.send(envelope, policy=POLICY)
    digest = hashlib.sha256(POLICY).digest()
    assert here.desk.policies(DATASET, now=here.now) == ((digest, POLICY),)
    assert here.desk.policies("acme/secret/other", now=here.now) == ()
    assert here.desk.require_release(DATASET, accepts="policy", digest=digest, now=here.now)
    here.say(Revocation(envelope.digest))
    assert here.desk.policies(DATASET, now=here.now) == ()


def test_nothing_travels_beside_a_statement_that_has_no_use_for_it(here: World) -> None:
    with refused(Reason.RELEASE_FORMAT):
        here.send(signed(SOLE, release(OLD_CODE), ALICE), value=b"x")
    with refused(Reason.RELEASE_FORMAT):
        here.send(signed(SOLE, release(OLD_CODE), ALICE), policy=POLICY)
    with refused(Reason.RELEASE_FORMAT):
        here.send(signed(SOLE, Listing(), ALICE), policy=POLICY)


def test_a_revocation_holds_on_the_next_request_and_a_new_release_is_another(here: World) -> None:
    named = here.release(OLD_CODE)
    assert here.open() == named
    assert here.say(Revocation(named))["state"] == "revoked"
    with refused(Reason.RELEASE_REVOKED):
        here.open()
    assert here.say(Revocation(named))["state"] == "revoked"
    again = here.release(OLD_CODE)
    assert here.open() == again != named
    here.restart()
    assert here.open() == again


def test_what_was_revoked_before_it_came_is_not_taken(here: World) -> None:
    envelope = signed(SOLE, release(OLD_CODE), ALICE)
    here.say(Revocation(envelope.digest))
    with refused(Reason.RELEASE_REVOKED):
        here.send(envelope)
    with refused(Reason.RELEASE_MISSING):
        here.open()


def test_owners_of_another_repository_revoke_nothing() -> None:
    others = owners(1, BOB, repository="other")
    here = World((SOLE, others))
    named = here.release(OLD_CODE)
    here.say(Revocation(named), BOB, to=others)
    assert here.open() == named


def test_of_several_that_do_not_hold_the_nearest_is_named(here: World) -> None:
    first = here.release(OLD_CODE, days=1)
    here.clock.at += timedelta(days=2)
    with refused(Reason.RELEASE_EXPIRED):
        here.open()
    second = here.release(OLD_CODE)
    here.say(Revocation(second))
    with refused(Reason.RELEASE_REVOKED):
        here.open()
    here.say(release(OLD_CODE, start=here.now + timedelta(days=1)))
    with refused(Reason.RELEASE_NOT_YET):
        here.open()
    here.log.down = True
    here.release(OLD_CODE)
    with refused(Reason.RELEASE_PENDING):
        here.open()
    assert first != second


def test_a_dataset_of_a_consortium_opens_when_all_three_signed_the_same(consortium: World) -> None:
    same = signed(CONSORTIUM, release(OLD_CODE), ALICE, BOB)
    with refused(Reason.OWNER_THRESHOLD):
        consortium.send(same)
    for by, digest in ((ALICE, OLD_CODE), (BOB, NEW_CODE), (CAROL, OLD_CODE)):
        with refused(Reason.OWNER_THRESHOLD):
            consortium.say(release(digest), by)
    with refused(Reason.RELEASE_MISSING):
        consortium.open()
    address = addressed(CONSORTIUM)
    mixed = signed(address, release(OLD_CODE), ALICE, BOB)
    other = signed(address, release(NEW_CODE), CAROL)
    with refused(Reason.OWNER_SIGNATURE):
        consortium.send(replace(mixed, signatures=mixed.signatures + other.signatures))
    complete = add_signature(same, CAROL)
    consortium.send(complete)
    assert consortium.open() == complete.digest


def test_new_code_reads_old_data_by_a_new_release_alone(consortium: World) -> None:
    consortium.release(OLD_CODE, by=(ALICE, BOB, CAROL))
    with refused(Reason.RELEASE_MISSING):
        consortium.open(NEW_CODE)
    named = consortium.release(NEW_CODE, by=(ALICE, BOB, CAROL))
    assert consortium.open(NEW_CODE) == named
    assert consortium.open(OLD_CODE) != named


def test_any_one_of_a_consortium_can_end_it(consortium: World) -> None:
    named = consortium.release(OLD_CODE, by=(ALICE, BOB, CAROL))
    with refused(Reason.OWNER_SIGNATURE):
        consortium.say(Revocation(named), MALLORY)
    assert consortium.open() == named
    consortium.say(Revocation(named), BOB)
    with refused(Reason.RELEASE_REVOKED):
        consortium.open()


def test_owners_change_and_what_they_released_goes_on(here: World) -> None:
    named = here.release(OLD_CODE)
    next_set = owners(2, ALICE, BOB)
    with refused(Reason.OWNER_THRESHOLD):
        here.say(OwnersChange(next_set), ALICE)
    assert here.desk.repositories() == {"acme": SOLE.digest}
    assert here.say(OwnersChange(next_set), ALICE, BOB)["state"] == "changed"
    assert here.desk.repositories() == {"acme": next_set.digest}
    assert here.open() == named
    with refused(Reason.OWNERS_MISMATCH):
        here.say(release(NEW_CODE), ALICE)
    here.say(release(NEW_CODE), ALICE, BOB, to=next_set)
    assert here.open(NEW_CODE)
    here.say(Revocation(named), BOB, to=next_set)
    with refused(Reason.RELEASE_REVOKED):
        here.open()


@pytest.mark.parametrize("configured", [(SOLE,), (owners(2, ALICE, BOB),)])
def test_the_configuration_names_the_first_or_the_present_owners(
    here: World, configured: tuple[Owners, ...]
) -> None:
    here.say(OwnersChange(owners(2, ALICE, BOB)), ALICE, BOB)
    assert here.restart(*configured).repositories() == {"acme": owners(2, ALICE, BOB).digest}


@pytest.mark.parametrize(
    "configured",
    [
        (owners(1, MALLORY),),
        (owners(1, ALICE, MALLORY),),
        (owners(1, MALLORY, repository="other"),),
    ],
    ids=["another owner", "one more", "not this repository"],
)
def test_a_configuration_that_says_something_else_does_not_start(
    here: World, configured: tuple[Owners, ...]
) -> None:
    with refused(Reason.OWNERS_MISMATCH):
        here.restart(*configured)
    with pytest.raises(ConfigurationError):
        World(())
    more = here.restart(SOLE, owners(1, BOB, repository="other"))
    assert set(more.repositories()) == {"acme", "other"}


def test_a_listing_tells_an_owner_what_is_there_and_no_values() -> None:
    others = owners(1, BOB, repository="other")
    here = World((SOLE, others))
    version, named = here.put(), here.release(OLD_CODE)
    found = here.listing()
    assert VALUE.decode() not in str(found)
    (secret,) = found["secrets"]
    assert (secret["resource"], secret["version"]) == (DATASET, version.hex())
    assert secret["bytes"] == len(VALUE)
    (row,) = found["releases"]
    assert (row["statement"], row["state"]) == (named.hex(), "in-force")
    assert row["accepts"] == [{"expectation": OLD_CODE.hex()}]
    theirs = here.say(Listing(), BOB, to=others)["listing"]
    assert theirs == {"owners": others.document(), "secrets": [], "releases": []}
    with refused(Reason.OWNER_SIGNATURE):
        here.say(Listing(), BOB)


def test_statements_that_come_at_once_are_all_taken(here: World) -> None:
    sent = [signed(SOLE, release(bytes([n]) * 32), ALICE) for n in range(8)]

    async def all_at_once() -> None:
        await asyncio.gather(*(here.desk.take(Submission(each).encode()) for each in sent))

    asyncio.run(all_at_once())
    for number, envelope in enumerate(sent):
        assert here.open(bytes([number]) * 32) == envelope.digest


def test_the_same_statement_many_times_at_once_is_taken_once(here: World) -> None:
    body = Submission(signed(SOLE, release(OLD_CODE), ALICE)).encode()

    async def all_at_once() -> list[object]:
        return [
            *await asyncio.gather(*(here.desk.take(body) for _ in range(8)), return_exceptions=True)
        ]

    answers = asyncio.run(all_at_once())
    assert sum(isinstance(each, dict) for each in answers) == 1
    assert {each.reason for each in answers if isinstance(each, ReleaseRefused)} == {
        Reason.REPLAYED
    }
    assert len(here.listing()["releases"]) == 1
