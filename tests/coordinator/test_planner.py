"""How a request is drafted for, and what one that bounds its drafts gets, whoever else chooses their length."""

from __future__ import annotations

import pytest

from coordinator.core.choice import FIRST, Choice
from coordinator.core.controller import MIN_TESTS, Controller
from coordinator.core.events import Arrived, Ended, RequestSpec, Verified
from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from coordinator.core.planner import Planner
from paceline.length_policy import LengthPolicy
from paceline.types import FinishReason, Mode, Rule, SamplingParams, Source, StepCost, Verdict
from tests.coordinator.test_request import pipeline, spec
from tests.world import Network, World

SVIP = LengthPolicy.parse("svip")


def planner(**given: object) -> Planner:
    return Planner(
        RequestSpec("r", (1, 2), 9, SamplingParams(), seed=1, draft_seed=2, **given),  # type: ignore[arg-type]
        Rule.MATCH,
    )


@pytest.mark.parametrize(
    ("policy", "most", "want"),
    [
        (None, 3, "fixed:length=3"),
        (None, 99, "fixed:length=8"),
        ("fixed:length=5", 16, "fixed:length=5"),
        ("svip:threshold_nats=0.5", 9, "svip:threshold_nats=0.5,max_length=9"),
    ],
)
def test_a_bound_shortens_a_policys_drafts_and_never_lengthens_them(policy: str | None, most: int, want: str) -> None:
    named = LengthPolicy.parse(policy) if policy else None
    assert str(planner(mode=Mode.PEARL, policy=named, max_draft_length=most).plan.policy) == want


def test_what_the_last_request_chose_is_cut_to_the_bound() -> None:
    pace = Pace(num_tests=MIN_TESTS, choice=Choice(Mode.PEARL, 12, 4))
    bounded, free = planner(max_draft_length=5), planner()
    bounded.resume(pace)
    free.resume(pace)
    assert (bounded.plan.policy.max_length, free.plan.policy.max_length) == (5, 12)


@pytest.mark.parametrize(("most", "lengths"), [(1, (1,)), (5, (1, 2, 3, 4, 5)), (99, (1, 2, 3, 4, 6, 8, 12, 16))])
def test_lengths_on_offer_end_at_the_bound(most: int, lengths: tuple[int, ...]) -> None:
    assert Controller(max_length=most)._lengths == lengths


@pytest.mark.parametrize("most", [None, 3])
def test_auto_keeps_to_the_bound_where_longer_drafts_would_pay(most: int | None) -> None:
    world = World(1, network=Network(delay_s=0.0005))
    world.verifier()
    world.drafter(token_s=0.0003, agreement=0.95)
    world.submit(
        RequestSpec("r", (1, 2), 300, SamplingParams(temperature=0), seed=1, draft_seed=2, max_draft_length=most)
    )
    world.run().check_lossless()
    did = world.clients["r"].metrics
    assert did
    assert (did.num_draft_tokens / did.num_received_drafts <= 3) == (most == 3)


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


def test_where_rows_are_needed_no_trial_begins_while_longer_drafts_are_on_their_way() -> None:
    """A trial's drafts are judged as they come: for one of several tokens that may depend on what is in it."""
    pace = Pace(
        draft_s=0.003, delay_s=0.01, wire_s=0.001, acceptance=0.8, num_tests=50, choice=Choice(Mode.PEARL, 4, 4)
    )
    passes = PassTimes(StepCost(28.0, 5.4, 0.0, 0.0))
    it = Planner(RequestSpec("r", (1, 2), 99, SamplingParams(), seed=1, draft_seed=2), Rule.BLOCK)
    it.resume(pace)
    it.replan(pace, passes, 1, 0.0, 4)
    assert it.waits
    pace.acceptance = 0.1
    pace.did_without(300)  # by others, so that a trial is due
    it.replan(pace, passes, 1, 1.0, 30)
    assert it.rests
    it.replan(pace, passes, 1, 2.0, 50)
    assert (it.is_trying, it.plan.policy.max_length) == (True, 1)


def test_a_request_that_ends_on_trial_leaves_the_trial_to_another() -> None:
    """Clients hang up: what a drafter is worth must not stay unknown for as long as they do so."""
    it = pipeline()
    it.handle(Arrived(spec(mode=None)), 0.0)
    trial = it.pools.pace("d").trial
    assert not trial.is_free("another", 0.0)
    it.handle(Ended("r", FinishReason.CANCELLED), 0.1)
    assert trial.is_free("another", 0.1)


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.LENGTH])
def test_a_request_too_short_for_another_choice_teaches_the_next_one(reason: FinishReason) -> None:
    """Ten tokens are no stretch, but thousands of such requests must not all begin with what does not pay."""
    it = pipeline()
    pace = it.pools.pace("d")
    pace.num_tests, pace.choice = MIN_TESTS, Choice(Mode.SEQUENTIAL, 2, 1)
    pace.verify_s, pace.draft_s, pace.delay_s = 0.01, 0.001, 0.001
    it.handle(Arrived(spec(mode=None, max_tokens=4)), 0.0)
    for at in range(4 if reason is FinishReason.LENGTH else 3):
        verdict = Verdict("r", 0, 3 + at, (7,), (Source.SELF_DECODED,), verify_ms=10.0, batch_tokens=1)
        it.handle(Verified("v", verdict), 0.1 * (1 + at))
    if reason is FinishReason.CANCELLED:
        it.handle(Ended("r", reason), 0.5)
    assert it.num_running == 0
    assert any(pace.correction(mode) != 1 for mode in Mode), "a token in a tenth of a second was promised by no mode"
