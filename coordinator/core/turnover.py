"""When one who is turned away had better come back: from how fast the queue has been moving of late.

Pure. Everybody who is turned away is given a turn of his own, one after the other at the pace at which requests leave
the queue. So those who come back find room, and do not all come at once.
"""

from __future__ import annotations

LEAST_S, MOST_S = 0.5, 60.0  # of what a client is told
_FIRST_S = 1.0  # before two requests have been served
_WEIGHT = 0.1  # of the newest interval: about the last twenty count


class Turnover:
    """See the top of the file."""

    def __init__(self) -> None:
        self._interval_s: float | None = None  # between two requests that leave the queue
        self._served_s: float | None = None  # when the last one did
        self._turn_s = 0.0  # of the one who was turned away last

    def served(self, now_s: float) -> None:
        """A request has been given a verifier."""
        if self._served_s is not None:
            interval_s = now_s - self._served_s
            old_s = interval_s if self._interval_s is None else self._interval_s
            self._interval_s = old_s + _WEIGHT * (interval_s - old_s)
        self._served_s = now_s

    def retry_after_s(self, now_s: float) -> float:
        """Seconds from now until the next turn that nobody was promised."""
        if self._interval_s is None:
            return _FIRST_S
        self._turn_s = min(max(self._turn_s, now_s) + self._interval_s, now_s + MOST_S)
        return max(LEAST_S, self._turn_s - now_s)
