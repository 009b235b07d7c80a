"""`svip`: stop after a token that was hard to guess (Zhang et al. 2024, "Draft model knows when to stop").

A token is kept with probability 1 - TV, and by Pinsker's inequality TV is at most about sqrt(c H), H the
entropy of the draft row. Their code (vanilla-sd) stops after a token with sqrt(0.15 H) > 0.3, which is H >
0.6 nats, or after 40. The token that triggers is kept and sent; only its successors are spared. The
literature has three thresholds for the same rule, so ours is the entropy itself, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Svip:
    """Stop after a token whose row's entropy exceeds `threshold_nats`, or after `max_length` tokens."""

    threshold_nats: float
    max_length: int

    @property
    def needs_entropy(self) -> bool:
        return True

    def stops(self, draft_length: int, entropy_nats: float) -> bool:
        return entropy_nats > self.threshold_nats or draft_length >= self.max_length

    def observe(self, num_tested: int, num_accepted: int) -> None:
        """Outcomes change nothing."""
