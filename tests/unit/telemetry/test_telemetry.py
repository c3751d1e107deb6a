"""Numbers and spans: words out of a list, sizes in steps, in known formats. tenancy.md §6, §7."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.telemetry.facts import (
    BYTES,
    ENDPOINT_WORDS,
    SECONDS,
    TOKENS,
    CallFacts,
    endpoint_word,
    step_of,
)
from confide.telemetry.metrics import Metrics, WorkerMetrics
from confide.telemetry.spans import encode_spans, span_of

NOW = datetime(2026, 11, 22, 12, 0, 0, 250_000, tzinfo=UTC)
CHAT = "/v1/chat/completions"
# From: the exposition format 0.0.4, as far as it is used here.
_LINE = re.compile(r'[a-z_]+(\{([a-z_]+="[^"\\\n]*",?)*\})? [0-9.]+(e[+-]?[0-9]+)?\Z')


def facts(**changes: object) -> CallFacts:
    made = CallFacts(CHAT)
    values: dict[str, object] = {
        "finish": "complete",
        "status": 200,
        "request_bytes": 300,
        "response_bytes": 5000,
        "input_tokens": 3,
        "output_tokens": 70,
        "first_byte": 0.002,
        "seconds": 0.3,
        "key_id": "key_1",
        **changes,
    }
    for name, value in values.items():
        setattr(made, name, value)
    return made


def told(metrics: Metrics | WorkerMetrics) -> dict[str, float]:
    """Every sample of a scrape; each line is one."""
    found = {}
    for line in metrics.text().splitlines():
        if not line.startswith("# "):
            assert _LINE.match(line), line
            name, _, value = line.rpartition(" ")
            assert name not in found, "a sample twice"
            found[name] = float(value)
    return found


def counted(*calls: CallFacts, by_key: bool = False) -> Metrics:
    metrics = Metrics(by_key=by_key)
    for call in calls:
        metrics.begin()
        metrics.end(call)
    return metrics


@given(st.text())
def test_no_path_of_a_caller_is_a_word(path: str) -> None:
    assert endpoint_word(path) in ENDPOINT_WORDS | {"other"}
    assert endpoint_word(f"/v1/models/{path}") == "/v1/models"
    assert endpoint_word(f"/v1/receipts/{path}") == "/v1/receipts"


@pytest.mark.parametrize("steps", [SECONDS, BYTES, TOKENS])
@given(value=st.floats(0, 1e12))
def test_a_step_is_the_first_that_is_not_below(steps: tuple[float, ...], value: float) -> None:
    step = step_of(value, steps)
    assert step == min((s for s in steps if s >= value), default=steps[-1])
    assert steps == tuple(sorted(steps))


@pytest.mark.parametrize(
    ("status", "word"), [(0, "none"), (101, "1xx"), (200, "2xx"), (429, "4xx"), (599, "5xx")]
)
def test_a_status_is_told_by_its_class(status: int, word: str) -> None:
    assert facts(status=status).status_class == word


def test_calls_are_counted_by_words() -> None:
    refused = facts(status=429, code="insufficient_quota", input_tokens=None, output_tokens=None)
    metrics = counted(facts(), facts(), refused)
    metrics.begin()
    found = told(metrics)
    assert found["confide_calls_in_progress"] == 1
    call = f'endpoint="{CHAT}",finish="complete"'
    assert found[f'confide_calls_total{{{call},status="2xx"}}'] == 2
    assert found[f'confide_calls_total{{{call},status="4xx"}}'] == 1
    assert found['confide_refusals_total{code="insufficient_quota"}'] == 1
    assert found[f'confide_input_tokens_count{{endpoint="{CHAT}"}}'] == 2
    assert not any("key_" in name for name in found)


def test_keys_are_told_where_that_is_asked_for() -> None:
    found = told(counted(facts(), facts(key_id="key_2"), by_key=True))
    keys = {name for name in found if 'key="' in name}
    assert len(keys) == 2
    assert all(name.startswith("confide_calls_total{") for name in keys)


def test_a_histogram_is_one() -> None:
    found = told(counted(facts(seconds=0.3), facts(seconds=0.4), facts(seconds=1e9)))
    name = "confide_call_seconds"
    buckets = [
        found[f'{name}_bucket{{endpoint="{CHAT}",le="{word}"}}']
        for word in ("0.25", "0.5", "1", "300", "3600", "+Inf")
    ]
    assert buckets == [0, 2, 2, 2, 3, 3]
    assert found[f'{name}_count{{endpoint="{CHAT}"}}'] == 3


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_two_sizes_of_one_step_are_told_alike(one: int, other: int) -> None:
    """Whoever scrapes before and after a call learns the step, in sums too (§6.3)."""
    same = step_of(one, BYTES) == step_of(other, BYTES)
    texts = [counted(facts(request_bytes=size)).text() for size in (one, other)]
    assert (texts[0] == texts[1]) == same


def test_a_span_holds_words_and_steps() -> None:
    span = span_of(
        facts(code="x"),
        ids=bytes(range(24)),
        begun=NOW,
        ended=NOW + timedelta(seconds=1),
        by_key=True,
    )
    (found,) = json.loads(encode_spans([span], version="0.1"))["resourceSpans"][0]["scopeSpans"][0][
        "spans"
    ]
    assert (found["traceId"], found["spanId"]) == (
        bytes(range(16)).hex(),
        bytes(range(16, 24)).hex(),
    )
    assert found["name"] == f"call {CHAT}"
    assert found["startTimeUnixNano"] == str(int(NOW.timestamp()) * 10**9 + 250_000_000)
    assert int(found["endTimeUnixNano"]) - int(found["startTimeUnixNano"]) == 10**9
    assert {each["key"]: next(iter(each["value"].values())) for each in found["attributes"]} == {
        "http.route": CHAT,
        "confide.finish": "complete",
        "confide.status_class": "2xx",
        "error.type": "x",
        "confide.key": "key_1",
        "http.request.body.size": "1024",
        "http.response.body.size": "16384",
        "gen_ai.usage.input_tokens": "4",
        "gen_ai.usage.output_tokens": "256",
    }


@pytest.mark.parametrize(
    ("changes", "code"),
    [({}, 1), ({"status": 429}, 1), ({"status": 502}, 2), ({"finish": "upstream-failed"}, 2)],
)
def test_a_span_says_whether_the_node_failed(changes: dict[str, object], code: int) -> None:
    span = span_of(facts(**changes), ids=bytes(24), begun=NOW, ended=NOW, by_key=False)
    text = encode_spans([span], version="0.1").decode()
    assert f'"status":{{"code":{code}}}' in text
    assert "key_1" not in text


# --- several workers (workers.md 2.7) ---------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 9999)), max_size=20))
def test_numbers_of_workers_add_up_to_those_of_one_process(calls: list[tuple[int, float]]) -> None:
    whole, parts = Metrics(), [Metrics() for _ in range(3)]
    for worker, seconds in calls:
        for metrics in (whole, parts[worker]):
            metrics.begin()
            metrics.end(facts(seconds=seconds))
    summed = WorkerMetrics()
    for worker, metrics in enumerate(parts):
        summed.take(worker, metrics.encode())
    assert summed.text() == whole.text()


def test_what_a_worker_counted_stays_and_what_it_had_in_progress_does_not() -> None:
    one, other, summed = counted(facts(), facts()), counted(facts()), WorkerMetrics()
    one.begin()
    for _ in range(3):
        # Everything since it began, as often as it is told.
        summed.take(0, one.encode())
        summed.take(1, other.encode())
    call = f'confide_calls_total{{endpoint="{CHAT}",finish="complete",status="2xx"}}'
    assert (told(summed)[call], told(summed)["confide_calls_in_progress"]) == (3, 1)
    summed.end(0)
    summed.take(2, counted(facts()).encode())
    assert (told(summed)[call], told(summed)["confide_calls_in_progress"]) == (4, 0)
    summed.end(7)
    assert told(summed)[call] == 4
