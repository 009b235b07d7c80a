"""When drafts stop, against the papers' numbers."""

from __future__ import annotations

import math

import pytest

from drafter.policies import MAKERS, Policy, make
from paceline.length_policy import POLICIES, LengthPolicy


def drafted_length(policy: Policy, entropies: list[float]) -> int:
    """Length of one draft whose rows have these entropies: ask after each token that was kept."""
    for length, entropy_nats in enumerate(entropies, start=1):
        if policy.stops(length, entropy_nats):
            return length
    raise AssertionError("the policy never stopped")


def test_every_policy_of_the_table_can_be_made() -> None:
    assert MAKERS.keys() == POLICIES.keys()
    for name in POLICIES:
        policy = make(LengthPolicy.parse(name))
        policy.observe(num_tested=3, num_accepted=2)
        assert drafted_length(policy, [0.0] * 64) <= 64


@pytest.mark.parametrize("length", [1, 5, 64])
def test_fixed_stops_after_its_length_whatever_the_entropy(length: int) -> None:
    policy = make(LengthPolicy.of("fixed", {"length": length}))
    assert drafted_length(policy, [9.0] * 64) == drafted_length(policy, [0.0] * 64) == length
    assert not policy.needs_entropy


def test_svip_keeps_the_token_that_triggers() -> None:
    policy = make(LengthPolicy.parse("svip"))
    assert policy.needs_entropy
    assert drafted_length(policy, [0.1, 0.2, 3.0, 0.1]) == 3
    assert drafted_length(policy, [3.0]) == 1


def test_svip_threshold_is_that_of_the_papers_code() -> None:
    """Their test is sqrt(0.15 H) > 0.3, which is H > 0.6 nats."""
    policy = make(LengthPolicy.parse("svip"))
    for entropy_nats in (0.0, 0.09, 0.5, 0.59, 0.61, 0.7, 2.0):
        assert policy.stops(1, entropy_nats) == (math.sqrt(0.15 * entropy_nats) > 0.3)


def test_svip_stops_above_its_threshold_not_at_it() -> None:
    policy = make(LengthPolicy.parse("svip:threshold_nats=0.6"))
    assert not policy.stops(1, 0.6)
    assert policy.stops(1, math.nextafter(0.6, 1))


def test_svip_is_capped_at_the_papers_40() -> None:
    assert drafted_length(make(LengthPolicy.parse("svip")), [0.0] * 64) == 40
    assert drafted_length(make(LengthPolicy.parse("svip:max_length=2")), [0.0] * 64) == 2


def test_two_requests_share_no_policy() -> None:
    given = LengthPolicy.parse("svip")
    assert make(given) is not make(given)
