"""Suffix decoding: the longest context, the most frequent continuation, and a store that keeps to its bounds."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from drafter.guess import Guess
from drafter.suffix import MAX_PLACES, Store, Suffix, SuffixDecoding
from paceline.length_policy import LengthPolicy
from paceline.types import OpenDraft, Rule, SamplingParams, Tokens


def opened(tokens: Tokens, rule: Rule = Rule.MATCH, seed: int | None = None, num_prompt_tokens: int = 0) -> OpenDraft:
    sampling = SamplingParams(temperature=1, seed=seed)
    return OpenDraft("r", 0, tokens, sampling, rule, 1, LengthPolicy(), 1, 100, (), num_prompt_tokens)


def begun(method: SuffixDecoding, tokens: Sequence[int], *, peer: int = 1, **ask: object) -> Suffix:
    it = method.begin(peer, opened(tuple(tokens), **ask))  # type: ignore[arg-type]
    it.learn(tokens, len(tokens))
    return it


def next_ids(tokens: Sequence[int], max_ngram: int, min_ngram: int) -> list[int]:
    """What followed the longest match, by definition, the latest first."""
    for length in range(min(max_ngram, len(tokens)), min_ngram - 1, -1):
        starts = range(len(tokens) - length - 1, -1, -1)
        found = [tokens[at + length] for at in starts if tokens[at : at + length] == tokens[-length:]]
        if found:
            return found
    return []


def test_the_most_frequent_continuation_of_the_longest_context_is_guessed() -> None:
    tokens = [1, 2, 3, 8, 1, 2, 4, 9, 1, 2, 3, 7, 1, 2]
    found = begun(SuffixDecoding(max_ngram=2), tokens).guess(tokens)
    assert found == Guess(3, (2, 1))
    assert found.probability == pytest.approx(2 / 3)
    assert found.entropy_nats == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    longer = [5, 1, 2, 4, 8, 1, 2, 3, 9, 1, 2, 3, 5, 1, 2]
    assert begun(SuffixDecoding(max_ngram=3), longer).guess(longer) == Guess(4), "5 stood before it only there"


def test_it_is_what_its_definition_says() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        method = SuffixDecoding(max_ngram=rng.randint(2, 6), min_ngram=rng.randint(1, 2))
        tokens = [rng.randrange(3) for _ in range(rng.randint(2, 40))]
        found, want = begun(method, tokens).guess(tokens), next_ids(tokens, method.max_ngram, method.min_ngram)
        if not want:
            assert found is None
            continue
        ranked = Counter(want).most_common()
        assert found == Guess(ranked[0][0], tuple(count for _, count in ranked)), seed


def test_a_guess_looks_at_a_bounded_number_of_places() -> None:
    tokens = [1, 2, 3] * 500 + [1, 2]
    found = begun(SuffixDecoding(max_ngram=2), tokens).guess(tokens)
    assert found == Guess(3, (MAX_PLACES,))


def test_a_long_match_is_found_though_its_last_token_stands_everywhere() -> None:
    tokens = [1, 2, 3, 4, 0, 9] + [7, 0, 8, 0] * 100 + [1, 2, 3, 4, 0]
    assert begun(SuffixDecoding(), tokens).guess(tokens) == Guess(9)


def test_nothing_of_other_requests_is_seen_unless_sharing_was_asked_for() -> None:
    alone = SuffixDecoding()
    begun(alone, [1, 2, 3, 4], num_prompt_tokens=1).finish([1, 2, 3, 4], 4)
    assert begun(alone, [1, 2]).guess([1, 2]) is None
    shared = SuffixDecoding(max_shared_tokens=10)
    begun(shared, [1, 2, 3, 4], num_prompt_tokens=1).finish([1, 2, 3, 4], 4)
    assert begun(shared, [1, 2]).guess([1, 2]) == Guess(3)
    assert begun(shared, [1, 2], peer=2).guess([1, 2]) is None, "another coordinator's"
    shared.forget(1)
    assert begun(shared, [1, 2]).guess([1, 2]) is None, "its stream has ended"


def test_only_what_is_committed_is_shared_and_of_the_prompt_only_a_context() -> None:
    method = SuffixDecoding(max_ngram=2, max_shared_tokens=100)
    tokens = [5, 6, 7, 8, 1, 2, 3, 4]
    begun(method, tokens[:7], num_prompt_tokens=6).finish(tokens, 7)
    assert begun(method, [5, 6]).guess([5, 6]) is None
    assert begun(method, [1, 2]).guess([1, 2]) == Guess(3)
    assert begun(method, [2, 3]).guess([2, 3]) is None, "4 was drafted, not committed"


def test_the_longer_context_wins_and_counts_are_added_where_both_are_as_long() -> None:
    method = SuffixDecoding(max_shared_tokens=100)
    begun(method, [9, 1, 2, 4], num_prompt_tokens=1).finish([9, 1, 2, 4], 4)
    begun(method, [9, 1, 2, 4], num_prompt_tokens=1).finish([9, 1, 2, 4], 4)
    own = [1, 2, 3, 7, 9, 1, 2]
    assert begun(method, own).guess(own) == Guess(4, (2,))
    own = [1, 2, 3, 7, 1, 2]
    assert begun(method, own).guess(own) == Guess(4, (2, 1))


@pytest.mark.parametrize(("rule", "is_shared"), [(Rule.MATCH, True), (Rule.COUPLED, True), (Rule.BLOCK, False)])
def test_a_seed_that_may_be_given_twice_never_meets_what_its_coins_decided(rule: Rule, is_shared: bool) -> None:
    """Under rejection sampling a draft must know nothing of the coins that judge it: another answer with the same
    seed does. Where drafts are compared with the target's own sample it does not matter."""
    method = SuffixDecoding(max_shared_tokens=100)
    begun(method, [1, 2, 3, 4], num_prompt_tokens=1).finish([1, 2, 3, 4], 4)
    assert (begun(method, [1, 2], rule=rule, seed=7).guess([1, 2]) is not None) == is_shared
    assert begun(method, [1, 2], rule=rule).guess([1, 2]) == Guess(3), "a seed drawn anew is known to nobody"


def test_the_store_keeps_to_its_bound_and_forgets_the_oldest() -> None:
    store = Store(2, max_tokens=9)
    for first in (10, 20, 30):
        store.add((first, first + 1, first + 2, first + 3))
    assert store.num_tokens == 8
    assert store.longest([10, 11], 8).next_ids == []
    assert store.longest([20, 21], 8).next_ids == [22]
    store.add(tuple(range(100, 200)))
    assert store.num_tokens == 9, "of a text that is too long its end is kept"
    assert store.longest([30, 31], 8).next_ids == []
    assert store.longest([197, 198], 8).next_ids == [199]


def test_what_is_forgotten_leaves_nothing_behind() -> None:
    rng = random.Random(1)
    store = Store(2, max_tokens=300)
    for _ in range(200):
        store.add(tuple(rng.randrange(4) for _ in range(rng.randint(1, 200))))
        kept = {id(text) for text in store._texts}
        places = [place for places in store._places._after.values() for place in places]
        assert {id(text) for text, _ in places} <= kept
        assert len(places) <= 2 * store.num_tokens <= 600, "a place for each of two lengths"
