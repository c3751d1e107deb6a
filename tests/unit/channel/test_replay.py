"""The replay window: once, in time, bounded, and deaf to clocks that step back."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.channel.replay import ReplayPolicy, ReplayWindow
from confide.errors import Reason, RemoteProtocolError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = timedelta(seconds=300)
SECOND = timedelta(seconds=1)


def window_of(max_entries: int = 1 << 12, table: memoryview | None = None) -> ReplayWindow:
    return ReplayWindow(ReplayPolicy(max_entries=max_entries), secret=bytes(32), table=table)


def nonce(index: int) -> bytes:
    return index.to_bytes(32, "big")


def refused(window: ReplayWindow, index: int, issued: datetime, now: datetime) -> Reason | None:
    with pytest.raises(RemoteProtocolError) as caught:
        window.admit(1, nonce(index), issued, now=now)
    return caught.value.reason


def test_a_nonce_is_admitted_once_for_as_long_as_it_could_come_again() -> None:
    window = window_of()
    window.admit(1, nonce(1), NOW, now=NOW)
    for later in (timedelta(0), SECOND, WINDOW):
        assert refused(window, 1, NOW, NOW + later) is Reason.REPLAYED
    # One second on, the time alone refuses it, and the nonce may come again as a new request.
    assert refused(window, 1, NOW, NOW + WINDOW + SECOND) is Reason.REQUEST_TIME
    window.admit(1, nonce(1), NOW + WINDOW + SECOND, now=NOW + WINDOW + SECOND)
    assert refused(window, 1, NOW + WINDOW, NOW + WINDOW + SECOND) is Reason.REPLAYED


def test_a_request_from_the_future_is_remembered_for_as_long() -> None:
    window = window_of()
    window.admit(1, nonce(1), NOW + WINDOW, now=NOW)
    assert refused(window, 1, NOW + WINDOW, NOW + 2 * WINDOW) is Reason.REPLAYED


@pytest.mark.parametrize("off", [WINDOW + SECOND, -WINDOW - SECOND])
def test_a_time_outside_the_window_is_refused(off: timedelta) -> None:
    assert refused(window_of(), 1, NOW + off, NOW) is Reason.REQUEST_TIME


@pytest.mark.parametrize("off", [WINDOW, -WINDOW])
def test_the_edges_belong_to_the_window(off: timedelta) -> None:
    window_of().admit(1, nonce(1), NOW + off, now=NOW)


def test_a_clock_that_steps_back_does_not_reopen_the_window() -> None:
    window = window_of()
    window.admit(1, nonce(1), NOW, now=NOW)
    window.admit(1, nonce(2), NOW + 2 * WINDOW, now=NOW + 2 * WINDOW)
    assert refused(window, 1, NOW, NOW) is Reason.REQUEST_TIME


def test_keys_have_their_own_nonces() -> None:
    window = window_of()
    window.admit(1, nonce(1), NOW, now=NOW)
    window.admit(2, nonce(1), NOW, now=NOW)
    assert refused(window, 1, NOW, NOW) is Reason.REPLAYED


def test_a_full_window_refuses_new_requests_and_forgets_no_live_one() -> None:
    window = window_of(2)
    window.admit(1, nonce(1), NOW, now=NOW)
    window.admit(1, nonce(2), NOW + SECOND, now=NOW)
    assert refused(window, 3, NOW, NOW) is Reason.NODE_BUSY
    assert refused(window, 1, NOW, NOW) is Reason.REPLAYED
    later = NOW + WINDOW + SECOND
    window.admit(1, nonce(3), later, now=later)
    assert refused(window, 2, NOW + SECOND, later) is Reason.REPLAYED


def test_misuse() -> None:
    with pytest.raises(ValueError, match="32"):
        window_of().admit(1, b"short", NOW, now=NOW)
    for policy in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="window"):
            ReplayPolicy(*policy)
    with pytest.raises(ValueError, match="secret"):
        ReplayWindow(ReplayPolicy(), secret=b"short")
    with pytest.raises(ValueError, match="table"):
        window_of(table=memoryview(bytearray(8)))


def test_two_windows_over_one_table_are_one_window() -> None:
    table = memoryview(bytearray(ReplayPolicy(max_entries=1 << 12).table_bytes))
    one, other = window_of(table=table), window_of(table=table)
    one.admit(1, nonce(1), NOW, now=NOW)
    assert refused(other, 1, NOW, NOW) is Reason.REPLAYED
    other.admit(1, nonce(2), NOW + 2 * WINDOW, now=NOW + 2 * WINDOW)
    assert refused(one, 3, NOW, NOW) is Reason.REQUEST_TIME


def test_a_part_of_a_slot_that_was_written_admits_nothing_twice() -> None:
    """A writer that dies leaves a prefix of its writes: tag first, then when it is free again."""
    size = ReplayPolicy(max_entries=2).table_bytes
    before = bytearray(size)
    window_of(2, memoryview(before)).admit(1, nonce(1), NOW, now=NOW)
    after = bytearray(before)
    window_of(2, memoryview(after)).admit(1, nonce(2), NOW, now=NOW)
    changed = [at for at in range(size) if before[at] != after[at]]
    assert len(changed) > 8
    for count in range(len(changed)):
        torn = bytearray(before)
        for at in changed[:count]:
            torn[at] = after[at]
        window = window_of(2, memoryview(torn))
        assert refused(window, 1, NOW, NOW) is Reason.REPLAYED


def test_a_table_that_cannot_be_locked_admits_nothing() -> None:
    @contextmanager
    def never() -> Iterator[None]:
        raise Unavailable("held")
        yield

    window = ReplayWindow(ReplayPolicy(max_entries=2), secret=bytes(32), guard=never())
    assert refused(window, 1, NOW, NOW) is Reason.NODE_BUSY


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(-200, 200), st.integers(0, 30))))
def test_it_admits_no_request_twice(requests: list[tuple[int, int, int]]) -> None:
    """Whatever comes, in whatever order: a nonce is let in once within the time of both."""
    window, now, admitted = window_of(64), NOW, dict[int, datetime]()
    for index, off, later in requests:
        now += later * SECOND
        issued = now + off * SECOND
        try:
            window.admit(1, nonce(index), issued, now=now)
        except RemoteProtocolError as error:
            assert error.reason is Reason.REPLAYED  # noqa: PT017 - what it refuses is the point
            assert admitted[index] + WINDOW >= now
        else:
            assert index not in admitted or admitted[index] + WINDOW < now
            admitted[index] = issued
