"""Step receipt/14: what a run got of its broker, and every way of lying about it. state.md §2."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from nodes import NOW
from runs import Story, payload_of, predicate, refusals, rehash, renumber, resealed, tell, verify
from secret_broker import SecretBroker

from confide.agents.sandbox import ExitKind
from confide.appraisal.steps import Refused
from confide.crypto.ed25519 import Ed25519Signer
from confide.errors import FormatError, Reason
from confide.expectation import Expectation, parse_expectation
from confide.receipts.file import parse_receipt_file
from confide.receipts.releases import verify_releases
from confide.receipts.statement import parse_run_statement
from confide.wire.dsse import Envelope, pae
from confide.wire.json import jcs
from confide.wire.release_receipt import ReleaseReceipt, StateStep, parse_release_receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.receipts.file import ReceiptFile
    from confide.receipts.transcript import Event

ASKING = Story("asking", secrets=("db-password", "TOKEN=token"), state=True)
KIND = {"secret-released": 0, "state-opened": 2, "state-saved": 3}


def expectation() -> Expectation:
    return parse_expectation(tell(ASKING).expectation)


def events() -> tuple[Event, ...]:
    return parse_run_statement(tell(ASKING).run.payload).events


def refuse(
    changed: tuple[Event, ...] | None = None,
    releases: tuple[Envelope, ...] | None = None,
    under: Expectation | None = None,
) -> Reason:
    with pytest.raises((Refused, FormatError)) as error:
        verify_releases(
            events() if changed is None else changed,
            tell(ASKING).releases if releases is None else releases,
            under or expectation(),
        )
    found = error.value
    assert isinstance(found, Refused | FormatError)
    return found.reason


def altered(kind: str, **members: Any) -> tuple[Event, ...]:
    """The transcript with every event of `kind` changed."""
    return tuple(
        replace(event, members=tuple({**dict(event.members), **members}.items()))
        if event.kind == kind
        else event
        for event in events()
    )


def twice(kind: str) -> tuple[Event, ...]:
    """The transcript with the first event of `kind` doubled."""
    found = next(index for index, event in enumerate(events()) if event.kind == kind)
    return (*events()[: found + 1], *events()[found:])


def signed(receipt: ReleaseReceipt, seed: bytes = b"b" * 32) -> Envelope:
    signer = Ed25519Signer(seed)
    payload = receipt.payload()
    return Envelope(payload, ((signer.public_key.hex(), signer.sign(pae(payload))),))


# What is accepted


def test_a_run_with_secrets_and_state_is_accepted() -> None:
    file = tell(ASKING)
    verified = verify(file)
    step = next(f for f in verified.findings if f.step == "receipt/14")
    assert step.detail == "2 secrets, a state"
    kinds = [event.kind for event in verified.statement.events]
    before, after = kinds.index("agent-started"), kinds.index("agent-exited")
    assert kinds[before - 3 : before] == ["secret-released", "secret-released", "state-opened"]
    assert "state-saved" in kinds[after : kinds.index("model-closed")]
    assert len(file.releases) == 4
    assert parse_receipt_file(file.encode()).releases == file.releases
    assert parse_receipt_file(file.encode()).encode() == file.encode()


def test_a_run_that_failed_kept_the_old_state_and_says_so() -> None:
    for story in (
        replace(ASKING, name="failed", status=1),
        replace(ASKING, name="killed", end=ExitKind.KILLED_WALL, status=None),
    ):
        statement = parse_run_statement(tell(story).run.payload)
        kept = [event["reason"] for event in statement.events if event.kind == "state-kept"]
        assert kept == ["agent-failed"]
        # Refused because the run failed, and for nothing else.
        assert set(refusals(tell(story))) == {"12"}


def test_a_receipt_reads_back() -> None:
    for envelope in tell(ASKING).releases:
        receipt = parse_release_receipt(envelope.payload)
        assert receipt.payload() == envelope.payload
        assert receipt.against == expectation().digest
    saved = parse_release_receipt(tell(ASKING).releases[3].payload)
    assert saved.state == StateStep("save", 1, saved.version)


# What a dishonest broker or node says


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reason": "release-missing", "jwe": None}, Reason.SECRET_MISMATCH),
        ({"broker": bytes(32)}, Reason.SECRET_MISMATCH),
        ({"resource": "records/secret/other"}, Reason.SECRET_MISMATCH),
        ({"version": bytes([1]) * 32}, Reason.SECRET_MISMATCH),
        ({"version": None}, Reason.RECEIPT_FORMAT),
        ({"state": StateStep("open", 9, bytes(32))}, Reason.SECRET_MISMATCH),
        ({"state": StateStep("save", None, None, "state-fork")}, Reason.SECRET_MISMATCH),
        ({"resource": None}, Reason.RECEIPT_FORMAT),
        ({"accepts": "policy"}, Reason.EXPECTATION_MISMATCH),
        ({"accepts": None}, Reason.RECEIPT_FORMAT),
        ({"against": bytes(32)}, Reason.EXPECTATION_MISMATCH),
        ({"against": None}, Reason.RECEIPT_FORMAT),
    ],
)
@pytest.mark.parametrize("kind", KIND)
def test_a_receipt_about_something_else_is_refused(
    kind: str, change: dict[str, Any], reason: Reason
) -> None:
    releases = list(tell(ASKING).releases)
    number = KIND[kind]
    honest = parse_release_receipt(releases[number].payload)
    releases[number] = signed(replace(honest, **change))
    named = tuple(
        replace(
            event,
            members=tuple({**dict(event.members), "receipt": releases[number].digest}.items()),
        )
        if event.kind == kind and event["receipt"] == tell(ASKING).releases[number].digest
        else event
        for event in events()
    )
    assert named != events()
    assert refuse(named, tuple(releases)) is reason


def test_a_receipt_that_another_signed_is_refused() -> None:
    first, *rest = tell(ASKING).releases
    payload = first.payload
    broker = SecretBroker(NOW).signer
    stranger = Ed25519Signer(b"s" * 32)
    good = (broker.public_key.hex(), broker.sign(pae(payload)))
    for signatures in (
        (),
        ((stranger.public_key.hex(), stranger.sign(pae(payload))),),
        ((broker.public_key.hex(), stranger.sign(pae(payload))),),
        ((broker.public_key.hex(), broker.sign(payload)),),
        ((stranger.public_key.hex(), broker.sign(pae(payload))),),
        (good, (stranger.public_key.hex(), stranger.sign(pae(payload)))),
    ):
        found = refuse(releases=(Envelope(payload, signatures), *rest))
        assert found is Reason.RECEIPT_SIGNATURE
    verify_releases(events(), (Envelope(payload, (good,)), *rest), expectation())


def test_every_receipt_is_there_and_named_once() -> None:
    releases = tell(ASKING).releases
    for number in range(4):
        assert refuse(releases=releases[:number] + releases[number + 1 :]) is Reason.RECEIPT_MISSING
    assert refuse(releases=(*releases, releases[0])) is Reason.RECEIPT_NOT_REFERENCED
    other = signed(replace(parse_release_receipt(releases[0].payload), session=bytes(32)))
    assert refuse(releases=(*releases, other)) is Reason.RECEIPT_NOT_REFERENCED
    same = altered("secret-released", receipt=releases[0].digest)
    assert refuse(same) in {Reason.RECEIPT_MISSING, Reason.SECRET_MISMATCH}


def test_what_the_expectation_lists_is_what_was_released() -> None:
    honest = expectation()
    asked = honest.broker
    for secrets in ((), ("db-password",), ("db-password", "TOKEN=token", "more")):
        broker = replace(asked, secrets=secrets)
        assert refuse(under=replace(honest, broker=broker)) is Reason.SECRET_MISMATCH
    assert refuse(twice("secret-released")) is Reason.SECRET_MISMATCH
    elsewhere = replace(honest, broker=replace(asked, key="ab" * 32))
    assert refuse(under=elsewhere) is Reason.RECEIPT_SIGNATURE


def test_a_state_is_opened_once_and_saved_or_kept_once() -> None:
    honest = expectation()
    assert refuse(under=replace(honest, broker=replace(honest.broker, state=False))) in {
        Reason.SECRET_MISMATCH,
        Reason.EXPECTATION_MISMATCH,
    }
    for kind in ("state-opened", "state-saved"):
        without = tuple(event for event in events() if event.kind != kind)
        assert refuse(without) is Reason.SECRET_MISMATCH
        assert refuse(twice(kind)) is Reason.SECRET_MISMATCH


@pytest.mark.parametrize("counter", [0, 2, -1])
def test_a_state_is_saved_as_the_number_that_follows(counter: int) -> None:
    assert refuse(altered("state-saved", counter=counter)) is Reason.STATE_FORK


def test_the_counter_is_that_of_the_receipt() -> None:
    both = altered("state-opened", counter=4)
    saved = tuple(
        replace(event, members=tuple({**dict(event.members), "counter": 5}.items()))
        if event.kind == "state-saved"
        else event
        for event in both
    )
    assert refuse(saved) is Reason.SECRET_MISMATCH


def test_a_dishonest_node_cannot_leave_a_release_out() -> None:
    """It signs and quotes what it likes; the model node closed over what was."""

    def silent(document: dict[str, Any]) -> None:
        kept = [e for e in predicate(document)["transcript"] if e["kind"] != "secret-released"]
        predicate(document)["transcript"] = kept
        renumber(document)
        rehash(document)

    file = resealed(tell(ASKING), silent)
    assert {"10", "14"} <= set(refusals(file))


# The form


@pytest.mark.parametrize("name", sorted(payload_of(tell(ASKING).releases[2])["predicate"]))
def test_a_receipt_is_complete_and_closed(name: str) -> None:
    document = payload_of(tell(ASKING).releases[2])
    if name != "state":
        del document["predicate"][name]
        with pytest.raises(FormatError):
            parse_release_receipt(jcs(document))
    document = payload_of(tell(ASKING).releases[2])
    document["predicate"][name] = ["neither"]
    with pytest.raises(FormatError):
        parse_release_receipt(jcs(document))
    document = payload_of(tell(ASKING).releases[2])
    document["predicate"]["more"] = 1
    with pytest.raises(FormatError):
        parse_release_receipt(jcs(document))


@pytest.mark.parametrize(
    ("outcome", "reason"), [("refused", None), ("released", "release-missing"), ("perhaps", None)]
)
@pytest.mark.parametrize("inside", [False, True])
def test_an_outcome_agrees_with_its_reason(outcome: str, reason: str | None, inside: bool) -> None:
    document = payload_of(tell(ASKING).releases[3])
    members = document["predicate"]["state"] if inside else document["predicate"]
    members.update(outcome=outcome, reason=reason)
    with pytest.raises(FormatError):
        parse_release_receipt(jcs(document))


def test_a_refusal_reads_back_too() -> None:
    honest = parse_release_receipt(tell(ASKING).releases[3].payload)
    step = StateStep("save", None, None, "state-fork")
    for refusal in (
        replace(honest, reason="release-missing", version=None, jwe=None, state=None),
        replace(
            honest, reason="resource-unknown", resource=None, version=None, jwe=None, state=step
        ),
    ):
        assert parse_release_receipt(refusal.payload()) == refusal


def _edit_subject(document: dict[str, Any], how: Callable[[list[Any]], object]) -> bytes:
    how(document["subject"])
    return jcs(document)


@pytest.mark.parametrize(
    "how",
    [
        lambda subject: subject.clear(),
        lambda subject: subject.append(subject[0]),
        lambda subject: subject[0].update(name="records/secret/other"),
        lambda subject: subject[0]["digest"].update(sha256="00" * 32),
    ],
)
def test_the_subject_says_what_the_predicate_says(how: Callable[[list[Any]], object]) -> None:
    with pytest.raises(FormatError, match="subject"):
        parse_release_receipt(_edit_subject(payload_of(tell(ASKING).releases[0]), how))


def test_without_a_broker_there_is_no_release() -> None:
    plain: ReceiptFile = tell()
    file = replace(plain, releases=tell(ASKING).releases[:1])
    assert refusals(file) == {"14": Reason.RECEIPT_NOT_REFERENCED}
