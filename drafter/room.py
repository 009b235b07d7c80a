"""What branches may add to a pass, by its measured cost. No tensors, no clock.

While nothing else is to be drafted a pass of branches takes at most twice as long as one of a single token: a commit
may be waiting for its end. Beside a single chain they may make it half as long again, for the chain's own good; the
more chains there are that would wait for a branch of one of them, the less.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.types import StepCost

_IDLE_SHARE, _BUSY_SHARE = 1.0, 0.5  # of the pass without them; the latter divided by the chains in it
_UNMEASURED = 4  # branches in an idle pass while its cost is unknown; one beside chains
CATCH_UP = 8  # tokens that a new branch forwards in its first pass, about


class Room:
    """In one pass over `others`: the (tokens, cached tokens) of each chain in it."""

    def __init__(self, cost: StepCost | None, others: Sequence[tuple[int, int]]) -> None:
        self._cost = cost
        self._is_idle = not others
        self._num_added = 0
        self._left_ms = 0.0
        if cost:
            shapes = others or [(1, 0)]
            context = sum(cached for _, cached in shapes) / len(shapes)
            pass_ms = cost.ms(sum(tokens for tokens, _ in shapes), len(shapes), context)
            self._left_ms = pass_ms * (_IDLE_SHARE if self._is_idle else _BUSY_SHARE / len(others))

    def takes(self, num_tokens: int, num_cached: int) -> bool:
        """Whether a branch may be added. Where nothing else is to be done, one always may."""
        if self._is_idle and not self._num_added:
            return True
        if self._cost is None:
            return self._num_added < (_UNMEASURED if self._is_idle else 1)
        return self._added_ms(num_tokens, num_cached) <= self._left_ms

    def add(self, num_tokens: int, num_cached: int) -> None:
        self._num_added += 1
        self._left_ms -= self._added_ms(num_tokens, num_cached)

    def _added_ms(self, num_tokens: int, num_cached: int) -> float:
        return self._cost.ms(num_tokens, 1, num_cached) - self._cost.base_ms if self._cost else 0.0
