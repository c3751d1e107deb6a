"""Run receipts, whole: a genuine one is accepted, and every way of changing one is refused.

Two kinds of forger. A stranger edits the file and holds no key (`edited`). A dishonest agent node
signs and quotes whatever it likes (`resealed`): what still refuses it is the model node, which
closed the run over the transcript as it was.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from nodes import NOW
from runs import (
    OUTPUTS,
    Story,
    edited,
    infer,
    payload_of,
    predicate,
    refusals,
    rehash,
    renumber,
    resealed,
    sha,
    tell,
    verify,
    world,
)

from confide.agents.sandbox import ExitKind
from confide.errors import FormatError, Reason, ReceiptRejected
from confide.rats import Status
from confide.receipts.file import parse_proof, parse_receipt_file
from confide.receipts.transcript import _KINDS
from confide.trust.roots import VENDOR_ROOTS
from confide.wire.dsse import Envelope
from confide.wire.json import jcs, parse_json
from confide.wire.quantisation import Quantisation

if TYPE_CHECKING:
    from confide.receipts.file import ReceiptFile
    from confide.wire.evidence import EvidenceBundle

# The transcript of `tell()`, in order.
TRANSCRIPT = (
    "run-started",
    "input",
    "input",
    "model-verified",
    "agent-started",
    "model-call",
    "model-call",
    "egress",
    "agent-exited",
    "console",
    "console",
    "output",
    "output",
    "model-closed",
    "run-finished",
)
EVENTS = range(len(TRANSCRIPT))
DIGESTS = [
    (TRANSCRIPT.index(kind), member)
    for kind in dict.fromkeys(TRANSCRIPT)
    for member, field in _KINDS[kind].items()
    if field.startswith("digest")
]
OTHER = Story("other")
# No hardware quoted the digest of an edited receipt; without the quote no key is proven (step 5).
HOLDS_NO_KEY = {"4": Reason.CLAIM_MISMATCH}


def flip(text: str) -> str:
    return ("1" if text[0] == "0" else "0") + text[1:]


def digests() -> list[bytes]:
    return [hashlib.sha256(raw).digest() for raw in OUTPUTS.values()]


# What is accepted


def test_a_genuine_receipt_is_accepted_in_every_step() -> None:
    verified = verify(
        tell(),
        expectation=world().expectation,
        nonce=sha("owner's nonce", "first"),
        outputs=digests(),
    )
    steps = [f for f in verified.findings if f.step.startswith("receipt/")]
    assert [step.step for step in steps] == [f"receipt/{number}" for number in (*range(1, 13), 14)]
    assert {finding.status for finding in verified.findings} == {Status.PASS}
    assert tuple(event.kind for event in verified.statement.events) == TRANSCRIPT
    assert verified.simulated
    assert verified.digest == tell().run.digest
    assert verified.agent.statement.claim == verified.digest


def test_a_stranger_verifies_it_too_and_learns_what_it_is_about() -> None:
    verified = verify(tell())
    assert verified.expectation == world().expectation
    assert verified.statement.result == "completed"
    assert verified.statement.not_proven


def test_the_file_survives_its_encoding() -> None:
    raw = tell().encode()
    assert parse_receipt_file(raw).encode() == raw
    verify(parse_receipt_file(raw))


def test_a_run_without_model_calls_is_accepted() -> None:
    assert len(verify(tell(Story("silent", calls=0))).statement.events) == len(TRANSCRIPT) - 2


def test_a_call_that_was_never_answered_is_counted_and_shown() -> None:
    verified = verify(tell(Story("lost", unanswered=1)))
    (step,) = (f for f in verified.findings if f.step == "receipt/9")
    assert step.detail == "3 model calls, 1 unanswered"


def test_outputs_may_be_at_hand_in_any_order() -> None:
    verify(tell(), outputs=digests()[::-1])


# The transcript


@pytest.mark.parametrize("index", EVENTS)
def test_an_event_cannot_be_removed(index: int) -> None:
    def remove(document: dict[str, Any]) -> None:
        del predicate(document)["transcript"][index]

    found = refusals(edited(tell(), remove))
    assert found["1"] is Reason.TRANSCRIPT_BROKEN


@pytest.mark.parametrize("index", EVENTS)
def test_a_dishonest_agent_node_cannot_leave_out_an_event(index: int) -> None:
    def remove(document: dict[str, Any]) -> None:
        del predicate(document)["transcript"][index]
        renumber(document)
        rehash(document)

    found = refusals(resealed(tell(), remove))
    assert found.get("1") is Reason.TRANSCRIPT_BROKEN or {"8", "9", "10"} & set(found)


@pytest.mark.parametrize("index", EVENTS[:-1])
def test_a_dishonest_agent_node_cannot_reorder_events(index: int) -> None:
    def swap(document: dict[str, Any]) -> None:
        events = predicate(document)["transcript"]
        events[index], events[index + 1] = events[index + 1], events[index]
        renumber(document)
        rehash(document)

    found = refusals(resealed(tell(), swap))
    assert found.get("1") is Reason.TRANSCRIPT_BROKEN or "10" in found


@pytest.mark.parametrize(("index", "member"), DIGESTS)
def test_no_digest_in_the_transcript_can_be_changed(index: int, member: str) -> None:
    def change(document: dict[str, Any]) -> None:
        event = predicate(document)["transcript"][index]
        event[member] = flip(event[member])

    found = refusals(edited(tell(), change))
    assert found["2"] is Reason.TRANSCRIPT_BROKEN
    assert HOLDS_NO_KEY.items() <= found.items()


@pytest.mark.parametrize(("index", "member"), DIGESTS)
def test_nor_by_the_agent_node_after_the_model_node_closed(index: int, member: str) -> None:
    def change(document: dict[str, Any]) -> None:
        event = predicate(document)["transcript"][index]
        event[member] = flip(event[member])
        rehash(document)

    assert {"7", "8", "9", "10"} & set(refusals(resealed(tell(), change)))


def test_an_event_of_an_unknown_kind_is_refused() -> None:
    def add(document: dict[str, Any]) -> None:
        predicate(document)["transcript"].insert(1, {"seq": 1, "kind": "blessing"})
        renumber(document)

    assert refusals(resealed(tell(), add))["1"] is Reason.TRANSCRIPT_BROKEN


def test_an_empty_transcript_is_refused() -> None:
    def empty(document: dict[str, Any]) -> None:
        predicate(document)["transcript"] = []

    assert refusals(resealed(tell(), empty)) == {"1": Reason.TRANSCRIPT_BROKEN}


# The predicate and the subjects


@pytest.mark.parametrize(
    ("member", "value", "step", "reason"),
    [
        ("result", "agent-failed", "2", Reason.TRANSCRIPT_BROKEN),
        ("head", "00" * 32, "2", Reason.TRANSCRIPT_BROKEN),
        ("nonce", "00" * 32, "4", Reason.NONCE_MISMATCH),
        ("keyset", "00" * 32, "4", Reason.KEYSET_MISMATCH),
        ("expectation", "00" * 32, "3", Reason.EXPECTATION_MISMATCH),
        ("run", "00" * 32, "7", Reason.EXPECTATION_MISMATCH),
        ("started", "yesterday", "1", Reason.RECEIPT_FORMAT),
        ("result", None, "1", Reason.RECEIPT_FORMAT),
        ("verdict", "accepted", "1", Reason.RECEIPT_FORMAT),
    ],
)
def test_a_member_that_does_not_fit_is_refused_even_when_signed(
    member: str, value: object, step: str, reason: Reason
) -> None:
    def change(document: dict[str, Any]) -> None:
        predicate(document)[member] = value

    assert refusals(resealed(tell(), change))[step] is reason


def test_a_failed_run_cannot_be_turned_into_a_completed_one() -> None:
    def complete(document: dict[str, Any]) -> None:
        predicate(document)["result"] = "completed"
        predicate(document)["transcript"][-1]["result"] = "completed"
        rehash(document)

    assert refusals(edited(tell(Story("failed", status=1)), complete)) == HOLDS_NO_KEY


def test_a_subject_cannot_be_removed() -> None:
    def remove(document: dict[str, Any]) -> None:
        del document["subject"][0]

    assert refusals(resealed(tell(), remove)) == {"2": Reason.TRANSCRIPT_BROKEN}


def test_a_subject_cannot_name_another_output() -> None:
    def change(document: dict[str, Any]) -> None:
        digest = document["subject"][0]["digest"]
        digest["sha256"] = flip(digest["sha256"])

    assert refusals(resealed(tell(), change)) == {"2": Reason.TRANSCRIPT_BROKEN}


# The envelope


def test_a_receipt_without_signatures_is_refused() -> None:
    file = tell()
    bare = replace(file, run=Envelope(file.run.payload, ()))
    assert refusals(bare) == {"5": Reason.RECEIPT_SIGNATURE}


@pytest.mark.parametrize("keyid", ["9", "03", "3 ", "", "x"])
def test_a_signature_by_a_key_outside_the_keyset_is_refused(keyid: str) -> None:
    file = tell()
    (good,) = file.run.signatures
    more = replace(file, run=Envelope(file.run.payload, (good, (keyid, good[1]))))
    assert refusals(more) == {"5": Reason.RECEIPT_SIGNATURE}


def test_a_signature_of_another_receipt_is_refused() -> None:
    file = tell()
    other = replace(file, run=Envelope(file.run.payload, tell(OTHER).run.signatures))
    assert refusals(other) == {"5": Reason.RECEIPT_SIGNATURE}


def test_a_sealing_key_does_not_sign_receipts() -> None:
    file = tell()
    (good,) = file.run.signatures
    other = replace(file, run=Envelope(file.run.payload, (("2", good[1]),)))
    assert refusals(other) == {"5": Reason.RECEIPT_SIGNATURE}


def test_a_payload_that_is_not_canonical_is_refused_even_when_signed() -> None:
    def spaced(document: dict[str, Any]) -> bytes:
        return jcs(document).replace(b'":', b'": ', 1)

    file = resealed(tell(), lambda _: None, encode=spaced)
    assert refusals(file) == {"1": Reason.RECEIPT_FORMAT}


# The model node's receipts


def test_an_inference_receipt_cannot_be_removed() -> None:
    file = tell()
    assert refusals(replace(file, inferences=file.inferences[:1]))["9"] is Reason.RECEIPT_MISSING


def test_an_inference_receipt_cannot_stand_twice() -> None:
    file = tell()
    twice = replace(file, inferences=(*file.inferences, file.inferences[0]))
    assert refusals(twice)["9"] is Reason.RECEIPT_NOT_REFERENCED


def test_an_inference_receipt_of_another_run_is_foreign() -> None:
    file = tell()
    more = replace(file, inferences=(*file.inferences, tell(OTHER).inferences[0]))
    assert refusals(more)["9"] is Reason.RECEIPT_NOT_REFERENCED


def test_an_inference_receipt_of_another_run_does_not_stand_in() -> None:
    file = tell()
    swapped = replace(file, inferences=(file.inferences[0], tell(OTHER).inferences[0]))
    assert refusals(swapped)["9"] is Reason.RECEIPT_MISSING


def _naming(receipt: Envelope) -> ReceiptFile:
    """A receipt whose first model call names `receipt`, closed by nobody."""

    def change(document: dict[str, Any]) -> None:
        predicate(document)["transcript"][5]["receipt"] = receipt.digest.hex()
        rehash(document)

    file = resealed(tell(), change)
    return replace(file, inferences=(receipt, file.inferences[1]))


def _bytes_of_the_first_call() -> dict[str, bytes]:
    return {"request": sha("first", "q", "0"), "response": sha("first", "a", "0")}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"keyset": bytes(32)}, Reason.KEYSET_MISMATCH),
        ({"model": "other-model"}, Reason.MODEL_MISMATCH),
        ({"weights": bytes(32)}, Reason.MODEL_MISMATCH),
        ({"weights": None}, Reason.MODEL_MISMATCH),
        ({"quantisation": Quantisation("awq", 4, ("I32",))}, Reason.MODEL_MISMATCH),
        ({"response": bytes(32)}, Reason.CLAIM_MISMATCH),
        ({"request": bytes(32)}, Reason.CLAIM_MISMATCH),
    ],
)
def test_an_inference_receipt_about_something_else_is_refused(
    changed: dict[str, Any], reason: Reason
) -> None:
    receipt = infer(world(), **{**_bytes_of_the_first_call(), **changed})
    assert refusals(_naming(receipt))["9"] is reason


def test_an_inference_receipt_of_another_model_node_is_refused() -> None:
    receipt = infer(world(b"second boot"), **_bytes_of_the_first_call())
    assert refusals(_naming(receipt))["9"] is Reason.RECEIPT_SIGNATURE


def test_two_model_calls_cannot_share_a_receipt() -> None:
    def repeat(document: dict[str, Any]) -> None:
        events = predicate(document)["transcript"]
        events[6] = {**events[5], "seq": 6}
        rehash(document)

    file = resealed(tell(), repeat)
    shared = replace(file, inferences=file.inferences[:1])
    assert refusals(shared)["9"] is Reason.RECEIPT_MISSING


@pytest.mark.parametrize("gone", ["response", "receipt"])
def test_a_call_with_half_an_account_is_refused(gone: str) -> None:
    def forget(document: dict[str, Any]) -> None:
        predicate(document)["transcript"][5][gone] = None

    assert refusals(edited(tell(), forget))["9"] is Reason.RECEIPT_MISSING


# Evidence before and after


def _evidence(file: ReceiptFile, **bundles: EvidenceBundle | None) -> ReceiptFile:
    return replace(file, **bundles)  # type: ignore[arg-type]


def test_evidence_before_and_after_cannot_change_places() -> None:
    file = tell()
    agent = _evidence(file, agent_before=file.agent_after, agent_after=file.agent_before)
    assert refusals(agent) == {"4": Reason.STATEMENT_MISMATCH}
    model = _evidence(file, model_before=file.model_after, model_after=file.model_before)
    assert refusals(model)["8"] is Reason.STATEMENT_MISMATCH


def test_evidence_of_the_agent_node_after_another_run_is_refused() -> None:
    swapped = _evidence(tell(), agent_after=tell(OTHER).agent_after)
    assert refusals(swapped) == {"4": Reason.NONCE_MISMATCH}


def test_evidence_about_another_receipt_is_refused() -> None:
    changed = resealed(tell(), lambda document: predicate(document).update(result="cancelled"))
    swapped = _evidence(tell(), agent_after=changed.agent_after)
    assert refusals(swapped) == {"4": Reason.CLAIM_MISMATCH}


def test_evidence_of_the_agent_node_before_another_run_is_refused() -> None:
    swapped = _evidence(tell(), agent_before=tell(OTHER).agent_before)
    assert refusals(swapped) == {"6": Reason.NONCE_MISMATCH}


def test_evidence_of_the_model_node_before_another_run_is_refused() -> None:
    swapped = _evidence(tell(), model_before=tell(OTHER).model_before)
    assert refusals(swapped) == {"8": Reason.STATEMENT_MISMATCH}


def test_evidence_of_the_model_node_after_another_run_is_refused() -> None:
    swapped = _evidence(tell(), model_after=tell(OTHER).model_after)
    assert refusals(swapped) == {"10": Reason.CLAIM_MISMATCH}


@pytest.mark.parametrize(("place", "step"), [("model_before", "8"), ("model_after", "10")])
def test_evidence_of_the_model_node_cannot_be_left_out(place: str, step: str) -> None:
    assert refusals(_evidence(tell(), **{place: None}))[step] is Reason.EVIDENCE_MISSING


def test_the_keys_of_another_boot_do_not_fit() -> None:
    file, place = tell(), world(b"second boot")
    nonce = sha("owner's nonce", "first")
    before = asyncio.run(place.agent.attest("channel", nonce, place.expectation.digest))
    assert refusals(_evidence(file, agent_before=before)) == {"6": Reason.KEYSET_MISMATCH}
    after = asyncio.run(
        place.agent.attest("claim", nonce, place.expectation.digest, file.run.digest)
    )
    found = refusals(_evidence(file, agent_before=before, agent_after=after))
    assert found == {"4": Reason.KEYSET_MISMATCH}


def test_the_model_node_of_another_boot_cannot_close() -> None:
    file, place = tell(), world(b"second boot")
    (closed,) = (e for e in payload_of(file.run)["predicate"]["transcript"] if "claim" in e)
    assert file.model_after is not None
    statement = file.model_after.statement
    assert isinstance(statement, dict)
    after = asyncio.run(
        place.model.attest(
            "claim",
            bytes.fromhex(str(statement["nonce"])),
            place.expectation.digest,
            bytes.fromhex(closed["claim"]),
        )
    )

    def change(document: dict[str, Any]) -> None:
        predicate(document)["transcript"][13]["evidence"] = after.digest.hex()
        rehash(document)

    found = refusals(_evidence(resealed(file, change), model_after=after))
    assert found == {"10": Reason.KEYSET_MISMATCH}


def test_a_closing_that_counts_other_receipts_is_refused() -> None:
    def change(document: dict[str, Any]) -> None:
        predicate(document)["transcript"][13]["receipts"] = 3
        rehash(document)

    assert refusals(resealed(tell(), change)) == {"10": Reason.CLAIM_MISMATCH}


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ("confide-agent-image", Reason.AGENT_IMAGE_MISMATCH),
        ("confide-expectation", Reason.EXPECTATION_MISMATCH),
    ],
)
def test_a_run_that_was_not_measured_is_refused(event: str, reason: Reason) -> None:
    assert refusals(tell(Story(f"no {event}", unmeasured=event))) == {"7": reason}


# What the verifier knows by itself


def test_a_verifier_with_another_nonce_refuses() -> None:
    assert refusals(tell(), nonce=bytes(32)) == {"4": Reason.NONCE_MISMATCH}


def test_a_verifier_with_another_expectation_refuses() -> None:
    other = replace(world().expectation, name="another")
    assert refusals(tell(), expectation=other) == {"3": Reason.EXPECTATION_MISMATCH}


@pytest.mark.parametrize("at_hand", [[], [bytes(32)], "one less", "one more", "one twice"])
def test_other_outputs_at_hand_are_refused(at_hand: list[bytes] | str) -> None:
    true = digests()
    variants = {
        "one less": true[:1],
        "one more": [*true, bytes(32)],
        "one twice": [true[0], true[0]],
    }
    outputs = variants[at_hand] if isinstance(at_hand, str) else at_hand
    assert refusals(tell(), outputs=outputs) == {"11": Reason.OUTPUT_MISMATCH}


def test_another_expectation_in_the_file_is_refused() -> None:
    other = replace(world().expectation, name="another").canonical()
    assert refusals(replace(tell(), expectation=other)) == {"3": Reason.EXPECTATION_MISMATCH}


def test_an_expectation_that_is_not_canonical_is_refused() -> None:
    spaced = world().expectation.canonical() + b" "
    found = refusals(replace(tell(), expectation=spaced))
    assert found == {"3": Reason.EXPECTATION_MISMATCH}


def test_vendor_roots_refuse_a_simulated_run_whatever_the_file_says() -> None:
    found = refusals(tell(), roots=VENDOR_ROOTS)
    assert found["4"] is Reason.ROOT_MISMATCH


def test_a_receipt_is_refused_when_its_evidence_expired() -> None:
    assert refusals(tell(), now=NOW.replace(year=2028))["4"] is not None


# Runs that did not complete


@pytest.mark.parametrize(
    ("story", "result"),
    [
        (Story("failed", status=1), "agent-failed"),
        (Story("killed", end=ExitKind.KILLED_WALL, status=None), "agent-killed"),
        (Story("memory", end=ExitKind.KILLED_MEMORY, status=None), "agent-killed"),
        (Story("cancelled", end=ExitKind.CANCELLED, status=None), "cancelled"),
        (Story("not started", end=ExitKind.NOT_STARTED, status=None), "node-failed"),
        (Story("node", node_fails=True), "node-failed"),
    ],
    ids=lambda value: value.name if isinstance(value, Story) else value,
)
def test_a_run_that_did_not_complete_is_refused_and_the_rest_is_shown(
    story: Story, result: str
) -> None:
    with pytest.raises(ReceiptRejected) as rejected:
        verify(tell(story))
    (failure,) = rejected.value.failures
    assert (failure.step, failure.reason) == ("receipt/12", Reason.RUN_FAILED)
    assert result in failure.detail
    others = [f for f in rejected.value.findings if f is not failure]
    assert {finding.status for finding in others} == {Status.PASS}


# The file


def test_a_proof_survives_its_frame() -> None:
    document = parse_json(tell().encode(), what="x", reason=Reason.RECEIPT_FORMAT)
    assert isinstance(document, dict)
    evidence = document["evidence"]
    assert isinstance(evidence, dict)
    del document["expectation"], document["roots"], document["log"], evidence["agent_before"]
    raw = jcs({**document, "type": "confide/run-proof/v1"})
    assert parse_proof(raw).encode() == raw


@pytest.mark.parametrize(
    "member", ["type", "expectation", "run", "inferences", "evidence", "blobs", "roots", "log"]
)
def test_a_file_without_one_of_its_members_is_no_receipt_file(member: str) -> None:
    document = parse_json(tell().encode(), what="x", reason=Reason.RECEIPT_FORMAT)
    assert isinstance(document, dict)
    del document[member]
    with pytest.raises(FormatError):
        parse_receipt_file(jcs(document))


@pytest.mark.parametrize("place", ["agent_before", "agent_after"])
def test_evidence_of_the_agent_node_is_never_null(place: str) -> None:
    document = parse_json(tell().encode(), what="x", reason=Reason.RECEIPT_FORMAT)
    assert isinstance(document, dict)
    evidence = document["evidence"]
    assert isinstance(evidence, dict)
    evidence[place] = None
    with pytest.raises(FormatError):
        parse_receipt_file(jcs(document))
