"""The replay window: once, in time, bounded, and deaf to clocks that step back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from confide.channel.replay import ReplayPolicy, ReplayWindow
from confide.errors import Reason, RemoteProtocolError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = timedelta(seconds=300)
SECOND = timedelta(seconds=1)


def nonce(index: int) -> bytes:
    return index.to_bytes(32, "big")


def refused(window: ReplayWindow, index: int, issued: datetime, now: datetime) -> Reason | None:
    with pytest.raises(RemoteProtocolError) as caught:
        window.admit(1, nonce(index), issued, now=now)
    return caught.value.reason


def test_a_nonce_is_admitted_once_for_as_long_as_it_could_come_again() -> None:
    window = ReplayWindow(ReplayPolicy())
    window.admit(1, nonce(1), NOW, now=NOW)
    for later in (timedelta(0), SECOND, WINDOW):
        assert refused(window, 1, NOW, NOW + later) is Reason.REPLAYED
    # One second on, the time alone refuses it, and the nonce is forgotten.
    assert refused(window, 1, NOW, NOW + WINDOW + SECOND) is Reason.REQUEST_TIME
    assert len(window) == 0


def test_a_request_from_the_future_is_remembered_for_as_long() -> None:
    window = ReplayWindow(ReplayPolicy())
    window.admit(1, nonce(1), NOW + WINDOW, now=NOW)
    assert refused(window, 1, NOW + WINDOW, NOW + 2 * WINDOW) is Reason.REPLAYED


@pytest.mark.parametrize("off", [WINDOW + SECOND, -WINDOW - SECOND])
def test_a_time_outside_the_window_is_refused(off: timedelta) -> None:
    assert refused(ReplayWindow(ReplayPolicy()), 1, NOW + off, NOW) is Reason.REQUEST_TIME


@pytest.mark.parametrize("off", [WINDOW, -WINDOW])
def test_the_edges_belong_to_the_window(off: timedelta) -> None:
    ReplayWindow(ReplayPolicy()).admit(1, nonce(1), NOW + off, now=NOW)


def test_a_clock_that_steps_back_does_not_reopen_the_window() -> None:
    window = ReplayWindow(ReplayPolicy())
    window.admit(1, nonce(1), NOW, now=NOW)
    window.admit(1, nonce(2), NOW + 2 * WINDOW, now=NOW + 2 * WINDOW)
    assert refused(window, 1, NOW, NOW) is Reason.REQUEST_TIME


def test_keys_have_their_own_nonces() -> None:
    window = ReplayWindow(ReplayPolicy())
    window.admit(1, nonce(1), NOW, now=NOW)
    window.admit(2, nonce(1), NOW, now=NOW)
    assert len(window) == 2


def test_a_full_window_refuses_new_requests_and_forgets_no_live_one() -> None:
    window = ReplayWindow(ReplayPolicy(max_entries=2))
    window.admit(1, nonce(1), NOW, now=NOW)
    window.admit(1, nonce(2), NOW + SECOND, now=NOW)
    assert refused(window, 3, NOW, NOW) is Reason.NODE_BUSY
    assert refused(window, 1, NOW, NOW) is Reason.REPLAYED
    later = NOW + WINDOW + SECOND
    window.admit(1, nonce(3), later, now=later)
    assert refused(window, 2, NOW + SECOND, later) is Reason.REPLAYED


def test_misuse() -> None:
    with pytest.raises(ValueError, match="32"):
        ReplayWindow(ReplayPolicy()).admit(1, b"short", NOW, now=NOW)
    for policy in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="window"):
            ReplayPolicy(*policy)
