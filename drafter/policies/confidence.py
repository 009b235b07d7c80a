"""`confidence`: stop after a token that the drafter itself gave little (transformers, ConfidenceCriteria).

The rule of Draft & Verify (Zhang et al. 2024) with transformers' fixed threshold, `assistant_confidence_threshold`,
and its cap, `num_assistant_tokens`. The token is kept and sent, only its successors are spared, which is what keeps
the rule exact although it looks at a token's own probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drafter.policies.policy import Need, Policy, Seen


@dataclass(frozen=True, slots=True)
class Confidence(Policy):
    """Stop after a token whose own probability is below `threshold`, or after `max_length` tokens."""

    needs: ClassVar[Need] = Need.TOKEN_PROB

    threshold: float
    max_length: int

    def stops_after(self, seen: Seen) -> bool:
        return seen.token_prob < self.threshold or seen.draft_length >= self.max_length
