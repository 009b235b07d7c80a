"""Intervals by resampling: prompts are drawn again, with what was measured on each of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

NUM_RESAMPLES = 2000  # the 95 % bounds then move by a hundredth of the interval's width from seed to seed
T = TypeVar("T")


def interval(items: Sequence[T], statistic: Callable[[Sequence[T]], float], *, seed: int = 0) -> tuple[float, float]:
    """The bounds of `statistic` over 95 % of the resamples of `items` (percentile bootstrap)."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(items), size=(NUM_RESAMPLES, len(items)))
    values = [statistic([items[i] for i in indices]) for indices in drawn]
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
