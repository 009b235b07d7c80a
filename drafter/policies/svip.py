"""`svip`: stop after a token that was hard to guess (Zhang et al. 2024, "Draft model knows when to stop").

A token is kept with probability 1 - TV, and by Pinsker's inequality TV is at most about sqrt(c H), H the
entropy of the draft row. Their code (vanilla-sd) stops after a token with sqrt(0.15 H) > 0.3, which is H >
0.6 nats, or after 40. The token that triggers is kept and sent; only its successors are spared. The
literature has three thresholds for the same rule, so ours is the entropy itself, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drafter.policies.policy import Need, Policy, Seen


@dataclass(frozen=True, slots=True)
class Svip(Policy):
    """Stop after a token whose row's entropy exceeds `threshold_nats`, or after `max_length` tokens."""

    needs: ClassVar[Need] = Need.ENTROPY

    threshold_nats: float
    max_length: int

    def stops_after(self, seen: Seen) -> bool:
        return seen.entropy_nats > self.threshold_nats or seen.draft_length >= self.max_length
