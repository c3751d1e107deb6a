"""What owners sign: who may, how many must, to whom, when; each refusal by its reason."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import owner_world as world
import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_world import NOW
from owner_world import (
    ALICE,
    BOB,
    CAROL,
    CONSORTIUM,
    DATASET,
    KEYS,
    MALLORY,
    NEW_CODE,
    OLD_CODE,
    SOLE,
    addressed,
    owners,
    release,
    signed,
)

from confide.broker.owners import Owners, make_owners, parse_owners, parse_owners_file
from confide.broker.statement import STEPS, VerifiedStatement, add_signature, verify_statement
from confide.broker.statement_kinds import (
    Accept,
    Body,
    Listing,
    OwnersChange,
    Removal,
    Revocation,
    Secret,
    make_payload,
    parse_statement,
)
from confide.errors import FormatError, Reason, ReleaseRefused
from confide.wire.dsse import Envelope
from confide.wire.json import jcs

TWO_OF_THREE = owners(2, ALICE, BOB, CAROL)
RELEASE = release(OLD_CODE)


def verify(envelope: Envelope, to: Owners = SOLE, *, broker: bytes = KEYS.key) -> VerifiedStatement:
    return verify_statement(envelope, broker=broker, owners={to.repository: to}, now=NOW)


def refusal(envelope: Envelope, to: Owners = SOLE, *, broker: bytes = KEYS.key) -> Reason:
    with pytest.raises(ReleaseRefused) as refused:
        verify(envelope, to, broker=broker)
    return refused.value.reason


BODIES: list[Body] = [
    world.sealed()[0],
    OwnersChange(owners(1, ALICE, BOB)),
    release(OLD_CODE, NEW_CODE, resources=(DATASET, "acme/state/agent"), policy=b"a policy"),
    Revocation(OLD_CODE),
    Removal(DATASET, NEW_CODE),
    Listing(),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.KIND)
def test_what_is_signed_is_what_is_read(body: Body) -> None:
    by = (ALICE, BOB) if isinstance(body, OwnersChange) else (ALICE,)
    found = verify(signed(SOLE, body, *by))
    assert found.statement.body == body
    assert [finding.step for finding in found.findings] == [step.id for step in STEPS]


def test_enough_distinct_owners_have_to_sign() -> None:
    assert verify(signed(TWO_OF_THREE, RELEASE, CAROL, ALICE), TWO_OF_THREE).signers == tuple(
        sorted((ALICE.public_key, CAROL.public_key))
    )
    assert refusal(signed(TWO_OF_THREE, RELEASE, ALICE), TWO_OF_THREE) is Reason.OWNER_THRESHOLD
    assert refusal(signed(TWO_OF_THREE, RELEASE), TWO_OF_THREE) is Reason.OWNER_THRESHOLD


def test_the_same_owner_twice_is_one_owner() -> None:
    once = signed(TWO_OF_THREE, RELEASE, ALICE)
    assert add_signature(once, ALICE) == once
    twice = replace(once, signatures=once.signatures * 2)
    assert refusal(twice, TWO_OF_THREE) is Reason.OWNER_THRESHOLD


def test_one_signature_of_a_stranger_or_over_something_else_refuses_all() -> None:
    good = signed(SOLE, RELEASE, ALICE)
    assert refusal(add_signature(good, MALLORY)) is Reason.OWNER_SIGNATURE
    other = signed(SOLE, release(NEW_CODE), ALICE)
    assert refusal(replace(good, signatures=other.signatures)) is Reason.OWNER_SIGNATURE
    ((_, signature),) = good.signatures
    for keyid in (ALICE.public_key.hex().upper(), "", "0"):
        assert refusal(replace(good, signatures=((keyid, signature),))) is Reason.OWNER_SIGNATURE


@given(st.integers(min_value=0, max_value=8 * 64 - 1))
def test_no_bit_of_a_signature_can_be_flipped(bit: int) -> None:
    good = signed(SOLE, RELEASE, ALICE)
    ((keyid, signature),) = good.signatures
    flipped = bytearray(signature)
    flipped[bit // 8] ^= 1 << bit % 8
    changed = replace(good, signatures=((keyid, bytes(flipped)),))
    assert refusal(changed) is Reason.OWNER_SIGNATURE


def test_another_broker_repository_or_set_of_owners_is_refused() -> None:
    good = signed(SOLE, RELEASE, ALICE)
    assert refusal(good, broker=MALLORY.public_key) is Reason.RELEASE_FORMAT
    elsewhere = owners(1, ALICE, repository="other")
    assert refusal(good, elsewhere) is Reason.OWNERS_MISMATCH
    assert refusal(good, owners(1, ALICE, BOB)) is Reason.OWNERS_MISMATCH


def test_a_statement_is_good_for_seven_days_and_five_minutes_ahead() -> None:
    limits = ((timedelta(seconds=300), True), (-timedelta(days=7), True))
    beyond = ((timedelta(seconds=301), False), (-timedelta(days=7, seconds=1), False))
    for skew, good in (*limits, *beyond):
        envelope = signed(addressed(SOLE, issued=NOW + skew), RELEASE, ALICE)
        if good:
            assert verify(envelope).digest == envelope.digest
        else:
            assert refusal(envelope) is Reason.REQUEST_TIME


@pytest.mark.parametrize("body", [Revocation(OLD_CODE), Listing()])
def test_one_owner_suffices_to_revoke_and_to_ask(body: Body) -> None:
    assert verify(signed(CONSORTIUM, body, BOB), CONSORTIUM).signers == (BOB.public_key,)
    assert refusal(signed(CONSORTIUM, body), CONSORTIUM) is Reason.OWNER_THRESHOLD


def test_owners_change_with_the_old_threshold_and_every_new_key() -> None:
    change = OwnersChange(owners(2, BOB, MALLORY))
    found = verify(signed(TWO_OF_THREE, change, ALICE, BOB, MALLORY), TWO_OF_THREE)
    assert found.statement.body == change
    for by in ((ALICE, BOB), (ALICE, MALLORY), (MALLORY,)):
        assert refusal(signed(TWO_OF_THREE, change, *by), TWO_OF_THREE) is Reason.OWNER_THRESHOLD
    envelope = signed(TWO_OF_THREE, RELEASE, ALICE, BOB, MALLORY)
    assert refusal(envelope, TWO_OF_THREE) is Reason.OWNER_SIGNATURE


def test_a_verified_statement_comes_from_its_verifier_alone() -> None:
    found = verify(signed(SOLE, RELEASE, ALICE))
    with pytest.raises(TypeError):
        replace(found, seal=object())


_NO_STATEMENTS = {
    "longer than a year": release(OLD_CODE, days=366 + 1 / 86400),
    "no time at all": release(OLD_CODE, days=0),
    "an end before the start": release(OLD_CODE, days=-1),
    "nobody to release to": release(),
    "the same digest twice": release(OLD_CODE, OLD_CODE),
    "no resource": release(OLD_CODE, resources=()),
    "a resource of others": release(OLD_CODE, resources=("other/secret/dataset",)),
    "a resource twice": release(OLD_CODE, resources=(DATASET, DATASET)),
    "65 resources": release(OLD_CODE, resources=[f"acme/secret/{n}" for n in range(65)]),
    "no name of a resource": release(OLD_CODE, resources=("acme/secret/../x",)),
    "two policies": replace(
        RELEASE, accepts=(Accept("policy", OLD_CODE), Accept("policy", NEW_CODE))
    ),
    "a value for a state": replace(world.sealed()[0], resource="acme/state/agent"),
    "a value of others": replace(world.sealed()[0], resource="other/secret/dataset"),
    "a value of 1 MiB and one byte": replace(world.sealed()[0], size=(1 << 20) + 1),
    "an empty value": replace(world.sealed()[0], size=0),
    "owners of others": OwnersChange(owners(1, ALICE, repository="other")),
}


@pytest.mark.parametrize("body", _NO_STATEMENTS.values(), ids=_NO_STATEMENTS)
def test_nobody_signs_what_no_broker_takes(body: Body) -> None:
    with pytest.raises(FormatError) as refused:
        make_payload(addressed(SOLE), body)
    assert refused.value.reason is Reason.RELEASE_FORMAT


def test_a_release_of_exactly_366_days_is_one() -> None:
    longest = release(OLD_CODE, days=366)
    assert verify(signed(SOLE, longest, ALICE)).statement.body == longest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"confide:release/v1", b"confide:release/v2"),
        (b'"expectation"', b'"agent"'),
        (b'"issued"', b'"Issued"'),
        (b"acme/secret", b"acme/Secret"),
        (b'{"_type"', b'{ "_type"'),
    ],
    ids=["another kind", "something else to accept", "no time", "no name", "not canonical"],
)
def test_what_is_no_statement_is_refused_and_signed_by_nobody(old: bytes, new: bytes) -> None:
    payload = make_payload(addressed(SOLE), RELEASE)
    assert old in payload
    changed = Envelope(payload.replace(old, new), ())
    assert refusal(changed) is Reason.RELEASE_FORMAT
    with pytest.raises(FormatError):
        add_signature(changed, ALICE)


def test_subjects_are_of_their_kind() -> None:
    one_more = jcs({"name": "acme/secret/x", "digest": {"sha256": "00" * 32}})
    for body, old, new in (
        (Revocation(OLD_CODE), b'"name":"release"', b'"name":"other"'),
        (OwnersChange(SOLE), SOLE.digest.hex().encode(), OLD_CODE.hex().encode()),
        (Listing(), b'"subject":[', b'"subject":[' + one_more),
        (Removal(DATASET, OLD_CODE), b'"subject":[', b'"subject":[' + one_more + b","),
    ):
        address = replace(addressed(SOLE), owners=bytes(32))
        payload = make_payload(address, body)
        assert old in payload
        with pytest.raises(FormatError) as refused:
            parse_statement(payload.replace(old, new))
        assert refused.value.reason is Reason.RELEASE_FORMAT


def test_the_digest_of_a_set_names_its_members_and_not_their_order() -> None:
    assert owners(2, ALICE, BOB) == owners(2, BOB, ALICE)
    assert owners(2, ALICE, BOB).digest != owners(1, ALICE, BOB).digest
    assert parse_owners(CONSORTIUM.document()) == CONSORTIUM
    with pytest.raises(FormatError):
        parse_owners({**CONSORTIUM.document(), "keys": [k.hex() for k in CONSORTIUM.keys[::-1]]})


@pytest.mark.parametrize(
    ("threshold", "count"),
    [(0, 1), (2, 1), (1, 0), (1, 17)],
    ids=["0 of 1", "2 of 1", "none", "17"],
)
def test_no_such_set_of_owners_is_possible(threshold: int, count: int) -> None:
    with pytest.raises(FormatError):
        make_owners("acme", threshold=threshold, keys=[bytes([n]) * 32 for n in range(count)])
    with pytest.raises(FormatError):
        make_owners("acme", threshold=1, keys=[bytes(32), bytes(32)])


def test_the_owners_file_has_a_table_for_each_repository() -> None:
    a, b = ALICE.public_key.hex(), BOB.public_key.hex()
    text = (
        f'[acme]\nowners = ["{b}", "{a}"]\nthreshold = 2\n[lab]\nowners = ["{a}"]\nthreshold = 1\n'
    )
    assert parse_owners_file(text) == (owners(2, ALICE, BOB), owners(1, ALICE, repository="lab"))
    for wrong in (
        "",
        "acme = 1",
        text.replace("threshold = 2", "threshold = 3"),
        text.replace("threshold = 2", "threshold = true"),
        text.replace("threshold = 2", ""),
        text.replace("[acme]", "[Acme]"),
        text.replace(b, a),
        text.replace(b, b[:-2]),
        text + "note = 1\n",
    ):
        with pytest.raises(FormatError) as refused:
            parse_owners_file(wrong)
        assert refused.value.reason is Reason.RELEASE_FORMAT


def test_the_document_of_a_set_is_the_one_that_is_written_down() -> None:
    document = {"type": "confide/owners/v1", "repository": "acme", "threshold": 1}
    raw = jcs({**document, "keys": [ALICE.public_key.hex()]})
    assert jcs(SOLE.document()) == raw


def test_what_stands_beside_a_secret_says_nothing_about_its_value() -> None:
    secret: Secret = world.sealed()[0]
    assert world.VALUE not in make_payload(addressed(SOLE), secret)
    assert secret.version != world.sealed()[0].version
