"""When drafts stop, against the papers' numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from drafter.policies import MAKERS, Need, Policy, Seen, make
from drafter.policies.adaedl import AdaEdl
from paceline.errors import Unsupported
from paceline.length_policy import NEED_HEAD, POLICIES, LengthPolicy, offered


def drafted_length(policy: Policy, rows: Sequence[Seen]) -> int:
    """Length of one draft from these rows, asked as the engine asks."""
    for length, row in enumerate(rows):
        if length and policy.stops_before(replace(row, draft_length=length)):
            return length
        if policy.stops_after(replace(row, draft_length=length + 1)):
            return length + 1
    raise AssertionError("the policy never stopped")


def entropies(*values: float) -> list[Seen]:
    return [Seen(0, entropy_nats=value) for value in values]


def token_probs(*values: float) -> list[Seen]:
    return [Seen(0, token_prob=value) for value in values]


def accept_probs(*values: float) -> list[Seen]:
    """What the head says of the first token of the draft, the second, …; the first row is that of the first token."""
    return [Seen(0, accept_prob=value) for value in (0.0, *values)]


EASY = [Seen(0)] * 64
HARD = [Seen(0, entropy_nats=9.0, token_prob=0.0, accept_prob=0.0)] * 64
THRESHOLDS = {6.0: 0.6, 12.0: 0.4}


def test_every_policy_of_the_table_can_be_made_and_ends_every_draft_where_it_promises() -> None:
    assert MAKERS.keys() == POLICIES.keys()
    for name in POLICIES:
        policy = make(LengthPolicy.parse(name), THRESHOLDS)
        policy.observe(num_tested=3, num_accepted=2)
        assert 1 <= drafted_length(policy, HARD) <= drafted_length(policy, EASY) <= 64


@pytest.mark.parametrize("name", sorted(POLICIES.keys() - {"fixed"}))
def test_no_draft_is_longer_than_its_policys_max_length(name: str) -> None:
    for length in (1, 2, 7):
        policy = make(LengthPolicy.of(name, {"max_length": length}), THRESHOLDS)
        assert drafted_length(policy, EASY) == length


@pytest.mark.parametrize("length", [1, 5, 64])
def test_fixed_stops_after_its_length_whatever_the_row(length: int) -> None:
    policy = make(LengthPolicy.of("fixed", {"length": length}))
    assert drafted_length(policy, HARD) == drafted_length(policy, EASY) == length
    assert policy.needs is Need.NOTHING


def test_svip_keeps_the_token_that_triggers() -> None:
    policy = make(LengthPolicy.parse("svip"))
    assert policy.needs is Need.ENTROPY
    assert drafted_length(policy, entropies(0.1, 0.2, 3.0, 0.1)) == 3
    assert drafted_length(policy, entropies(3.0)) == 1


def test_svip_threshold_is_that_of_the_papers_code() -> None:
    """Their test is sqrt(0.15 H) > 0.3, which is H > 0.6 nats."""
    policy = make(LengthPolicy.parse("svip"))
    for entropy_nats in (0.0, 0.09, 0.5, 0.59, 0.61, 0.7, 2.0):
        assert policy.stops_after(Seen(1, entropy_nats)) == (math.sqrt(0.15 * entropy_nats) > 0.3)


def test_svip_stops_above_its_threshold_not_at_it() -> None:
    policy = make(LengthPolicy.parse("svip:threshold_nats=0.6"))
    assert not policy.stops_after(Seen(1, 0.6))
    assert policy.stops_after(Seen(1, math.nextafter(0.6, 1)))


def test_svip_is_capped_at_the_papers_40() -> None:
    assert drafted_length(make(LengthPolicy.parse("svip")), EASY) == 40


def test_confidence_keeps_the_token_that_triggers() -> None:
    policy = make(LengthPolicy.parse("confidence"))
    assert policy.needs is Need.TOKEN_PROB
    assert drafted_length(policy, token_probs(0.9, 0.4, 0.39, 0.9)) == 3
    assert drafted_length(policy, token_probs(0.1)) == 1
    assert drafted_length(policy, EASY) == 20


def test_adaedl_stops_before_the_token_whose_row_is_too_uncertain() -> None:
    """1 - sqrt(0.2 H) < 0.5 is H > 1.25 nats."""
    policy = make(LengthPolicy.parse("adaedl"))
    assert policy.needs is Need.ENTROPY
    assert drafted_length(policy, entropies(0.1, 1.24, 1.26, 0.1)) == 2


def test_adaedl_draws_the_first_token_of_a_draft_whatever_its_row() -> None:
    assert drafted_length(make(LengthPolicy.parse("adaedl")), HARD) == 1


def moved(num_tested: int, num_accepted: int, **given: float) -> float:
    """How far one outcome moves AdaEDL's threshold."""
    policy = make(LengthPolicy.of("adaedl", given))
    assert isinstance(policy, AdaEdl)
    before = policy.threshold
    policy.observe(num_tested, num_accepted)
    return policy.threshold - before


def test_adaedl_becomes_stricter_below_its_target_and_more_lenient_above() -> None:
    """By (1 - 0.9) * 0.01. The mean starts at 0.9; half of 0.9 and half of 4 in 5 is 0.85."""
    assert moved(5, 4) == pytest.approx(0.001)
    assert moved(15, 15) == pytest.approx(-0.001)
    assert moved(5, 4, target_acceptance=0.8) == pytest.approx(-0.001)
    assert moved(5, 4, threshold_memory=0.0, step=0.2) == pytest.approx(0.2)


def test_adaedl_stays_where_it_is_when_a_longest_draft_was_kept_whole_or_nothing_was_tested() -> None:
    assert moved(16, 16) == 0
    assert moved(0, 0) == 0


def test_adaedl_remembers_outcomes_as_its_memory_says() -> None:
    policy = make(LengthPolicy.parse("adaedl"))
    assert isinstance(policy, AdaEdl)
    policy.observe(4, 0)
    assert policy.acceptance == pytest.approx(0.45)
    policy.observe(4, 4)
    assert policy.acceptance == pytest.approx(0.725)


def test_adaedls_threshold_stays_a_probability() -> None:
    for num_accepted in (0, 1):
        policy = make(LengthPolicy.of("adaedl", {"step": 1, "threshold_memory": 0}))
        assert isinstance(policy, AdaEdl)
        for _ in range(20):
            policy.observe(1, num_accepted)
        assert policy.threshold == (0.0 if num_accepted else 1.0)


def test_specdecpp_stops_once_a_rejection_is_likelier_than_its_threshold_and_keeps_the_token_at_hand() -> None:
    """0.8 * 0.8 leaves 0.36 for a rejection among the first two; the third is drawn by then."""
    policy = make(LengthPolicy.parse("specdecpp:threshold=0.3"), THRESHOLDS)
    assert policy.needs is Need.ACCEPT_PROB
    assert drafted_length(policy, accept_probs(0.8, 0.8, 1.0, 1.0)) == 3
    assert drafted_length(policy, accept_probs(0.1, 1.0)) == 2
    assert drafted_length(policy, accept_probs(0.9, 0.9, 0.7, 1.0)) == 4, "each draft begins anew"
    assert drafted_length(policy, EASY) == 20


def test_specdecpp_takes_the_threshold_that_was_calibrated_for_the_nearest_cost_ratio() -> None:
    def stop(text: str) -> int:
        return drafted_length(make(LengthPolicy.parse(text), THRESHOLDS), accept_probs(0.7, 0.7, 0.7, 0.7))

    assert stop("specdecpp") == stop("specdecpp:cost_ratio=100") == 3  # 0.4: 1 - 0.49 is over it
    assert stop("specdecpp:cost_ratio=2") == stop("specdecpp:cost_ratio=8") == 4  # 0.6: 1 - 0.343
    assert stop("specdecpp:threshold=0.1") == 2


def test_specdecpp_without_a_head_is_refused_with_the_way_to_one() -> None:
    with pytest.raises(Unsupported, match="train_acceptance_head"):
        make(LengthPolicy.parse("specdecpp"))


def test_a_drafter_offers_what_it_can_make() -> None:
    assert set(offered(has_head=True)) == set(POLICIES)
    for name in offered(has_head=False):
        make(LengthPolicy.parse(name))
    assert set(POLICIES) - set(offered(has_head=False)) == NEED_HEAD


def test_two_requests_share_no_policy() -> None:
    for name in POLICIES:
        given = LengthPolicy.parse(name)
        assert make(given, THRESHOLDS) is not make(given, THRESHOLDS)
