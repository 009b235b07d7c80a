"""How a request is drafted for."""

from __future__ import annotations

import pytest

from coordinator.core.choice import FIRST, Choice
from coordinator.core.controller import MIN_TESTS
from coordinator.core.pace import Pace
from coordinator.core.planner import Planner
from paceline.length_policy import LengthPolicy
from paceline.types import Mode, Rule
from tests.coordinator.test_request import spec

SVIP = LengthPolicy.parse("svip")


def planned(rule: Rule, pace: Pace, policy: LengthPolicy | None = None) -> LengthPolicy:
    it = Planner(spec(mode=None, policy=policy), rule)
    it.resume(pace)
    return it.policy


@pytest.mark.parametrize("rule", [Rule.TOKEN, Rule.BLOCK])
@pytest.mark.parametrize("policy", [None, SVIP])
def test_where_rows_are_needed_a_trial_is_of_single_tokens(rule: Rule, policy: LengthPolicy | None) -> None:
    """Nobody waits for them: one that ends early because of what is in it would come in time more often."""
    assert planned(rule, Pace(), policy)["length"] == 1


def test_where_no_rows_are_needed_a_trial_may_be_of_more() -> None:
    assert planned(Rule.MATCH, Pace())["length"] == FIRST.length


def test_after_the_trial_drafts_are_as_long_as_is_wanted() -> None:
    known = Pace(num_tests=MIN_TESTS, choice=Choice(Mode.PEARL, 6, 4))
    assert planned(Rule.BLOCK, known)["length"] == 6
    assert planned(Rule.BLOCK, known, SVIP) == SVIP
    it = Planner(spec(mode=Mode.PEARL, policy=SVIP), Rule.BLOCK)
    it.resume(Pace())
    assert it.policy == SVIP, "whoever names a mode has no trial"
