"""Branches at the drafter: the likeliest outcomes first, and the one that came is gone on with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

from drafter.branches import Offshoot
from drafter.branching import Branching
from drafter.chain import Choice
from drafter.policies import make
from drafter.room import Room
from drafter.session import Session
from paceline.types import Branch, Commit, Draft, StepCost
from tests.drafter.test_session import opened


def chained(*doubts: float, window: int = 4, branches: int = 8, **more: object) -> Session[None]:
    """A chain 10, 11, …, one draft, with these doubts; instead of x there may be 100 + x or, less likely, 200 + x."""
    it: Session[None] = Session(replace(opened(window=window, **more), branches=branches))  # type: ignore[arg-type]
    for at, doubt in enumerate(doubts):
        others = (110 + at, 0.6), (210 + at, 0.3)
        it.push(10 + at, stop=False, choice=Choice(doubt, others))
    it.send(None)
    return it


def begun(it: Session[None]) -> Offshoot[None]:
    outcome = it.next_outcome()
    assert outcome is not None
    return it.begin_branch(outcome)


def complete(it: Offshoot[None], *tokens: int) -> Branch:
    for token in tokens:
        it.push(token, stop=False)
    return it.send(None)


def test_the_likeliest_outcome_comes_first_and_none_twice() -> None:
    it = chained(0.1, 0.9)
    outcomes = [(begun(it).position, it.branches.growing[-1].token_id) for _ in range(4)]
    assert outcomes == [(4, 111), (4, 211), (3, 110), (3, 210)]
    assert it.next_outcome() is None


def test_what_is_certain_is_not_drafted_for() -> None:
    assert chained(0.0, 0.001).next_outcome() is None


def test_there_are_no_more_branches_than_were_asked_for() -> None:
    it = chained(0.5, 0.5, branches=1)
    begun(it)
    assert it.next_outcome() is None
    assert chained(0.5, branches=0).next_outcome() is None


def test_nothing_is_drafted_behind_an_outcome_that_ends_the_output() -> None:
    assert chained(0.5, stop_token_ids=(110, 210)).next_outcome() is None
    assert chained(0.5, end=4).next_outcome() is None


def test_a_branch_leaves_the_chain_of_its_run() -> None:
    it = chained(0.01, 0.9)
    branch = complete(begun(it), 7, 8)
    assert (branch.token_id, branch.position) == (111, 4)
    assert branch.draft == Draft("r", 0, 5, (7, 8), is_open=True)


def test_the_branch_that_came_is_the_first_draft_of_the_new_run() -> None:
    it = chained(0.01, 0.9)
    it.computed = 5
    complete(begun(it), 7, 8)
    it.commit(Commit("r", 3, 3, (10, 111)))
    assert (it.tokens, it.epoch, it.computed) == ([1, 2, 3, 10, 111, 7, 8], 3, 4)
    assert it.reopen(replace(it.ask, token_ids=(1, 2, 3))) == [Draft("r", 3, 5, (7, 8), is_open=True)]
    it.push(9, stop=True)
    assert it.send(None).start == 7
    assert not it.branches.growing


def test_a_branch_that_is_half_drafted_is_gone_on_with() -> None:
    it = chained(0.9)
    offshoot = begun(it)
    offshoot.push(7, stop=False, choice=Choice(0.4, ((8, 0.5),)))
    it.commit(Commit("r", 3, 3, (110,)))
    assert (it.tokens, it.draft_length) == ([1, 2, 3, 110, 7], 1)
    it.push(8, stop=True)
    assert it.send(None) == Draft("r", 3, 4, (7, 8), is_open=True)
    assert it.next_outcome() == (4, 8), "what its rows said of its tokens is remembered"


def test_a_branch_is_cut_by_what_is_committed_behind_its_outcome() -> None:
    for tokens, chain in (((110, 7), [110, 7, 8]), ((110, 6), [110, 6]), ((110, 7, 8), [110, 7, 8])):
        it = chained(0.9)
        complete(begun(it), 7, 8)
        it.commit(Commit("r", 3, 3, tokens))
        assert it.tokens == [1, 2, 3, *chain]


def test_a_branch_that_is_half_drafted_is_gone_on_with_behind_what_is_committed_of_it() -> None:
    """If only complete ones were, those that end early would be kept more often than others: a choice by content."""
    it: Any = chained(0.9)
    offshoot = begun(it)
    for token in (7, 8):
        offshoot.push(token, stop=False)
        offshoot.rows.append(f"row of {token}")  # type: ignore[arg-type]
    it.commit(Commit("r", 3, 3, (110, 7)))
    assert (it.tokens, it.draft_length, it.rows) == ([1, 2, 3, 110, 7, 8], 1, ["row of 8"])
    it.push(9, stop=True)
    assert it.send(None) == Draft("r", 3, 5, (8, 9), is_open=True)


def test_what_is_drawn_of_a_branch_that_gives_way_is_not_drawn_again() -> None:
    it: Any = chained(0.9)
    runner: Any = MagicMock()
    runner.room.return_value, runner.adopt.return_value = 10_000, 2
    shape: Any = None
    branching = Branching(runner, shape)
    sessions: Any = {"1/r": it}
    taken = branching.take(sessions, {"1/r": make(it.ask.policy)}, [], None)
    drawn, *others = [growing.offshoot for growing in taken]
    drawn.push(7, stop=False)
    branching.give_way(sessions)
    assert runner.close.call_count == len(taken), "its place in the pool is free"
    assert it.branches.growing == [drawn]
    assert it.next_outcome() != (drawn.position, drawn.token_id)
    assert it.next_outcome() is None or it.next_outcome() in [(one.position, one.token_id) for one in others]
    it.commit(Commit("r", 3, drawn.position, (drawn.token_id,)))
    assert (it.tokens[-1], it.draft_length) == (7, 1)


def test_what_cannot_come_any_more_is_forgotten() -> None:
    it = chained(0.9, 0.9)
    begun(it)
    assert it.branches.growing
    it.commit(Commit("r", 1, 3, (10,)))
    assert not it.branches.growing
    begun(it)
    it.commit(Commit("r", 2, 4, (55,)))
    assert not it.branches.growing
    assert it.tokens == [1, 2, 3, 10, 55]


def test_rejections_teach_how_much_doubt_means() -> None:
    it = chained(*([0.02] * 8))
    assert it.next_outcome() is None
    for _ in range(20):
        it.branches.tested(Choice(0.02, ()), is_rejected=True)
    assert it.next_outcome() == (3, 110)


def test_branches_ride_along_where_it_is_nearly_free_and_fill_an_idle_pass() -> None:
    cost = StepCost(base_ms=1.05, per_token_ms=0.1, per_seq_ms=0.0, per_context_token_ms=0.0)

    def num_taken(cost: StepCost | None, *others: tuple[int, int]) -> int:
        room, count = Room(cost, others), 0
        while count < 99 and room.takes(1, 50):
            room.add(1, 50)
            count += 1
        return count

    assert num_taken(cost) == 11
    assert num_taken(cost, (1, 50)) == 5
    assert num_taken(cost, (1, 50), (1, 50), (1, 50), (1, 50)) == 1
    assert num_taken(replace(cost, per_token_ms=9.0)) == 1, "an idle drafter is never kept from it"
    assert num_taken(replace(cost, per_token_ms=9.0), (1, 50)) == 0
    assert (num_taken(None), num_taken(None, (1, 50))) == (4, 1)
