"""What a call reserves and what it is charged: every row of tenancy.md §3.4 and §3.5."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.inference.digest import Finish, InferenceRecord, Usage
from confide.inference.models import ServedModel
from confide.inference.passing import PassRoute, plan_pass
from confide.inference.plan import Endpoint, InferencePlan, Reply, RequestLimits
from confide.tenancy.budget import (
    UNCAPPED_OUTPUT,
    Charge,
    Demand,
    EventCount,
    charge_of,
    demand_of,
    period_end,
    period_start,
)
from confide.tenancy.keys import Period

SERVED = ServedModel(
    name="m", weights_digest="", manifest_digest="", upstream_name="m", created=1, max_context=1000
)
PLAN = InferencePlan(
    endpoint=Endpoint.CHAT,
    upstream_path="/v1/chat/completions",
    body=b"x" * 41,
    identical=True,
    served=SERVED,
    streamed=False,
    transformations=(),
    reply=Reply.PASS,
)
RECORD = InferenceRecord(
    endpoint="/v1/chat/completions",
    model="m",
    request_digest="00" * 32,
    forwarded_digest=None,
    upstream_digest=None,
    response_digest="00" * 32,
    status=200,
    streamed=False,
    usage=None,
    transformations=(),
    finish=Finish.COMPLETE,
)
DEMAND = Demand(11, 100)


def counted(*chunks: bytes) -> EventCount:
    count = EventCount()
    for chunk in chunks:
        count.feed(chunk)
    return count


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Demand(11, UNCAPPED_OUTPUT)),
        ({"output_cap": 7}, Demand(11, 7)),
        ({"output_cap": 2**60}, Demand(11, 1 << 20)),
        ({"body": b"x" * 8000}, Demand(1000, UNCAPPED_OUTPUT)),
        ({"endpoint": Endpoint.EMBEDDINGS, "output_cap": 7}, Demand(11, 0)),
        ({"endpoint": Endpoint.TOKENIZE}, Demand(0, 0)),
        ({"endpoint": Endpoint.TRANSCRIPTIONS}, Demand(0, 0)),
    ],
)
def test_what_is_reserved(changes: dict[str, object], expected: Demand) -> None:
    assert demand_of(replace(PLAN, **changes)) == expected  # type: ignore[arg-type]


def test_a_route_that_passes_is_reserved_as_one_that_writes() -> None:
    body = b'{"model":"m"}'
    plan = plan_pass(
        PassRoute("POST", "/v1/messages"),
        body,
        query="",
        content_type="application/json",
        served=SERVED,
        limits=RequestLimits(),
    )
    assert demand_of(plan) == Demand(4, UNCAPPED_OUTPUT)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Step 1.
        ({"usage": Usage(3, 4)}, Charge(3, 4, estimated=False)),
        ({"usage": Usage(2**40, 4)}, Charge(2**31, 4, estimated=False)),
        # Step 2.
        ({"status": 400}, Charge(0, 0, estimated=False)),
        ({"status": 502, "finish": Finish.UPSTREAM_FAILED}, Charge(0, 0, estimated=False)),
        # Step 3.
        ({"streamed": True}, Charge(11, 2, estimated=True)),
        ({"streamed": True, "finish": Finish.UPSTREAM_FAILED}, Charge(11, 2, estimated=True)),
        ({"streamed": True, "finish": Finish.CLIENT_CANCELLED}, Charge(11, 2, estimated=True)),
        # Step 4.
        ({"status": 499, "finish": Finish.CLIENT_CANCELLED}, Charge(11, 100, estimated=True)),
        # Step 5.
        ({}, Charge(11, 5, estimated=True)),
    ],
)
def test_what_is_charged(changes: dict[str, object], expected: Charge) -> None:
    seen = counted(b"data: 1\n\nda", b"ta: 22\n\n")
    assert seen.bytes == 20 - 1
    assert charge_of(DEMAND, replace(RECORD, **changes), seen) == expected  # type: ignore[arg-type]


def test_an_endpoint_that_reserves_nothing_is_charged_what_was_reported_alone() -> None:
    nothing = Demand(0, 0)
    assert charge_of(nothing, RECORD, counted(b"x" * 100)) == Charge(0, 0, estimated=False)
    spoken = replace(RECORD, usage=Usage(5, 6))
    assert charge_of(nothing, spoken, counted(b"x")).tokens == 11


@given(
    st.lists(st.sampled_from([b"data: a", b'data: {"x": "\\n\\n"}', b": note"]), max_size=20),
    st.sampled_from([b"\n\n", b"\r\n\r\n"]),
    st.data(),
)
def test_events_are_counted_however_the_stream_is_cut(
    events: list[bytes], end: bytes, data: st.DataObject
) -> None:
    whole = b"".join(event + end for event in events)
    count, rest = EventCount(), whole
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        count.feed(rest[:size])
        rest = rest[size:]
    assert (count.events, count.bytes) == (len(events), len(whole))


@pytest.mark.parametrize(
    ("period", "now", "start", "end"),
    [
        (Period.DAY, (2026, 11, 22, 23, 59), (2026, 11, 22), (2026, 11, 23)),
        (Period.DAY, (2026, 12, 31), (2026, 12, 31), (2027, 1, 1)),
        (Period.MONTH, (2026, 12, 31, 23), (2026, 12, 1), (2027, 1, 1)),
        (Period.MONTH, (2028, 2, 29, 1), (2028, 2, 1), (2028, 3, 1)),
        (Period.MONTH, (2026, 1, 1), (2026, 1, 1), (2026, 2, 1)),
    ],
)
def test_periods_begin_and_end_at_midnight(
    period: Period, now: tuple[int, ...], start: tuple[int, ...], end: tuple[int, ...]
) -> None:
    moment = datetime(*now, tzinfo=UTC)  # type: ignore[misc,arg-type]
    assert period_start(period, moment) == datetime(*start, tzinfo=UTC)  # type: ignore[misc,arg-type]
    assert period_end(period, moment) == datetime(*end, tzinfo=UTC)  # type: ignore[misc,arg-type]
