"""What goes wrong at the owners' desk: replays, wrong values, a log down or lying, a disk."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from datetime import timedelta

import pytest
from log_world import NOW, FixedClock
from owner_world import (
    ALICE,
    DATASET,
    KEYS,
    OLD_CODE,
    SOLE,
    VALUE,
    World,
    addressed,
    owners,
    release,
    sealed,
    signed,
)

from confide.broker.beside import (
    MAX_SUBMISSION_BYTES,
    Submission,
    parse_submission,
    seal_value,
    secret_version,
)
from confide.broker.keys import BrokerKeys
from confide.broker.statement_kinds import MAX_VALUE_BYTES, Listing, Revocation, Secret
from confide.errors import FormatError, Reason, ReleaseRefused, Unavailable


@pytest.fixture
def here() -> World:
    """A broker with one owner."""
    return World()


def refused(reason: Reason) -> pytest.RaisesExc[ReleaseRefused]:
    return pytest.raises(ReleaseRefused, check=lambda error: error.reason is reason)


def test_a_statement_is_taken_once_also_after_a_restart(here: World) -> None:
    envelope = signed(SOLE, release(OLD_CODE), ALICE)
    question = signed(SOLE, Listing(), ALICE)
    here.send(envelope)
    here.send(question)
    for _ in range(2):
        for each in (envelope, question):
            with refused(Reason.REPLAYED):
                here.send(each)
        here.restart()


def test_an_old_put_cannot_bring_back_the_old_value(here: World) -> None:
    secret, raw = sealed(b"the old one")
    first = signed(SOLE, secret, ALICE)
    here.send(first, value=raw)
    here.put(b"the new one")
    with refused(Reason.REPLAYED):
        here.send(first, value=raw)
    here.restart()
    with refused(Reason.REPLAYED):
        here.send(first, value=raw)
    held = here.desk.value(DATASET)
    assert held is not None
    assert held.value == b"the new one"


def test_a_refused_statement_is_not_remembered_and_can_come_again(here: World) -> None:
    secret, raw = sealed()
    envelope = signed(SOLE, secret, ALICE)
    with refused(Reason.RELEASE_FORMAT):
        here.send(envelope, value=raw[:-1])
    assert here.send(envelope, value=raw)["state"] == "held"


def test_a_clock_that_differs_too_much_is_refused_both_ways(here: World) -> None:
    envelope = signed(SOLE, release(OLD_CODE), ALICE)
    for skew in (timedelta(seconds=-301), timedelta(days=7, seconds=1)):
        here.clock.at = NOW + skew
        with refused(Reason.REQUEST_TIME):
            here.send(envelope)


def test_a_statement_to_another_broker_is_refused(here: World) -> None:
    elsewhere = replace(KEYS, sign=hashlib.sha256(b"another broker").digest())
    envelope = signed(addressed(SOLE, keys=elsewhere), release(OLD_CODE), ALICE)
    with refused(Reason.RELEASE_FORMAT):
        here.send(envelope)
    with refused(Reason.OWNERS_MISMATCH):
        here.say(Listing(), to=owners(1, ALICE, repository="nobodys"))


def test_only_the_value_that_the_owners_named_is_taken(here: World) -> None:
    secret, raw = sealed()
    other, other_raw = sealed(b"another value, well sealed by somebody in between")
    envelope = signed(SOLE, secret, ALICE)
    for wrong in (None, b"", raw[:31], raw[:-1], other_raw):
        with refused(Reason.RELEASE_FORMAT):
            here.send(envelope, value=wrong)
    assert here.desk.value(DATASET) is None
    assert secret.version != other.version


@pytest.mark.parametrize(
    "fault", ["another resource", "another version", "another value", "another key", "another size"]
)
def test_a_value_is_bound_to_its_resource_version_and_broker(here: World, fault: str) -> None:
    salt, version = bytes(32), secret_version(bytes(32), VALUE)
    key = KEYS.opener.public_key.raw
    raw = seal_value(
        BrokerKeys(bytes(32), b"x" * 32).opener.public_key.raw if fault == "another key" else key,
        b"something else" if fault == "another value" else VALUE,
        resource="acme/secret/other" if fault == "another resource" else DATASET,
        version=bytes(32) if fault == "another version" else version,
        ephemeral=b"e" * 32,
    )
    size = len(VALUE) + (fault == "another size")
    secret = Secret(DATASET, version, salt, hashlib.sha256(raw).digest(), size)
    with refused(Reason.RELEASE_FORMAT):
        here.send(signed(SOLE, secret, ALICE), value=raw)
    assert here.desk.value(DATASET) is None


def test_a_value_of_1_mib_is_taken_and_no_larger_body_than_is_bounded(here: World) -> None:
    here.put(bytes(MAX_VALUE_BYTES))
    held = here.desk.value(DATASET)
    assert held is not None
    assert len(held.value) == MAX_VALUE_BYTES
    for body in (b" " * (MAX_SUBMISSION_BYTES + 1), b"", b"[]", b'{"value":"AA=="}'):
        with pytest.raises(FormatError) as error:
            asyncio.run(here.desk.take(body))
        assert error.value.reason is Reason.RELEASE_FORMAT


def test_a_submission_is_read_as_it_was_written() -> None:
    envelope = signed(SOLE, release(OLD_CODE), ALICE)
    for submission in (
        Submission(envelope),
        Submission(envelope, b"v", b"p"),
        Submission(envelope, b""),
    ):
        assert parse_submission(submission.encode()) == submission


def test_a_release_waits_for_the_log_and_is_settled_later(here: World) -> None:
    here.log.down = True
    answer = here.say(release(OLD_CODE))
    assert answer["state"] == "pending"
    assert "log" not in answer
    with refused(Reason.RELEASE_PENDING):
        here.open()
    assert asyncio.run(here.desk.settle()) == 1
    here.restart()
    with refused(Reason.RELEASE_PENDING):
        here.open()
    here.log.down = False
    assert asyncio.run(here.desk.settle()) == 0
    assert here.open().hex() == answer["statement"]
    settled = len(here.log.asked)
    assert asyncio.run(here.desk.settle()) == 0
    assert len(here.log.asked) == settled


def test_a_log_that_lies_is_not_believed(here: World) -> None:
    here.log.lies = True
    assert here.say(release(OLD_CODE))["state"] == "pending"
    with refused(Reason.RELEASE_PENDING):
        here.open()
    assert "tlog-inclusion" in here.reports[0]
    here.log.lies = False
    assert asyncio.run(here.desk.settle()) == 0
    assert here.open()


def test_a_revocation_holds_while_the_log_is_down_and_is_logged_later(here: World) -> None:
    named = here.release(OLD_CODE)
    here.log.down = True
    answer = here.say(Revocation(named))
    assert answer["state"] == "revoked"
    assert "log" not in answer
    with refused(Reason.RELEASE_REVOKED):
        here.open()
    here.restart()
    with refused(Reason.RELEASE_REVOKED):
        here.open()
    here.log.down = False
    assert asyncio.run(here.desk.settle()) == 0
    assert here.log.asked[-1].hex() == answer["statement"]


def test_a_release_that_was_revoked_while_pending_never_holds(here: World) -> None:
    here.log.down = True
    named = here.release(OLD_CODE)
    here.say(Revocation(named))
    here.log.down = False
    assert asyncio.run(here.desk.settle()) == 0
    with refused(Reason.RELEASE_REVOKED):
        here.open()


def test_a_disk_that_fails_leaves_nothing_half(here: World) -> None:
    here.memory.fails = here.memory.changes
    envelope = signed(SOLE, release(OLD_CODE), ALICE)
    before = dict(here.memory.rows)
    with pytest.raises(Unavailable):
        here.send(envelope)
    assert here.memory.rows == before
    assert here.send(envelope)["state"] == "in-force"


def test_a_disk_that_wrote_and_did_not_say_so_has_all_of_it(here: World) -> None:
    here.memory.fails, here.memory.after = here.memory.changes, True
    envelope = signed(SOLE, release(OLD_CODE), ALICE)
    with pytest.raises(Unavailable):
        here.send(envelope)
    with refused(Reason.REPLAYED):
        here.send(envelope)
    with refused(Reason.RELEASE_PENDING):
        here.open()
    assert asyncio.run(here.desk.settle()) == 0
    assert here.open() == envelope.digest


def test_a_release_is_taken_although_its_proof_could_not_be_kept(here: World) -> None:
    here.memory.fails = here.memory.changes + 1
    assert here.say(release(OLD_CODE))["state"] == "pending"
    with refused(Reason.RELEASE_PENDING):
        here.open()
    assert asyncio.run(here.desk.settle()) == 0
    assert here.open()


def test_settling_goes_on_for_ever_at_growing_pauses(here: World) -> None:
    here.log.down = True
    named = here.release(OLD_CODE)
    pauses: list[float] = []

    class Sleeper:
        async def sleep(self, seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 8:
                here.log.down = False
            if len(pauses) == 10:
                raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(here.desk.keep_settling(Sleeper()))
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60, 1, 1]
    assert here.open() == named


def test_two_desks_over_one_store_see_each_other(here: World) -> None:
    other = World(memory=here.memory, log=here.log, clock=FixedClock())
    named = here.release(OLD_CODE)
    assert other.open() == named
    other.say(Revocation(named))
    with refused(Reason.RELEASE_REVOKED):
        here.open()


@pytest.mark.parametrize("kind", ["revocation", "release", "released", "owners"])
def test_a_record_that_somebody_takes_out_lets_nothing_out(here: World, kind: str) -> None:
    named = here.release(OLD_CODE)
    here.open()
    here.say(Revocation(named))
    whole = dict(here.memory.rows)
    here.memory.rows = {place: row for place, row in whole.items() if place[0] != kind}
    damaged = pytest.raises(FormatError, match="somebody changed the database")
    # Under the running broker, and as often as it is asked.
    for _ in range(2):
        with damaged:
            (here.listing if kind == "owners" else here.open)()
    with damaged:
        here.store.verify()
    here.memory.rows = whole
    with refused(Reason.RELEASE_REVOKED):
        here.open()


def test_a_statement_is_not_taken_again_where_its_mark_is_taken_out(here: World) -> None:
    envelope = signed(SOLE, release(OLD_CODE), ALICE)
    here.send(envelope)
    marks = [place for place in here.memory.rows if place[0] == "statement"]
    for place in marks:
        del here.memory.rows[place]
    with pytest.raises(FormatError, match="somebody changed the database"):
        here.send(envelope)
