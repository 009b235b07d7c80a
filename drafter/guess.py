"""The seam of the drafters without a model: what may follow, guessed from tokens that were there before.

A guess is a function of tokens, with no chance in it. So its law is one-hot, and whatever is decided by looking at it
(to draft nothing here, to end a draft before it) is decided by the prefix alone, which no rule minds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from drafter.policies import Seen
from paceline.types import OpenDraft


@dataclass(frozen=True, slots=True)
class Guess:
    """The likeliest next token, and how often each continuation of the same context was seen, its own first."""

    token_id: int
    counts: tuple[int, ...] = (1,)

    @property
    def probability(self) -> float:
        """The token's share of what followed."""
        return self.counts[0] / sum(self.counts)

    @property
    def entropy_nats(self) -> float:
        """Of the empirical distribution of what followed; 0 if it was always the same."""
        total = sum(self.counts)
        return -sum(count / total * math.log(count / total) for count in self.counts)

    def before(self, draft_length: int) -> Seen:
        """What a length policy may know of it before it is taken."""
        return Seen(draft_length, self.entropy_nats)

    def after(self, draft_length: int) -> Seen:
        """And when it is, as the draft's `draft_length`-th token."""
        return Seen(draft_length, self.entropy_nats, self.probability)


class Guesser(Protocol):
    """One request's. `tokens` is its chain, committed tokens first: always the same list, which others change."""

    num_learned: int

    def learn(self, tokens: Sequence[int], end: int) -> None:
        """Take in `tokens` from `num_learned` up to `end`; they are committed and stay as they are."""

    def guess(self, tokens: Sequence[int]) -> Guess | None:
        """What follows `tokens`, or None if nothing like their end was there before."""

    def finish(self, tokens: Sequence[int], end: int) -> None:
        """The request has ended with the committed `tokens` up to `end`."""


class Method(Protocol):
    """How to guess; makes the guessers. A peer is a coordinator's stream."""

    def begin(self, peer: int, ask: OpenDraft) -> Guesser: ...

    def forget(self, peer: int) -> None:
        """The stream has ended: nothing that came over it is kept."""
