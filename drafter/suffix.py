"""Suffix decoding: what most often followed the longest context seen before (Oliaro et al. 2024, "SuffixDecoding").

The paper keeps suffix trees of what was generated and walks them by frequency. Here the same question is answered from
places: short n-grams know where they stood lately; there the context is compared backwards, the longest match wins,
and what followed in its places is counted. So memory grows with the tokens and not with the depth, forgetting a text is
cheap, and a guess costs a bounded number of comparisons.

A request's own tokens are always searched. What earlier requests of the same coordinator wrote is searched if sharing
was asked for: then how fast one client's answer comes can tell what was written for another (SECURITY.md).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from drafter.guess import Guess
from paceline.types import OpenDraft, Tokens

MAX_PLACES = 64  # of an n-gram, the latest ones: a frequent one has thousands
LONG_KEY = 4  # tokens: long enough that the places of a long match are hardly ever among too many


class Match(NamedTuple):
    """The longest match, and what followed it, the latest first."""

    length: int
    next_ids: list[int]


class Places:
    """Where each n-gram of two lengths stood in texts: the positions after it, the latest last.

    A match of `LONG_KEY` tokens or more is found by the longer key, others by one of `min_length` tokens.
    """

    def __init__(self, min_length: int) -> None:
        self._sizes = sorted({min_length, max(min_length, LONG_KEY)})
        self._after: dict[Tokens, list[tuple[Sequence[int], int]]] = {}

    def add(self, text: Sequence[int], start: int, end: int) -> None:
        """Take in the tokens of `text` from `start` to `end`, as what follows the tokens before them."""
        for size in self._sizes:
            for at in range(max(start, size), end):
                places = self._after.setdefault(tuple(text[at - size : at]), [])
                places.append((text, at))
                if len(places) > MAX_PLACES:
                    del places[0]

    def forget(self, text: Sequence[int]) -> None:
        """Remove what is left of the text that was added first."""
        for size in self._sizes:
            for at in range(size, len(text)):
                key = tuple(text[at - size : at])
                places = self._after.get(key)
                if places and places[0][0] is text:
                    del places[0]
                    if not places:
                        del self._after[key]

    def longest(self, tokens: Sequence[int], max_length: int) -> Match:
        """Of the places where the end of `tokens` stood, those where most of it did, up to `max_length` tokens."""
        best = Match(0, [])
        most = min(max_length, len(tokens))
        size, places = self._nearest(tokens, most)
        for text, at in reversed(places):
            length = size
            while length < min(most, at) and text[at - 1 - length] == tokens[-1 - length]:
                length += 1
            if length > best.length:
                best = Match(length, [text[at]])
            elif length == best.length:
                best.next_ids.append(text[at])
        return best

    def _nearest(self, tokens: Sequence[int], most: int) -> tuple[int, Sequence[tuple[Sequence[int], int]]]:
        """The longest key that is known, and its places."""
        for size in reversed(self._sizes):
            if size <= most and (places := self._after.get(tuple(tokens[len(tokens) - size :]))):
                return size, places
        return 0, ()


class Store:
    """What ended requests have written: `max_tokens` at most, the oldest texts go first."""

    def __init__(self, min_length: int, max_tokens: int) -> None:
        self.num_tokens = 0
        self._max_tokens = max_tokens
        self._texts: deque[Tokens] = deque()
        self._places = Places(min_length)

    def add(self, text: Tokens) -> None:
        text = text[-self._max_tokens :]
        self._texts.append(text)
        self._places.add(text, 0, len(text))
        self.num_tokens += len(text)
        while self.num_tokens > self._max_tokens:
            oldest = self._texts.popleft()
            self._places.forget(oldest)
            self.num_tokens -= len(oldest)

    def longest(self, tokens: Sequence[int], max_length: int) -> Match:
        return self._places.longest(tokens, max_length)


@dataclass(frozen=True, slots=True)
class SuffixDecoding:
    """Contexts of `min_ngram` to `max_ngram` tokens are looked up, in the request and in what earlier ones left."""

    max_ngram: int = 24  # as deep as vLLM's suffix trees are by default
    min_ngram: int = 1
    max_shared_tokens: int = 0  # of each stream, kept for its later requests; 0 = nothing is shared
    _stores: dict[int, Store] = field(default_factory=dict, init=False, repr=False)

    def begin(self, peer: int, ask: OpenDraft) -> Suffix:
        """A request that brings its own seed to a rule that tests drafts by coins gets nothing of others.

        If the seed was given before, those coins have been thrown already, and what they led to may stand in the
        store: the draft would not be independent of the coins that judge it.
        """
        if not self.max_shared_tokens or (ask.rule.needs_rows and ask.sampling.seed is not None):
            return Suffix(self, ask, None)
        store = self._stores.setdefault(peer, Store(self.min_ngram, self.max_shared_tokens))
        return Suffix(self, ask, store)

    def forget(self, peer: int) -> None:
        self._stores.pop(peer, None)


class Suffix:
    """One request's places, and those it may share."""

    def __init__(self, method: SuffixDecoding, ask: OpenDraft, store: Store | None) -> None:
        self.num_learned = 0
        self._method, self._store = method, store
        self._num_prompt_tokens = ask.num_prompt_tokens or len(ask.token_ids)
        self._own = Places(method.min_ngram)

    def learn(self, tokens: Sequence[int], end: int) -> None:
        self._own.add(tokens, self.num_learned, end)
        self.num_learned = max(self.num_learned, end)

    def guess(self, tokens: Sequence[int]) -> Guess | None:
        found = self._own.longest(tokens, self._method.max_ngram)
        if self._store:
            shared = self._store.longest(tokens, self._method.max_ngram)
            if shared.length == found.length:
                found.next_ids.extend(shared.next_ids)
            found = max(found, shared, key=lambda match: match.length)  # the request's own, if both are as long
        if not found.next_ids:
            return None
        ranked = Counter(found.next_ids).most_common()  # among equals the latest
        return Guess(ranked[0][0], tuple(count for _, count in ranked))

    def finish(self, tokens: Sequence[int], end: int) -> None:
        """Share what was written; of the prompt only as much as a context needs."""
        start = max(0, self._num_prompt_tokens - self._method.max_ngram)
        if self._store and end > self._num_prompt_tokens:
            self._store.add(tuple(tokens[start:end]))
