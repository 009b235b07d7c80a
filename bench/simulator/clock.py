"""Virtual time: actions in the order of their times, ties in the order in which they were planned.

There is a budget of events, so that a world which would never end is an error and not a hanging process.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class BudgetSpent(Exception):
    """More events than the budget has."""


class Clock:
    """See the top of the file."""

    def __init__(self, budget: int) -> None:
        self.now_s = 0.0
        self.budget = budget
        self.num_events = 0
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def at(self, delay_s: float, action: Callable[..., object], *arguments: Any) -> None:
        """Call `action(*arguments)` after `delay_s`, which is not negative."""
        self.at_time(self.now_s + delay_s, action, *arguments)

    def at_time(self, time_s: float, action: Callable[..., object], *arguments: Any) -> None:
        """Call `action(*arguments)` at `time_s`, which has not passed."""
        heapq.heappush(self._heap, (time_s, next(self._order), action, arguments))

    def advance(self) -> bool:
        """Run the next action; False if there is none. Raises BudgetSpent."""
        if not self._heap:
            return False
        self.num_events += 1
        if self.num_events > self.budget:
            raise BudgetSpent(f"{self.budget} events spent at {self.now_s:.3f} s")
        self.now_s, _, action, arguments = heapq.heappop(self._heap)
        action(*arguments)
        return True
