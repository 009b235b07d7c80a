"""What one request's numbers mean."""

from __future__ import annotations

from coordinator.core.metrics import RequestMetrics
from paceline.types import Branch, Draft, Source, Verdict
from paceline.wire import coordinator_pb2

A, R, S = Source.ACCEPTED, Source.RECOVERED, Source.SELF_DECODED


def metrics() -> RequestMetrics:
    return RequestMetrics("pearl", "match", "fixed:length=4", 4, num_prompt_tokens=3)


def test_accepted_tokens_are_counted_by_their_place_in_the_draft_they_come_from() -> None:
    """Two drafts, judged as one chain: of the first the end is new, of the second the beginning was right."""
    it = metrics()
    it.settled(12, (A, A, A, R), [Draft("a", 0, 10, (1, 2, 3, 4)), Draft("a", 0, 14, (5, 6, 7))])
    assert it.accepted_at == {2: 1, 3: 1, 0: 1}
    it.settled(16, (R,), [])
    assert it.accepted_at.total() == 3


def test_only_what_a_verdict_judged_counts_as_judged() -> None:
    """As vLLM counts draft tokens: not what is still in flight, nor what was committed before the draft's turn came."""
    it = metrics()
    flight = [Draft("a", 2, 10, (1, 2, 3, 4)), Draft("a", 2, 14, (5, 6, 7)), Draft("a", 2, 17, (8, 9))]
    it.verified(Verdict("a", 2, 12, (3, 4, 5, 0), (A, A, A, R), num_tested=4, num_drafts=2), flight, 0.0)
    assert (it.num_drafts, it.num_judged_tokens, it.num_tested_tokens) == (2, 5, 4)
    it.verified(Verdict("a", 2, 16, (0,), (S,)), flight[2:], 0.0)  # a decode
    assert it.num_judged_tokens == 5
    it.verified(Verdict("a", 2, 17, (8, 0), (A, R), num_tested=2, num_drafts=1), [Draft("a", 3, 17, (1,) * 9)], 0.0)
    assert it.num_judged_tokens == 7  # of the new drafter's draft nothing was judged


def test_drafts_judged_are_counted_by_the_tokens_they_brought() -> None:
    """Of two drafts judged as one chain each has its own count; forgotten ones have what no other draft brought."""
    it = metrics()
    flight = [Draft("a", 2, 10, (1, 2, 3, 4)), Draft("a", 2, 14, (5, 6, 7)), Draft("a", 2, 17, (8, 9))]
    for draft in flight:
        it.drafted(draft, 0.0)
    assert it.acceptance_histogram == [0, 0, 0, 0, 0]
    chain = Verdict("a", 2, 12, (3, 4, 5, 0), (A, A, A, R), num_tested=4, num_drafts=2)
    it.judged(chain, 12, chain.sources, flight)
    assert it.acceptance_histogram == [0, 1, 1, 0, 0]
    it.judged(Verdict("a", 2, 16, (0,), (S,)), 16, (S,), flight)  # a decode
    forgotten = Verdict("a", 2, 17, (8, 9, 0), (A, A, R), num_tested=3, num_drafts=2)
    it.judged(forgotten, 17, forgotten.sources, [Draft("a", 3, 17, (1,) * 9)])
    assert it.acceptance_histogram == [1, 1, 2, 0, 0]


def test_a_client_is_told_everything_that_the_wire_has_a_name_for() -> None:
    wire = coordinator_pb2.RequestMetrics
    assert set(metrics().figures()) == {field.name for field in wire.DESCRIPTOR.fields}
    assert wire(**metrics().figures()).mode == "pearl"


def test_what_branches_cost_the_drafter_is_told_beside_what_drafts_do() -> None:
    it = metrics()
    it.drafted(Draft("a", 0, 3, (1, 2), draft_ms=4.0), 1.0)
    taken, wasted = (Branch(outcome, Draft("a", 0, 4, (3, 4), draft_ms=3.0)) for outcome in (7, 8))
    it.branched(taken)
    it.branched(wasted)
    it.promoted(taken.draft, 1.1)
    told = it.figures()
    assert (told["draft_ms"], told["branch_draft_ms"]) == (7.0, 6.0)
    assert (told["num_branches"], told["num_wasted_branch_tokens"]) == (2, 2)
