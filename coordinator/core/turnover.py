"""When one who is turned away had better come back: from how fast the queue has been moving of late.

Pure. Everybody who is turned away is given a turn of his own, one after the other at the pace at which requests leave
the queue. So those who come back find room, and do not all come at once.
"""

from __future__ import annotations

from collections import deque

LEAST_S, MOST_S = 0.5, 60.0  # of what a client is told
_FIRST_S = 1.0  # before two requests have been served
_NUM_SEEN = 32  # requests that the pace is measured over


class Turnover:
    """See the top of the file."""

    def __init__(self) -> None:
        self._served_s: deque[float] = deque(maxlen=_NUM_SEEN)  # when requests left the queue
        self._turn_s = 0.0  # of the one who was turned away last

    def served(self, now_s: float) -> None:
        """A request has been given a verifier."""
        self._served_s.append(now_s)

    def retry_after_s(self, now_s: float) -> float:
        """Seconds from now until the next turn that nobody was promised."""
        if len(self._served_s) < 2:
            return _FIRST_S
        # So many over all that time, and not the mean of the intervals, of which those within a burst are nothing.
        interval_s = (now_s - self._served_s[0]) / (len(self._served_s) - 1)
        self._turn_s = min(max(self._turn_s, now_s) + interval_s, now_s + MOST_S)
        return max(LEAST_S, self._turn_s - now_s)
