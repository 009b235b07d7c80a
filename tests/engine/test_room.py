"""Scenarios of a short pool: who goes on, who waits, who loses its cache."""

from __future__ import annotations

import random

from paceline.engine.room import Claim, share


def decide(num_free: int, *claims: tuple[int, int]) -> tuple[list[str], list[str]]:
    """(going, preempted) of requests a, b, … given as (blocks held, blocks wanted), which share nothing."""
    named = [Claim(chr(ord("a") + index), *claim) for index, claim in enumerate(claims)]
    held = {claim.key: claim.num_held for claim in named}
    sharing = share(named, num_free, held.__getitem__)
    return sharing.going, sharing.preempted


def test_all_go_on_while_there_is_room() -> None:
    assert decide(4, (3, 4), (2, 3), (0, 0)) == (["a", "b", "c"], [])


def test_the_youngest_gives_way_to_the_oldest() -> None:
    assert decide(0, (3, 4), (2, 2), (2, 3)) == (["a", "b"], ["c"])


def test_nobody_gives_way_if_it_would_not_help() -> None:
    assert decide(0, (9, 0), (3, 6), (2, 0)) == (["a", "c"], [])


def test_a_younger_request_never_preempts_an_older_one() -> None:
    assert decide(0, (3, 0), (2, 3)) == (["a"], [])


def test_a_prompt_starts_with_room_for_all_of_it_and_for_the_others_to_grow() -> None:
    assert decide(5, (3, 3), (0, 5)) == (["a"], [])
    assert decide(6, (3, 3), (0, 5)) == (["a", "b"], [])


def test_a_prompt_that_waits_is_not_overtaken_by_a_younger_one() -> None:
    assert decide(4, (3, 3), (0, 6), (0, 1)) == (["a"], [])


def test_the_oldest_takes_all_even_where_sums_say_it_would_not_do() -> None:
    """Blocks that two victims share are nobody's own."""
    claims = [Claim("a", 0, 6), Claim("b", 4, 4), Claim("c", 4, 5)]
    sharing = share(claims, 1, lambda key: 1)
    assert sharing.going == ["a"]
    assert sorted(sharing.preempted) == ["b", "c"]


def test_whatever_is_claimed_the_oldest_goes_and_the_sums_are_right() -> None:
    for seed in range(500):
        rng = random.Random(seed)
        num_blocks = rng.randint(4, 30)
        num_free, claims = num_blocks, []
        for index in range(rng.randint(1, 7)):
            held = rng.choice([0, rng.randint(0, num_free)])
            num_free -= held
            claims.append(Claim(str(index), held, rng.choice([0, min(num_blocks, held + rng.randint(0, 6))])))
        held_by = {claim.key: claim.num_held for claim in claims}
        sharing = share(claims, num_free, held_by.__getitem__)
        assert not set(sharing.going) & set(sharing.preempted), seed
        wanting = {claim.key: claim.num_missing for claim in claims if claim.key in sharing.going}
        assert sum(wanting.values()) <= num_free + sum(held_by[key] for key in sharing.preempted), seed
        assert claims[0].key in sharing.going, seed
        if sharing.preempted:
            oldest_victim = min(int(key) for key in sharing.preempted)
            assert any(wanting.get(str(index)) for index in range(oldest_victim)), seed
