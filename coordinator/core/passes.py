"""How long a verifier's forward pass takes, by the tokens in it: measured, never assumed flat.

Verdicts say how many tokens their pass held and what it took. Means are kept for sizes a fifth apart, and read between
them on a straight line; beyond what has been seen the worker's own estimate gives the shape.
"""

from __future__ import annotations

import bisect
import math

from coordinator.core.goodput import Goodput
from paceline.types import StepCost

_SIZES_PER_OCTAVE = 4
_WEIGHT = 0.2  # of the newest value, so that a change of load shows within ten passes


class PassTimes:
    """One verifier's."""

    def __init__(self, cost: StepCost | None = None) -> None:
        self._cost = cost
        self.goodput = Goodput()
        self._sizes: list[int] = []  # sorted
        self._means: list[tuple[float, float]] = []  # (tokens, seconds), one a size
        self._last = (0, 0.0)  # pass seen

    def seen(self, num_tokens: int, seconds: float) -> None:
        """A verdict has told of a pass; every request in it has one that does, and it counts once."""
        if (num_tokens, seconds) == self._last:
            return
        self._last = (num_tokens, seconds)
        size = round(_SIZES_PER_OCTAVE * math.log2(num_tokens))
        at = bisect.bisect_left(self._sizes, size)
        if at == len(self._sizes) or self._sizes[at] != size:
            self._sizes.insert(at, size)
            self._means.insert(at, (num_tokens, seconds))
            return
        tokens, mean_s = self._means[at]
        self._means[at] = (tokens + _WEIGHT * (num_tokens - tokens), mean_s + _WEIGHT * (seconds - mean_s))

    def opened(self, num_tokens: int, num_seqs: int) -> None:
        """A prompt is to be read, in passes with the tokens of `num_seqs` requests."""
        alone_s, both_s = self.seconds(num_seqs), self.seconds(num_seqs + num_tokens)
        self.goodput.prompts_s += both_s - alone_s if alone_s and both_s else 0.0

    def seconds(self, num_tokens: float) -> float | None:
        """A pass over so many tokens; None if nothing is known yet."""
        if not self._means:
            return self._prior(num_tokens) if self._cost else None
        at = bisect.bisect_left(self._means, (num_tokens,))
        if 0 < at < len(self._means):
            (low, low_s), (high, high_s) = self._means[at - 1 : at + 1]
            return low_s + (high_s - low_s) * (num_tokens - low) / (high - low)
        tokens, mean_s = self._means[min(at, len(self._means) - 1)]
        return mean_s * self._prior(num_tokens) / self._prior(tokens)

    def _prior(self, num_tokens: float) -> float:
        if self._cost is None:
            return 1.0
        return max(1e-6, self._cost.ms(1, 1, 0) + self._cost.per_token_ms * (num_tokens - 1)) / 1e3
