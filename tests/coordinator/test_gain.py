"""What a drafter is worth: the formula against what must be so."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from coordinator.core.gain import STRETCH, Speed, best_s, gain, plain_s
from coordinator.core.passes import PassTimes
from coordinator.core.worker import Worker
from paceline.fields import MAX_MS
from paceline.types import Role, StepCost, WorkerInfo

PASSES = PassTimes(StepCost(28.0, 1.1, 0.0, 0.0))


def test_a_fast_drafter_that_is_mostly_right_is_worth_most() -> None:
    best = Speed(0.001, 0.001, 0.9)
    worse = [Speed(0.008, 0.001, 0.9), Speed(0.001, 0.05, 0.9), Speed(0.001, 0.001, 0.5)]
    assert all(gain(best, PASSES) > 1.2 * gain(other, PASSES) for other in worse)


def test_one_that_is_never_right_is_worth_less_than_none() -> None:
    assert gain(Speed(0.001, 0.001, 0.0), PASSES) < 1


def test_which_of_two_is_better_depends_on_the_verifier() -> None:
    """A guesser that costs nothing beats a model beside a fast verifier, and loses to it beside a slow one."""
    guesser, model = Speed(0.0001, 0.001, 0.3), Speed(0.008, 0.001, 0.85)
    fast, slow = PassTimes(StepCost(5.0, 0.1, 0, 0)), PassTimes(StepCost(80.0, 1.0, 0, 0))
    assert gain(guesser, fast) > gain(model, fast)
    assert gain(guesser, slow) < gain(model, slow)


def test_without_a_verifier_nothing_is_known() -> None:
    speed = Speed(0.001, 0.001, 0.9)
    assert gain(speed, PassTimes()) == 1
    assert best_s(speed, PassTimes()) is None
    assert plain_s(PassTimes()) is None


@pytest.mark.parametrize(
    ("speed", "helps"),
    [
        (Speed(0.0013, 0.001, 0.7), True),
        (Speed(0.028, 0.001, 0.7), True),  # a token takes as long as one of the verifier's, and rides along
        (Speed(0.040, 0.001, 0.7), False),
        (Speed(0.001, 0.200, 0.7), True),
        (Speed(0.001, 10.0, 0.7), False),  # when its first draft comes, the verifier is through
    ],
)
def test_whether_one_can_help_at_all_is_asked_as_if_it_were_always_right(speed: Speed, helps: bool) -> None:
    with_it, alone = best_s(speed, PASSES), plain_s(PASSES)
    assert with_it is not None
    assert alone is not None
    assert alone == pytest.approx(STRETCH * 0.0291)
    assert (with_it < alone) is helps


@pytest.mark.parametrize("ms", [MAX_MS, 1e300, 1.7e308])
def test_whatever_a_worker_says_of_itself_its_gain_can_be_divided_by(ms: float) -> None:
    worker = Worker("d", WorkerInfo(Role.DRAFTER, "", 1, "m", "", "", 50, 99, 4, (), "float32", "cpu"))
    worker.heard(replace(worker.info, cost=StepCost(ms, ms, ms, ms)), 0.001, 0.0)
    assert 0 < gain(worker.speed(), PASSES) < 1e-3
    assert math.isfinite(worker.cost(PASSES)) or ms > MAX_MS
