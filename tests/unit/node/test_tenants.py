"""Callers of a model node: who is let in, what is refused and how, what is charged. tenancy.md."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from nodes import NOW
from tenant_world import ASKED, CHAT, MODEL, World, answer_of, world

from confide.inference.plan import Endpoint
from confide.node.faces import FaceRecord
from confide.node.tenants import Anyone, SaltSource
from confide.tenancy.keys import Budget, Limits, Period, make_key
from confide.wire.faces import Way

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

EVENTS = (b'data: {"choices": []}\n\n', b'data: {"choices": []}\n\n', b"data: [DONE]\n\n")


def within(folder: Path, work: Callable[[World], Coroutine[Any, Any, None]], **how: Any) -> None:
    """Run `work` in a world of its own."""

    async def main() -> None:
        async with world(folder, **how) as place:
            await work(place)

    asyncio.run(main())


def day(tokens: int) -> Limits:
    return Limits(budget=Budget(tokens, Period.DAY))


def spent(place: World, number: int = 1) -> int:
    return place.store.spent(make_key(bytes([number]) * 32).id, NOW.replace(hour=0))


# --- who calls -----------------------------------------------------------------------------------


def test_a_good_key_is_let_in_and_reaches_no_engine(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        key = place.key()
        got = await place.ask(key)
        assert got.status == 200
        assert json.loads(got.body)["usage"]["completion_tokens"] == 4
        assert (await place.ask(None, headers=[("x-api-key", key)])).status == 200
        assert (await place.ask(key, headers=[("x-api-key", key)])).status == 200
        assert (await place.ask(None, headers=[("authorization", f"bearer  {key}")])).status == 200
        assert key.encode() not in b"".join(place.engine.seen)

    within(tmp_path, work)


def test_no_key_and_two_keys_are_missing(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        key, other = place.key(1), place.key(2)
        for got in (
            await place.ask(None),
            await place.ask(None, headers=[("authorization", "Basic abc")]),
            await place.ask(None, headers=[("authorization", "Bearer ")]),
            await place.ask(key, headers=[("x-api-key", other)]),
            await place.ask(key, headers=[("authorization", f"Bearer {other}")]),
            await place.ask(key, headers=[("authorization", "Basic abc")]),
        ):
            assert (got.status, got.code) == (401, "missing_api_key")
            assert got.headers["www-authenticate"] == "Bearer"
        assert place.engine.seen == []

    within(tmp_path, work)


@pytest.mark.parametrize("way", Way)
def test_a_key_that_others_could_read_is_none(way: Way, tmp_path: Path) -> None:
    """Beside the channel, headers are hidden where TLS ends in the node, and nowhere else."""

    async def work(place: World) -> None:
        key = place.key()
        who = place.identity.current
        over = FaceRecord(way, 1, bytes(32), receipt_inline=True, speaker=who)
        got = await place.ask(key, carried=over)
        if way in {Way.ACI_TLS, Way.NEAR_TLS}:
            assert got.status == 200
        else:
            assert (got.status, got.code) == (401, "missing_api_key")

    within(tmp_path, work)


def test_a_wrong_key_and_an_unknown_one_get_the_same_answer(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        place.key(1)
        unknown = await place.ask(make_key(bytes([9]) * 32).text)
        for key in ("sk-other", make_key(bytes([1]) * 32).text[:-1] + "!", "x" * 5000, "cfd_\xff"):
            got = await place.ask(key)
            assert (got.status, got.body) == (401, unknown.body)
            assert {n: v for n, v in got.headers.items() if n != "confide-receipt"} == {
                n: v for n, v in unknown.headers.items() if n != "confide-receipt"
            }
        assert unknown.code == "invalid_api_key"

    within(tmp_path, work)


def test_who_holds_an_expired_or_revoked_key_is_told_so(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        expired = place.key(1, expires=NOW)
        revoked = place.key(2)
        assert (await place.ask(revoked)).status == 200
        place.store.revoke(make_key(bytes([2]) * 32).id, NOW)
        assert (await place.ask(expired)).code == "expired_api_key"
        # The very next call: nothing is kept between calls (§2.5).
        got = await place.ask(revoked)
        assert (got.status, got.code) == (401, "revoked_api_key")

    within(tmp_path, work)


def test_a_call_that_was_let_in_goes_on_when_its_key_is_revoked(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        key = place.key()
        place.engine.hold = True
        asking = asyncio.ensure_future(place.ask(key))
        await place.engine.begun.acquire()
        place.store.revoke(make_key(bytes([1]) * 32).id, NOW)
        assert (await place.ask(key)).status == 401
        place.engine.opened.set()
        assert (await asking).status == 200

    within(tmp_path, work)


@pytest.mark.parametrize(
    "scope", [{"models": ("another",)}, {"endpoints": ("/v1/embeddings", "/v1/messages")}]
)
def test_what_the_scope_does_not_cover_is_forbidden(tmp_path: Path, scope: dict[str, Any]) -> None:
    async def work(place: World) -> None:
        got = await place.ask(place.key(**scope))
        assert (got.status, got.code) == (403, "insufficient_permissions")
        assert place.engine.seen == []

    within(tmp_path, work)


def test_every_endpoint_and_every_listed_route_asks_for_a_key(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        paths = [endpoint.value for endpoint in Endpoint] + ["/v1/messages", "/v1/moderations"]
        for path in paths:
            got = await place.ask(None, path=path)
            assert (got.status, got.code) == (401, "missing_api_key"), path
        assert place.engine.seen == []

    within(tmp_path, work)


def test_refusals_are_receipted_and_name_no_tenant(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        key = place.key(limits=day(1), tenant="acme")
        for got in (await place.ask(None), await place.ask(key), await place.ask("cfd_x")):
            record = got.record
            assert (record["status"], record["endpoint"]) == (got.status, CHAT)
            assert (record["upstream"], record["forwarded"]) == (None, None)
            told = json.dumps(record) + json.dumps(got.headers)
            assert not any(word in told for word in ("acme", "key_", "cfd_"))

    within(tmp_path, work)


# --- limits --------------------------------------------------------------------------------------


def test_calls_at_once_are_limited_and_given_back(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        key = place.key(limits=Limits(concurrency=2))
        place.engine.hold = True
        held = [asyncio.ensure_future(place.ask(key)) for _ in range(2)]
        for _ in held:
            await place.engine.begun.acquire()
        got = await place.ask(key)
        assert (got.status, got.code) == (429, "concurrency_limit_exceeded")
        assert got.headers["retry-after"] == "1"
        place.engine.opened.set()
        assert [answer.status for answer in await asyncio.gather(*held)] == [200, 200]
        # Every way out gives a place back.
        place.engine.absent = True
        assert [(await place.ask(key)).status for _ in range(3)] == [503] * 3
        assert [(await place.ask(key, {"model": "x"})).status for _ in range(3)] == [404] * 3
        place.engine.error = RuntimeError("unforeseen")
        for _ in range(3):
            with pytest.raises(RuntimeError):
                await place.ask(key)
        place.engine.absent, place.engine.error = False, None
        assert (await place.ask(key)).status == 200

    within(tmp_path, work)


def test_a_rate_is_kept_and_told(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        key = place.key(limits=Limits(rate=3))
        left = [(await place.ask(key)).headers["x-ratelimit-remaining-requests"] for _ in range(3)]
        assert left == ["2", "1", "0"]
        got = await place.ask(key)
        assert (got.status, got.code) == (429, "rate_limit_exceeded")
        assert got.headers["retry-after"] == "20"
        assert got.headers["x-ratelimit-limit-requests"] == "3"
        assert got.headers["x-ratelimit-reset-requests"] in ("1m0s", "60s", "59s")
        assert len(place.engine.seen) == 3

    within(tmp_path, work)


def test_a_spent_budget_is_no_quota_until_the_next_day(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        key = place.key(limits=day(40))
        asked = {**ASKED, "max_tokens": 10}
        got = await place.ask(key, asked)
        assert got.status == 200
        assert got.headers["x-ratelimit-limit-tokens"] == "40"
        assert got.headers["x-ratelimit-reset-tokens"] == "12h0s"
        await place.written()
        assert spent(place) == 7
        # Without max_tokens a call reserves 4,096.
        got = await place.ask(key)
        assert (got.status, got.code) == (429, "insufficient_quota")
        assert got.headers["x-should-retry"] == "false"
        assert got.headers["retry-after"] == str(12 * 3600)
        assert got.headers["x-ratelimit-remaining-tokens"] == "33"
        place.clock.time = NOW + timedelta(hours=12)
        assert (await place.ask(key, asked)).headers["x-ratelimit-remaining-tokens"] != "33"

    within(tmp_path, work)


@pytest.mark.parametrize("streamed", [False, True])
def test_64_calls_at_once_never_overspend(tmp_path: Path, *, streamed: bool) -> None:
    """Calls that keep to their reservation: the budget holds for exactly as many as it holds."""

    async def work(place: World) -> None:
        asked = {**ASKED, "max_tokens": 10, "stream": streamed}
        each = -(-len(json.dumps(asked)) // 4) + 10
        key = place.key(limits=day(each * 20 + each - 1))
        place.engine.hold = True
        if streamed:
            place.engine.content_type, place.engine.pieces = "text/event-stream", EVENTS
        asking = [asyncio.ensure_future(place.ask(key, asked)) for _ in range(64)]
        for _ in range(20):
            await place.engine.begun.acquire()
        place.engine.opened.set()
        answers = await asyncio.gather(*asking)
        assert sorted(got.status for got in answers) == [200] * 20 + [429] * 44
        assert len(place.engine.seen) == 20
        await place.written()
        per_call = 3 + 4 if not streamed else each - 10 + len(EVENTS)
        assert spent(place) == 20 * per_call

    within(tmp_path, work)


def test_a_call_that_uses_more_than_it_reserved_is_charged_and_the_next_refused(
    tmp_path: Path,
) -> None:
    async def work(place: World) -> None:
        key = place.key(limits=day(50))
        place.engine.body = answer_of(30, 400)
        assert (await place.ask(key, {**ASKED, "max_tokens": 5})).status == 200
        await place.written()
        assert spent(place) == 430
        got = await place.ask(key, {**ASKED, "max_tokens": 1})
        assert got.code == "insufficient_quota"
        assert got.headers["x-ratelimit-remaining-tokens"] == "0"

    within(tmp_path, work)


# --- how calls end -------------------------------------------------------------------------------


def ledger(place: World) -> tuple[int, int, int, int, int, int]:
    (line,) = place.store.usage(since=NOW - timedelta(hours=1))
    return (
        line.calls,
        line.failed,
        line.cancelled,
        line.input_tokens,
        line.output_tokens,
        line.estimated,
    )


_BYTES = -(-len(json.dumps({**ASKED, "max_tokens": 10, "stream": True})) // 4)
_WHOLE = -(-len(json.dumps({**ASKED, "max_tokens": 10})) // 4)


def test_a_stream_that_breaks_off_is_charged_for_what_came(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        place.engine.content_type, place.engine.pieces = "text/event-stream", EVENTS[:2]
        place.engine.breaks = True
        got = await place.ask(place.key(), {**ASKED, "max_tokens": 10, "stream": True})
        assert got.record["finish"] == "upstream-failed"
        await place.written()
        assert ledger(place) == (1, 1, 0, _BYTES, 2, _BYTES + 2)

    within(tmp_path, work)


def test_a_caller_that_leaves_a_stream_is_charged_for_what_came(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        place.engine.content_type, place.engine.pieces = "text/event-stream", EVENTS * 50
        place.engine.lingers = True
        # The head and the first event.
        await place.ask(place.key(), {**ASKED, "max_tokens": 10, "stream": True}, after=2)
        await place.written()
        calls, _failed, cancelled, given, made, estimated = ledger(place)
        assert (calls, cancelled, given, estimated) == (1, 1, _BYTES, given + made)
        assert 1 <= made <= len(EVENTS) * 50

    within(tmp_path, work)


def test_a_caller_that_does_not_wait_for_a_whole_answer_is_charged_what_it_reserved(
    tmp_path: Path,
) -> None:
    async def work(place: World) -> None:
        place.engine.hold, left = True, asyncio.Event()
        key = place.key(limits=Limits(concurrency=1))
        asking = asyncio.ensure_future(place.ask(key, {**ASKED, "max_tokens": 10}, left=left))
        await place.engine.begun.acquire()
        left.set()
        await asking
        await place.written()
        assert ledger(place) == (1, 0, 1, _WHOLE, 10, _WHOLE + 10)
        place.engine.hold = False
        assert (await place.ask(key)).status == 200

    within(tmp_path, work)


@pytest.mark.parametrize("how", [{"absent": True}, {"status": 500}, {"status": 400}])
def test_an_engine_that_gives_nothing_costs_nothing(tmp_path: Path, how: dict[str, Any]) -> None:
    async def work(place: World) -> None:
        for name, value in how.items():
            setattr(place.engine, name, value)
        got = await place.ask(place.key(limits=day(5000)))
        assert got.status in (400, 502, 503)
        await place.written()
        assert ledger(place) == (1, int(got.status >= 500), 0, 0, 0, 0)
        assert spent(place) == 0

    within(tmp_path, work)


def test_endpoints_are_told_apart_in_the_ledger(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        key = place.key()
        await place.ask(key)
        await place.ask(key, {"model": MODEL, "input": "a"}, path="/v1/embeddings")
        await place.ask(key, {"model": MODEL, "prompt": "a"}, path="/tokenize")
        await place.written()
        lines = place.store.usage(since=NOW - timedelta(hours=1))
        assert [line.endpoint for line in lines] == ["/tokenize", CHAT, "/v1/embeddings"]

    within(tmp_path, work)


# --- when the database fails ---------------------------------------------------------------------


def test_without_its_database_a_node_forwards_nothing(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        key = place.key()
        place.fails.answers = 0
        got = await place.ask(key)
        assert (got.status, got.code) == (503, "metering_unavailable")
        assert got.headers["retry-after"] == "1"
        assert got.record["status"] == 503
        assert place.engine.seen == []
        place.fails.answers = None
        assert (await place.ask(key)).status == 200

    within(tmp_path, work)


def test_a_database_that_fails_between_look_up_and_reservation_refuses_too(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        key = place.key()
        place.fails.answers = 1
        got = await place.ask(key)
        assert (got.status, got.code) == (503, "metering_unavailable")
        assert (place.engine.seen, place.fails.failed) == ([], 1)

    within(tmp_path, work)


def test_what_could_not_be_settled_is_settled_when_the_database_is_back(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        key = place.key(limits=day(10_000))
        place.engine.hold = True
        asking = asyncio.ensure_future(place.ask(key))
        await place.engine.begun.acquire()
        place.fails.answers = 0
        place.engine.opened.set()
        # The answer is the caller's, and its reservation stays charged meanwhile.
        assert (await asking).status == 200
        while not place.fails.failed:  # noqa: ASYNC110 - a stand-in that tells no event
            await asyncio.sleep(0.01)
        assert spent(place) > 4096
        place.fails.answers = None
        await place.written()
        assert spent(place) == 7
        assert ledger(place) == (1, 0, 0, 3, 4, 0)

    within(tmp_path, work)


def test_a_node_that_stops_settles_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as place:
            key = place.key(limits=day(10_000))
            await place.ask(key)
            await place.meter.close()
            assert place.meter.late == 0
            assert spent(place) == 7
            # And answers nobody any more.
            assert (await place.ask(key)).code == "metering_unavailable"

    asyncio.run(main())


# --- the cache of the engine ---------------------------------------------------------------------


def salt_of(place: World) -> str:
    return str(json.loads(place.engine.seen[-1])["cache_salt"])


def test_tenants_have_salts_of_their_own_and_keys_of_one_tenant_share(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        one, two = place.key(1, tenant="acme"), place.key(2, tenant="acme")
        other = place.key(3, tenant="other")
        salts = []
        for key in (one, two, other):
            got = await place.ask(key)
            assert got.record["transformations"] == ["cache-salt"]
            assert got.record["forwarded"] is not None
            salts.append(salt_of(place))
        assert salts[0] == salts[1] != salts[2]
        await place.ask(other, {**ASKED, "cache_salt": salts[0]})
        assert salt_of(place) not in salts
        got = await place.ask(one, {"model": MODEL}, path="/v1/messages")
        assert (got.status, got.code) == (404, "unsupported_endpoint")

    within(tmp_path, work, salted=True)


@pytest.mark.parametrize("salted", [True, False])
def test_a_tenant_cannot_find_out_what_another_has_sent(tmp_path: Path, *, salted: bool) -> None:
    """Against an engine that tells what it has seen before; without salts it tells everybody."""

    async def work(place: World) -> None:
        async def cached(key: str, **more: str) -> int:
            usage = json.loads((await place.ask(key, {**ASKED, **more})).body)["usage"]
            found: int = usage["prompt_tokens_details"]["cached_tokens"]
            return found

        victim, prober = place.key(1, tenant="victim"), place.key(2, tenant="prober")
        assert await cached(victim) == 0
        assert (await cached(prober) > 0) is not salted
        assert await cached(victim) > 0
        if salted:
            salts = {json.loads(body)["cache_salt"] for body in place.engine.seen}
            for own in ("victim", *sorted(salts)):
                assert await cached(prober, cache_salt=own) == 0

    within(tmp_path, work, salted=salted)


def test_without_keys_callers_keep_apart_by_salts_that_they_know(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        assert (await place.ask(None)).status == 200
        plain = salt_of(place)
        await place.ask(None, {**ASKED, "cache_salt": "mine"})
        assert salt_of(place) not in (plain, "mine")

    salts = SaltSource(bytes(32), frozenset((Endpoint.CHAT,)))
    within(tmp_path, work, tenants=Anyone(salts))


def test_without_configuration_everything_is_as_before(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        got = await place.ask(None)
        assert (got.status, got.record["transformations"]) == (200, [])
        assert place.engine.seen == [json.dumps(ASKED).encode()]
        assert not any(name.startswith("x-ratelimit") for name in got.headers)
        got = await place.ask(None, {**ASKED, "cache_salt": "mine"})
        assert got.code == "unknown_parameter"

    within(tmp_path, work, tenants=Anyone())


# --- what is told of it --------------------------------------------------------------------------


def test_metrics_tell_codes_and_keys_and_nothing_a_caller_wrote(tmp_path: Path) -> None:
    async def work(place: World) -> None:
        key = place.key()
        await place.ask(key)
        await place.ask("cfd_unknown", path="/v1/chat/completions")
        await place.ask(None, path="/planted-path")
        text = place.metrics.text()
        who = make_key(bytes([1]) * 32).id
        call = f'endpoint="{CHAT}",finish="complete",status="2xx",key="{who}"'
        assert f"confide_calls_total{{{call}}} 1\n" in text
        assert 'confide_refusals_total{code="invalid_api_key"} 1\n' in text
        assert 'confide_refusals_total{code="not_found"} 1\n' in text
        assert 'endpoint="other"' in text
        assert "planted" not in text
        assert "confide_calls_in_progress 0\n" in text
        assert f'confide_input_tokens_sum{{endpoint="{CHAT}"}} 4\n' in text

    within(tmp_path, work)
