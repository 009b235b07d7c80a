"""`adaedl`: stop before a token that is unlikely to be kept (Agrawal et al. 2024, "AdaEDL", arXiv 2410.18351).

A token is kept with probability 1 - TV, and 1 - sqrt(gamma H) stands for it, H the entropy of the draft row. The row
is computed and nothing is drawn from it: the test comes before the token, unlike SVIP's. The threshold moves with the
share of tokens that are kept, slowly: at most (1 - threshold_memory) * step an outcome, so that on short outputs the
threshold at the start decides. The paper's rule is for rounds and counts the kept among the drafted; with drafts that
stream ahead there is no such round, so here it is the kept among those that the verifier looked at.

The paper names no threshold to start from. Draft & Verify (Zhang et al. 2024), whose rule for the threshold this is,
says neither where the mean of the acceptance begins; here it begins at the target, and the first outcome decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from drafter.policies.policy import Need, Policy, Seen


@dataclass(slots=True)
class AdaEdl(Policy):
    """Stop before a token for which 1 - sqrt(entropy_factor * entropy) < `threshold`, or after `max_length` tokens."""

    needs: ClassVar[Need] = Need.ENTROPY

    threshold: float  # lambda; moves
    entropy_factor: float  # gamma
    target_acceptance: float  # alpha
    step: float  # epsilon
    acceptance_memory: float  # beta 1
    threshold_memory: float  # beta 2
    max_length: int
    acceptance: float = field(init=False)  # running mean of accepted / tested

    def __post_init__(self) -> None:
        self.acceptance = self.target_acceptance

    def stops_before(self, seen: Seen) -> bool:
        return 1 - math.sqrt(self.entropy_factor * seen.entropy_nats) < self.threshold

    def stops_after(self, seen: Seen) -> bool:
        return seen.draft_length >= self.max_length

    def observe(self, num_tested: int, num_accepted: int) -> None:
        """Algorithm 1: stricter below the target; else more lenient, unless a longest draft was kept whole."""
        if num_tested == 0:
            return
        memory = self.acceptance_memory
        self.acceptance = memory * self.acceptance + (1 - memory) * num_accepted / num_tested
        wanted = self.threshold
        if self.acceptance < self.target_acceptance:
            wanted += self.step
        elif num_accepted < self.max_length:
            wanted -= self.step
        memory = self.threshold_memory
        self.threshold = min(1.0, max(0.0, memory * self.threshold + (1 - memory) * wanted))
