"""When those who are turned away are told to come back."""

from __future__ import annotations

import pytest

from coordinator.core.turnover import LEAST_S, MOST_S, Turnover


def turnover(interval_s: float, num: int = 50) -> tuple[Turnover, float]:
    """One that has served a request every so often, and the time now."""
    it = Turnover()
    for i in range(num):
        it.served(i * interval_s)
    return it, (num - 1) * interval_s


def test_each_gets_a_turn_of_its_own_at_the_pace_of_the_queue() -> None:
    it, now_s = turnover(2.0)
    assert [it.retry_after_s(now_s) for _ in range(3)] == pytest.approx([2.0, 4.0, 6.0])
    for then_s in (2.0, 4.0, 6.0):
        it.served(now_s + then_s)
    assert it.retry_after_s(now_s + 6.0) == pytest.approx(2.0), "those turns are over"


def test_a_slower_queue_sends_them_away_for_longer() -> None:
    (fast, fast_s), (slow, slow_s) = turnover(1.0), turnover(5.0)
    assert slow.retry_after_s(slow_s) > 2 * fast.retry_after_s(fast_s)


def test_what_is_told_is_bounded_both_ways() -> None:
    fast, fast_s = turnover(0.001)
    assert fast.retry_after_s(fast_s) == LEAST_S
    slow, slow_s = turnover(7.0)
    assert max(slow.retry_after_s(slow_s) for _ in range(1000)) == MOST_S


def test_before_anything_was_served_it_is_a_guess() -> None:
    it = Turnover()
    assert LEAST_S <= it.retry_after_s(0.0) <= MOST_S
    it.served(1.0)
    assert LEAST_S <= it.retry_after_s(1.0) <= MOST_S


def test_requests_that_leave_in_bursts_leave_no_faster_than_one_by_one() -> None:
    """Sixteen every ten seconds: as their requests end together, so do those that take their places."""
    it = Turnover()
    for burst in range(4):
        for _ in range(16):
            it.served(10.0 * burst)
    now_s = 39.0
    told_s = [it.retry_after_s(now_s) for _ in range(16)]
    assert told_s[-1] > 5.0, "as many as a burst takes are spread over about the time of one"


def test_a_queue_that_stands_still_sends_them_away_for_longer_and_longer() -> None:
    it, now_s = turnover(1.0)
    soon_s = it.retry_after_s(now_s)
    assert it.retry_after_s(now_s + 300) > 3 * soon_s
