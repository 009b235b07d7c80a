"""The drafter's chain: it streams ahead, and learns from commits whether it still stands."""

from __future__ import annotations

import itertools

import pytest

from drafter.session import Outcome, Session
from paceline.length_policy import LengthPolicy
from paceline.types import Commit, Draft, OpenDraft, Pass, Rule, SamplingParams


def opened(window: int = 2, end: int = 100, stop_token_ids: tuple[int, ...] = (), epoch: int = 0) -> OpenDraft:
    sampling = SamplingParams(temperature=0)
    policy = LengthPolicy.of("fixed", {"length": 2})
    return OpenDraft("r", epoch, (1, 2, 3), sampling, Rule.MATCH, 1, policy, window, end, stop_token_ids)


def draft(it: Session[None], *tokens: int) -> Draft:
    for i, token in enumerate(tokens):
        assert it.wants_token()
        complete = it.push(token, stop=i == len(tokens) - 1)
    assert complete
    return it.send(None)


def test_it_streams_until_the_window_is_full() -> None:
    it: Session[None] = Session(opened(window=2))
    first, second = draft(it, 10, 11), draft(it, 12, 13)
    assert (first.start, second.start) == (3, 5)
    assert first.is_open
    assert not it.wants_token()
    it.commit(Commit("r", 0, 3, (10, 11)))
    assert it.wants_token(), "the first is verified, so there is room"


def test_with_a_window_of_one_drafts_are_closed() -> None:
    assert not draft(Session(opened(window=1)), 10, 11).is_open


def test_a_commit_that_agrees_keeps_the_run() -> None:
    it: Session[None] = Session(opened())
    draft(it, 10, 11)
    it.push(12, stop=False)
    it.commit(Commit("r", 1, 3, (10, 11)))
    assert it.epoch == 0
    assert (it.send(None).start, it.tokens) == (5, [1, 2, 3, 10, 11, 12])


def test_a_commit_that_disagrees_starts_a_new_run_and_keeps_the_cache_that_agrees() -> None:
    it: Session[None] = Session(opened())
    draft(it, 10, 11)
    it.computed = 5
    it.commit(Commit("r", 1, 3, (10, 99)))
    assert (it.tokens, it.epoch, it.computed) == ([1, 2, 3, 10, 99], 1, 4)
    assert draft(it, 12, 13).start == 5


def test_a_bonus_beyond_the_chain_starts_a_new_run_after_it() -> None:
    it: Session[None] = Session(opened(window=1))
    draft(it, 10, 11)
    it.commit(Commit("r", 1, 3, (10, 11, 12)))
    redraft = draft(it, 13, 14)
    assert (redraft.start, redraft.epoch) == (6, 1)


def test_nothing_is_drafted_after_an_end_of_sequence_token() -> None:
    it: Session[None] = Session(opened(stop_token_ids=(0,)))
    assert it.push(0, stop=False), "the draft is complete with it"
    assert not it.send(None).is_open
    assert not it.wants_token()
    it.commit(Commit("r", 1, 3, (7,)))
    assert it.wants_token(), "the target decided otherwise"


def test_nothing_is_drafted_beyond_the_end() -> None:
    it: Session[None] = Session(opened(end=4))
    assert it.push(10, stop=False)
    assert not it.send(None).is_open
    assert not it.wants_token()


def test_an_open_that_is_repeated_sends_what_is_unverified_again() -> None:
    it: Session[None] = Session(opened())
    first, second = draft(it, 10, 11), draft(it, 12, 13)
    assert it.reopen(opened()) == [first, second]
    it.commit(Commit("r", 0, 3, (10, 11)))
    assert it.reopen(opened()) == [second]


def test_a_commit_that_leaves_a_gap_is_ignored() -> None:
    it: Session[None] = Session(opened())
    it.commit(Commit("r", 1, 9, (10,)))
    assert it.tokens == [1, 2, 3]


def test_a_draft_after_which_nothing_is_found_is_closed_and_ends_the_run() -> None:
    it: Session[None] = Session(opened(window=3))
    it.push(10, stop=True)
    it.exhaust()
    assert not it.send(None).is_open
    assert not it.wants_token()
    assert it.passes() == [], "a verdict is on its way, which says more"
    it.commit(Commit("r", 1, 3, (10, 11)))
    assert it.wants_token(), "after the bonus something may be found"


def test_with_nothing_in_flight_and_nothing_found_it_passes_and_says_so_again_when_opened_again() -> None:
    it: Session[None] = Session(opened(epoch=4))
    it.exhaust()
    assert it.passes() == it.passes() == [Pass("r", 4, 3)]
    assert it.reopen(opened(epoch=4)) == [Pass("r", 4, 3)]
    it.commit(Commit("r", 5, 3, (10,)))
    assert it.passes() == it.reopen(opened()) == []
    assert it.wants_token()


def test_after_its_whole_chain_is_committed_it_looks_again() -> None:
    it: Session[None] = Session(opened(window=3))
    draft(it, 10, 11)
    it.push(12, stop=True)
    it.exhaust()
    it.send(None)
    it.commit(Commit("r", 1, 3, (10, 11)))
    assert not it.wants_token(), "the last draft is in flight"
    it.commit(Commit("r", 1, 5, (12,)))
    assert it.wants_token()


def outcome_of(it: Session[None], start: int, *tokens: int) -> tuple[int, int]:
    """Tested and accepted by a commit of these tokens."""
    it.commit(Commit("r", it.epoch + 1, start, tokens))
    outcome = it.take_outcome()
    assert it.take_outcome() == Outcome(), "it is told once"
    return outcome.num_tested, outcome.num_accepted


def chained() -> Session[None]:
    """The chain 10 … 14 from position 3: two drafts of two are sent, the fifth token is of a draft being made."""
    it: Session[None] = Session(opened(window=3))
    draft(it, 10, 11)
    draft(it, 12, 13)
    it.push(14, stop=False)
    return it


@pytest.mark.parametrize("agrees", list(itertools.product([True, False], repeat=6)))
def test_a_commit_tests_what_was_sent_up_to_the_first_token_that_disagrees(agrees: tuple[bool, ...]) -> None:
    """Of each pattern every commit of one or more tokens; the sixth lies beyond the chain."""
    for length in range(1, 7):
        committed = [10 + i if same else 99 for i, same in enumerate(agrees[:length])]
        sent = agrees[: min(length, 4)]
        num_accepted = next((i for i, same in enumerate(sent) if not same), len(sent))
        assert outcome_of(chained(), 3, *committed) == (min(num_accepted + 1, len(sent)), num_accepted)


def test_outcomes_of_one_chain_add_up_over_its_commits() -> None:
    for cut in range(1, 4):
        it = chained()
        whole = (10, 11, 12, 99)
        first, second = outcome_of(it, 3, *whole[:cut]), outcome_of(it, 3 + cut, *whole[cut:])
        assert (first[0] + second[0], first[1] + second[1]) == (4, 3)


def test_a_token_is_tested_once_however_often_it_is_committed() -> None:
    it = chained()
    assert outcome_of(it, 3, 10, 11) == (2, 2)
    assert outcome_of(it, 3, 10, 11) == (0, 0)
    assert outcome_of(it, 3, 10, 11, 12) == (1, 1)
    it.reopen(opened(window=3))
    assert it.take_outcome() == Outcome()


def test_what_the_target_decoded_before_a_draft_was_sent_is_no_test_of_it() -> None:
    it: Session[None] = Session(opened())
    it.push(10, stop=False)
    assert outcome_of(it, 3, 10) == (0, 0)
    it = Session(opened())
    it.push(10, stop=False)
    assert outcome_of(it, 3, 99, 98) == (0, 0)


def test_a_run_that_was_given_up_is_not_tested_any_more() -> None:
    it = chained()
    assert outcome_of(it, 3, 99) == (1, 0)
    assert outcome_of(it, 4, 11) == (0, 0), "the token at that place was of the run before"


def test_a_commit_that_leaves_a_gap_tests_nothing_and_one_within_the_chain_tests_its_own_tokens() -> None:
    it = chained()
    assert outcome_of(it, 99, 10) == (0, 0)
    assert outcome_of(it, 4, 11, 12) == (2, 2), "the commit before it was lost"
