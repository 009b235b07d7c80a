"""Prompt lookup: what followed the last time that the text ended like this (Saxena 2023, "Prompt lookup decoding").

Of the n-grams that the tokens so far end in, the longest one that occurred before in the same request is looked up, and
what followed its latest occurrence is proposed. Good where the output repeats the prompt or itself: summaries, edits,
quotations, code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drafter.guess import Guess
from paceline.types import OpenDraft, Tokens


@dataclass(frozen=True, slots=True)
class PromptLookup:
    """N-grams of `max_ngram` tokens down to `min_ngram` are looked up."""

    max_ngram: int = 5
    min_ngram: int = 1

    def begin(self, peer: int, ask: OpenDraft) -> Lookup:
        return Lookup(self)

    def forget(self, peer: int) -> None:
        """Nothing is kept beyond a request."""


class Lookup:
    """One request's n-grams. A token costs `max_ngram` steps, to learn and to guess."""

    def __init__(self, method: PromptLookup) -> None:
        self.num_learned = 0
        self._method = method
        self._after: dict[Tokens, int] = {}  # an n-gram: the position after its latest occurrence

    def learn(self, tokens: Sequence[int], end: int) -> None:
        for at in range(self.num_learned, end):
            for length in range(self._method.min_ngram, min(self._method.max_ngram, at) + 1):
                self._after[tuple(tokens[at - length : at])] = at
        self.num_learned = max(self.num_learned, end)

    def guess(self, tokens: Sequence[int]) -> Guess | None:
        for length in range(min(self._method.max_ngram, len(tokens)), self._method.min_ngram - 1, -1):
            at = self._after.get(tuple(tokens[-length:]))
            if at is not None:
                return Guess(tokens[at])
        return None

    def finish(self, tokens: Sequence[int], end: int) -> None:
        """What was learned goes with the request."""
