"""The transcript's state table: what may follow what, and nothing else. receipt.md §2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import FormatError, LocalProtocolError, Reason
from confide.receipts.transcript import (
    _KINDS,
    _ORDER,
    COMPLETED,
    GENESIS,
    RESULTS,
    Transcript,
    make_event,
    parse_events,
    transcript_head,
)

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

SAMPLES: dict[str, Any] = {"digest": b"d" * 32, "int": 7, "text": "word", "bool": True}
LAWFUL = ("run-started", "input", "model-verified", "agent-started", "agent-exited", "model-closed")


def sample(kind: str, **changed: Any) -> dict[str, Any]:
    made = {name: SAMPLES[field.rstrip("?")] for name, field in _KINDS[kind].items()}
    if kind == "run-finished":
        made["result"] = COMPLETED
    return {**made, **changed}


def told(*kinds: str, result: str = COMPLETED) -> Transcript:
    transcript = Transcript()
    for kind in kinds:
        transcript.append(kind, **sample(kind))
    transcript.append("run-finished", result=result)
    return transcript


def documents() -> list[Any]:
    return told(*LAWFUL).documents()


@given(st.lists(st.sampled_from(sorted(_KINDS)), max_size=25))
def test_a_random_walk_goes_only_where_the_table_says(kinds: list[str]) -> None:
    transcript, state = Transcript(), "new"
    for kind in kinds:
        following = _ORDER[state].get(kind)
        if kind == "run-finished":
            following = "finished" if state == "closed" else None
        before = (transcript.head, transcript.events)
        if following is None:
            with pytest.raises(LocalProtocolError):
                transcript.append(kind, **sample(kind))
            assert (transcript.head, transcript.events) == before
        else:
            transcript.append(kind, **sample(kind))
            assert transcript.head != before[0]
            state = following
        assert transcript.running == (state == "running")
    assert transcript.finished == (state == "finished")


@given(st.lists(st.sampled_from(sorted(_KINDS)), max_size=12))
def test_the_reader_accepts_exactly_what_the_writer_can_write(kinds: list[str]) -> None:
    documents: list[JsonValue] = [
        make_event(kind, sample(kind)).document(index) for index, kind in enumerate(kinds)
    ]
    transcript, lawful = Transcript(), True
    for kind in kinds:
        try:
            transcript.append(kind, **sample(kind))
        except LocalProtocolError:
            lawful = False
            break
    if lawful and transcript.finished:
        assert parse_events(documents) == transcript.events
    else:
        with pytest.raises(FormatError) as error:
            parse_events(documents)
        assert error.value.reason is Reason.TRANSCRIPT_BROKEN


@pytest.mark.parametrize("length", range(1, len(LAWFUL) + 1))
@pytest.mark.parametrize("result", RESULTS)
def test_only_completed_needs_the_whole_path(length: int, result: str) -> None:
    if result == COMPLETED and length < len(LAWFUL):
        with pytest.raises(LocalProtocolError):
            told(*LAWFUL[:length], result=result)
    else:
        assert told(*LAWFUL[:length], result=result).finished


def test_a_run_cannot_end_in_a_way_nobody_named() -> None:
    with pytest.raises(LocalProtocolError):
        told(*LAWFUL, result="fine")


def test_nothing_ends_that_did_not_begin() -> None:
    with pytest.raises(LocalProtocolError):
        told(result="cancelled")


@pytest.mark.parametrize("kind", sorted(_KINDS))
def test_an_event_has_exactly_its_members(kind: str) -> None:
    whole = sample(kind)
    for name in whole:
        with pytest.raises(ValueError, match=kind):
            make_event(kind, {key: value for key, value in whole.items() if key != name})
    with pytest.raises(ValueError, match=kind):
        make_event(kind, {**whole, "note": "x"})


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("input", {"sha256": b"short"}),
        ("input", {"sha256": None}),
        ("input", {"bytes": True}),
        ("input", {"bytes": 2**53}),
        ("run-started", {"mode": "m" * 513}),
        ("egress", {"allowed": 1}),
    ],
)
def test_a_member_has_its_type(kind: str, changed: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        make_event(kind, sample(kind, **changed))


def test_what_may_be_absent_is_null() -> None:
    event = make_event("model-call", sample("model-call", response=None, receipt=None))
    assert event["response"] is None
    with pytest.raises(TypeError):
        event.digest("response")
    with pytest.raises(KeyError):
        event["note"]


def test_the_head_is_the_chain_over_the_events() -> None:
    transcript = told(*LAWFUL)
    assert transcript_head(transcript.events) == transcript.head
    assert transcript_head(()) == GENESIS
    heads = {transcript_head(transcript.events[:count]) for count in range(len(LAWFUL) + 2)}
    assert len(heads) == len(LAWFUL) + 2


@pytest.mark.parametrize(
    "edit",
    [
        lambda events: events.pop(),
        lambda events: events.pop(0),
        lambda events: events.clear(),
        lambda events: events.insert(0, events[0]),
        lambda events: events.reverse(),
        lambda events: events[0].update(seq=1),
        lambda events: events[0].update(seq=False),
        lambda events: events[0].update(kind="blessing"),
        lambda events: events[0].update(note=""),
        lambda events: events[0].pop("image"),
        lambda events: events[0].update(image="D" * 64),
        lambda events: events.append(events[-1]),
        lambda events: events.append(None),
    ],
)
def test_a_transcript_that_was_edited_is_refused(edit: Any) -> None:
    events = documents()
    edit(events)
    with pytest.raises(FormatError) as error:
        parse_events(events)
    assert error.value.reason is Reason.TRANSCRIPT_BROKEN


def test_what_was_handed_out_does_not_change_the_transcript() -> None:
    transcript = told(*LAWFUL)
    transcript.documents().clear()
    assert len(transcript.documents()) == len(LAWFUL) + 1
