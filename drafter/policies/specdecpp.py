"""`specdecpp`: stop when a trained head expects a rejection (Huang et al. 2024, "SpecDec++", arXiv 2405.19715).

The best policy of the paper's decision process is a threshold on the probability that some token of the draft is
rejected, 1 - the product of what the head says of each. The head reads the hidden state of the pass whose input is
the token, which is the pass that yields the next one: as in the paper's code, that next token is drawn and kept, since
its row has been paid for, and is not in the product. So a draft has at least two tokens unless `max_length` is 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from drafter.policies.policy import Need, Policy, Seen


@dataclass(slots=True)
class SpecDecPlusPlus(Policy):
    """Stop once the draft is kept whole with a probability below 1 - `threshold`, or after `max_length` tokens."""

    needs: ClassVar[Need] = Need.ACCEPT_PROB

    threshold: float
    max_length: int
    _kept: float = field(default=1.0, init=False)  # probability that all tokens but the last are kept

    def stops_after(self, seen: Seen) -> bool:
        # What stands before a draft's first token is not of this draft.
        self._kept = self._kept * seen.accept_prob if seen.draft_length > 1 else 1.0
        return 1 - self._kept > self.threshold or seen.draft_length >= self.max_length
