"""What the length policies of a batch need to know of its rows, and nothing else, computed for all rows at once.

Shapes: n rows, vocab tokens, d hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from drafter.policies import Need, Policy, Seen
from paceline import sampling as law

# From hidden states [n, d], the inputs of the output embedding, to the probabilities [n] that the tokens that went in
# are accepted.
AcceptProbs = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Look:
    """One row, as far as its policy wants to know it."""

    logits: Tensor  # [vocab], of the draft model itself
    entropy_nats: float = 0.0
    log_norm: float | None = None  # the logarithm of the softmax's denominator
    accept_prob: float = 1.0

    def kept(self) -> Look:
        """The same, without the rest of its batch in memory."""
        return replace(self, logits=self.logits.clone())

    def before(self, draft_length: int) -> Seen:
        """The row, with nothing drawn from it."""
        return Seen(draft_length, self.entropy_nats, accept_prob=self.accept_prob)

    def after(self, draft_length: int, token_id: int) -> Seen:
        """The row, with `token_id` drawn from it and kept as the draft's `draft_length`-th token."""
        token_prob = 1.0
        if self.log_norm is not None:
            token_prob = math.exp(float(self.logits[token_id]) - self.log_norm)
        return Seen(draft_length, self.entropy_nats, token_prob, self.accept_prob)


def look(
    policies: Sequence[Policy], logits: Tensor, hidden: Tensor | None = None, head: AcceptProbs | None = None
) -> list[Look]:
    """One `Look` a row of `logits` [n, vocab]; `hidden` [n, d] and `head` where a policy needs them."""
    entropies: dict[int, float] = {}
    log_norms: dict[int, float] = {}
    accept_probs: dict[int, float] = {}
    if rows := _rows(policies, Need.ENTROPY):
        entropies = dict(zip(rows, law.entropy_nats(logits[rows]).tolist(), strict=True))
    if rows := _rows(policies, Need.TOKEN_PROB):
        log_norms = dict(zip(rows, logits[rows].logsumexp(-1).tolist(), strict=True))
    if rows := _rows(policies, Need.ACCEPT_PROB):
        assert hidden is not None
        assert head is not None
        accept_probs = dict(zip(rows, head(hidden[rows]).tolist(), strict=True))
    return [
        Look(logits[i], entropies.get(i, 0.0), log_norms.get(i), accept_probs.get(i, 1.0)) for i in range(len(policies))
    ]


def _rows(policies: Sequence[Policy], need: Need) -> list[int]:
    return [i for i, policy in enumerate(policies) if need in policy.needs]
