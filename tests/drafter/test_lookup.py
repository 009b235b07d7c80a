"""Prompt lookup against its definition, told anew by brute force."""

from __future__ import annotations

import random
from collections.abc import Sequence

from drafter.guess import Guess
from drafter.lookup import Lookup, PromptLookup


def learned(tokens: Sequence[int], max_ngram: int = 3, min_ngram: int = 1) -> Lookup:
    it = Lookup(PromptLookup(max_ngram, min_ngram))
    it.learn(tokens, len(tokens))
    return it


def guess(tokens: Sequence[int], **method: int) -> int | None:
    found = learned(tokens, **method).guess(tokens)
    return found.token_id if found else None


def by_definition(tokens: Sequence[int], max_ngram: int, min_ngram: int) -> int | None:
    for length in range(max_ngram, min_ngram - 1, -1):
        for start in range(len(tokens) - length - 1, -1, -1):
            if list(tokens[start : start + length]) == list(tokens[-length:]):
                return tokens[start + length]
    return None


def test_the_longest_ngram_wins_over_a_later_shorter_one() -> None:
    assert guess([1, 2, 3, 4, 9, 3, 5, 1, 2, 3]) == 4


def test_among_equally_long_ones_the_latest_wins() -> None:
    assert guess([1, 2, 3, 1, 2, 4, 1, 2]) == 4


def test_nothing_is_guessed_where_the_end_of_the_text_is_new_or_too_short() -> None:
    assert guess([1, 2, 3]) is None
    assert guess([1, 2, 1], min_ngram=2) is None
    assert guess([1]) is None


def test_what_is_being_drafted_is_looked_up_too_but_not_learned() -> None:
    tokens = [1, 2, 3, 4, 1, 2]
    it = learned(tokens)
    for want in (3, 4, 1, 2, 3):
        found = it.guess(tokens)
        assert found == Guess(want)
        tokens.append(want)
    assert it.num_learned == 6


def test_it_is_what_its_definition_says_however_the_tokens_come() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        max_ngram = rng.randint(1, 5)
        min_ngram = rng.randint(1, max_ngram)
        tokens: list[int] = []
        it = Lookup(PromptLookup(max_ngram, min_ngram))
        for _ in range(12):
            tokens += [rng.randrange(3) for _ in range(rng.randint(1, 4))]
            it.learn(tokens, len(tokens))
            found = it.guess(tokens)
            assert (found.token_id if found else None) == by_definition(tokens, max_ngram, min_ngram), seed
