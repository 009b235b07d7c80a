"""Scenarios of the batcher: who gets how many tokens of a pass."""

from __future__ import annotations

import random

from verifier.batcher import Budget, Ready, plan


def test_running_requests_go_first_and_a_prompt_takes_the_room_they_leave() -> None:
    ready = [Ready("prompt", 50, 0, 0.0), Ready("draft", 1, 3, 1.0)]
    assert plan(ready, Budget(10, 8)) == {"draft": 4, "prompt": 6}


def test_those_who_wait_longest_go_first() -> None:
    ready = [Ready(name, 1, 0, since_s) for name, since_s in (("late", 2.0), ("early", 1.0))]
    assert list(plan(ready, Budget(10, 1))) == ["early"]


def test_a_part_of_a_prompt_always_leaves_a_token_for_the_pass_that_yields_its_row() -> None:
    assert plan([Ready("prompt", 10, 4, 0.0)], Budget(10, 8)) == {"prompt": 9}


def test_what_cannot_be_split_is_not_starved_by_a_budget_that_is_too_small() -> None:
    assert plan([Ready("draft", 1, 9, 0.0)], Budget(4, 8)) == {"draft": 10}


def test_a_plan_keeps_every_bound_and_always_moves() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        ready = [
            Ready(str(i), rng.choice([1, 1, 40]), rng.randint(0, 8), rng.random()) for i in range(rng.randint(1, 20))
        ]
        budget = Budget(rng.randint(1, 60), rng.randint(1, 10))
        shares = plan(ready, budget)
        wanted = {wish.key: wish for wish in ready}
        assert shares, seed
        assert len(shares) <= budget.max_num_seqs, seed
        assert len(shares) == 1 or sum(shares.values()) <= budget.max_num_batched_tokens, seed
        for key, part in shares.items():
            assert part == wanted[key].num_tokens or 0 < part < wanted[key].num_pending, seed


def test_coordinators_take_turns_where_the_budget_is_short() -> None:
    """However many requests one has waiting, and for however long: the other's first one comes second."""
    ready = [Ready(f"a{i}", 1, 0, i / 10, peer=1) for i in range(8)] + [Ready("b", 1, 0, 5.0, peer=2)]
    assert list(plan(ready, Budget(10, 3))) == ["a0", "b", "a1"]
    prompts = [Ready(f"a{i}", 50, 0, i / 10, peer=1) for i in range(8)] + [Ready("b", 50, 0, 5.0, peer=2)]
    assert list(plan(prompts, Budget(100, 8))) == ["a0", "b"]


def test_prompts_together_take_no_more_than_their_room() -> None:
    ready = [Ready("a", 50, 0, 0.0), Ready("b", 50, 0, 0.5), Ready("draft", 1, 3, 1.0)]
    assert plan(ready, Budget(1000, 8), 20) == {"draft": 4, "a": 20}
    assert plan(ready, Budget(1000, 8), 70) == {"draft": 4, "a": 50, "b": 20}
