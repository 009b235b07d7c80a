"""Draft lengths that the shipped policies choose leave the output's law as it is: by enumeration, in fractions.

The worlds, and the proofs that `token` and `block` are exact, are those of tests/verifier. Here the tokens that would
be drawn are cut into drafts by the policies themselves, which see the entropy before a token is drawn, the entropy
and the token's own probability after, or what a head says of the token before. The control drops a token by its own
probability.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest

from drafter.policies import Policy, Seen, make
from paceline.length_policy import LengthPolicy
from paceline.types import Tokens
from tests.verifier import test_block, test_enumeration
from tests.verifier.test_enumeration import SMALL, Law, Strategy, World, drafts, error, output_law, plain

Judge = Callable[..., Law]
Draft = Callable[[World, Policy, Tokens, Tokens], Tokens]

# With three tokens the entropy is at most 1.1 nats: thresholds under which some drafts are long and some are short.
POLICIES = ["adaedl:threshold=0.65,max_length=3", "confidence", "specdecpp:threshold=0.4", "svip:threshold_nats=0.7"]
MAX_LENGTH = 3


def by_token(world: World, prefix: Tokens, draft: Tokens, *, take_bonus: bool = True) -> Law:
    return test_enumeration.judged(world, prefix, draft, take_bonus=take_bonus)


def by_block(world: World, prefix: Tokens, draft: Tokens, *, take_bonus: bool = True) -> Law:
    return test_block.judged(world, prefix, *([draft] if draft else []), take_bonus=take_bonus)


RULES = [pytest.param(by_token, id="token"), pytest.param(by_block, id="block")]


def seen(world: World, prefix: Tokens, token_id: int) -> Seen:
    """The row after `prefix`, and `token_id` drawn from it. The head is a function of the token before the row."""
    row = [float(p) for p in world.full_draft(prefix)]
    accept_prob = 0.4 + 0.5 * ((sum(prefix) + len(prefix)) % 2)
    return Seen(0, -sum(p * math.log(p) for p in row if p), row[token_id], accept_prob)


def at(length: int, row: Seen, *, is_drawn: bool) -> Seen:
    """The row as a policy is shown it: before the draw there is no token to see."""
    return Seen(length, row.entropy_nats, row.token_prob if is_drawn else 1.0, row.accept_prob)


def drafted(world: World, policy: Policy, prefix: Tokens, ids: Tokens) -> Tokens:
    """What a draft is made of if `ids` are the tokens that would be drawn."""
    for length, token_id in enumerate(ids):
        row = seen(world, prefix + ids[:length], token_id)
        if length and policy.stops_before(at(length, row, is_drawn=False)):
            return ids[:length]
        if policy.stops_after(at(length + 1, row, is_drawn=True)):
            return ids[: length + 1]
    return ids


def dropping(world: World, policy: Policy, prefix: Tokens, ids: Tokens) -> Tokens:
    """The control: the token at which the policy stops is dropped."""
    kept = drafted(world, policy, prefix, ids)
    return kept[:-1] if len(kept) > 1 else kept


def policy_of(text: str) -> Policy:
    return make(LengthPolicy.parse(text), {1.0: 0.4})


def closed(world: World, text: str, judge: Judge, draft: Draft = drafted) -> Strategy:
    """One draft at a time, and a bonus after one that is kept whole."""

    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        shortened: Law = defaultdict(Fraction)
        for weight, ids in drafts(world, prefix, MAX_LENGTH):
            shortened[draft(world, policy_of(text), prefix, ids)] += weight
        for ids, weight in shortened.items():
            for outcome, chance in judge(world, prefix, ids).items():
                yield weight * chance, outcome

    return step


def streaming(world: World, text: str, judge: Judge) -> Strategy:
    """An open draft, and after it the next one of the same chain: its first token is drawn from the row at the cut."""

    def step(prefix: Tokens) -> Iterator[tuple[Fraction, Tokens]]:
        for weight, ids in drafts(world, prefix, MAX_LENGTH):
            policy = policy_of(text)
            first = drafted(world, policy, prefix, ids)
            after = prefix + first
            second = drafted(world, policy, after, ids[len(first) :])
            for outcome, chance in judge(world, prefix, first, take_bonus=False).items():
                if outcome != first:
                    yield weight * chance, outcome
                    continue
                for rest, then in judge(world, after, second).items():
                    yield weight * chance * then, first + rest

    return step


@pytest.mark.parametrize("judge", RULES)
@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize("world", SMALL, ids=str)
def test_drafts_of_the_policys_own_length_are_exact(world: World, text: str, judge: Judge) -> None:
    assert error(world, 3, output_law(world, 3, closed(world, text, judge), then=plain(world))) == 0


@pytest.mark.parametrize("judge", RULES)
@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize("world", SMALL, ids=str)
def test_drafts_that_stream_ahead_of_the_verdict_are_exact(world: World, text: str, judge: Judge) -> None:
    assert error(world, 3, output_law(world, 3, streaming(world, text, judge), then=plain(world))) == 0


@pytest.mark.parametrize("text", POLICIES)
def test_the_worlds_have_drafts_of_every_length(text: str) -> None:
    """Else the proofs above would be about `fixed`."""
    lengths = {
        len(drafted(world, policy_of(text), (), ids)) for world in SMALL for _, ids in drafts(world, (), MAX_LENGTH)
    }
    least = 2 if text.startswith("specdecpp") else 1
    assert lengths == set(range(least, MAX_LENGTH + 1))


@pytest.mark.parametrize("judge", RULES)
def test_dropping_the_token_that_triggered_shows(judge: Judge) -> None:
    worlds = [world for world in SMALL if world.width > 1]
    found = [error(world, 2, output_law(world, 2, closed(world, "confidence", judge, dropping))) for world in worlds]
    assert max(found) > Fraction(1, 100)
