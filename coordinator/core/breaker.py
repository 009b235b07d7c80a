"""When a drafter gets no requests for a while: it refuses them, or is silent while they wait for it.

Pure. Closed, it counts; a draft that is judged clears the count, kept or not. Tripped, the drafter rests, twice as long
each time in a row. After the rest it gets one request: a draft that is judged closes the breaker, another failure trips
it again.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_REFUSALS = 3  # in a row: one may be a matter of the request, or of a place taken meanwhile
MAX_LATE = 5  # likewise
MIN_SILENCE_S = 2.0  # and only after so long without a draft: a long prompt takes that
FIRST_REST_S, LONGEST_REST_S = 1.0, 60.0


@dataclass(slots=True)
class Breaker:
    """See the top of the file."""

    num_trips: int = 0  # in a row
    rests_until_s: float = 0.0
    _num_refusals: int = 0
    _num_late: int = 0
    _silent_since_s: float | None = None

    def judged(self) -> None:
        """A draft of it came in time, and was one that can be judged."""
        self.num_trips = 0
        self._clear()

    def heard(self) -> None:
        """It has said that it has nothing to propose: it is not silent, and has proved nothing."""
        self._num_late, self._silent_since_s = 0, None

    def refused(self, now_s: float) -> None:
        """It would not take a request, or sent what no honest drafter sends."""
        self._num_refusals += 1
        if self._num_refusals >= MAX_REFUSALS or self.num_trips:
            self._trip(now_s)

    def late(self, now_s: float) -> None:
        """A request stopped waiting for its draft, or went on without having waited, since it is silent."""
        self._num_late += 1
        if self._silent_since_s is None:
            self._silent_since_s = now_s
        is_often = self._num_late >= MAX_LATE or self.num_trips > 0
        if is_often and now_s - self._silent_since_s >= MIN_SILENCE_S:
            self._trip(now_s)

    def is_resting(self, now_s: float) -> bool:
        return now_s < self.rests_until_s

    def allows(self, now_s: float, num_requests: int) -> bool:
        """Whether a drafter that holds `num_requests` may be given another."""
        return not self.is_resting(now_s) and not (self.num_trips and num_requests)

    def _trip(self, now_s: float) -> None:
        if self.is_resting(now_s):
            return  # what it held failed with it, one after the other: that is one failure
        self.rests_until_s = now_s + min(FIRST_REST_S * 2**self.num_trips, LONGEST_REST_S)
        self.num_trips = min(self.num_trips + 1, 32)
        self._clear()

    def _clear(self) -> None:
        self._num_refusals = self._num_late = 0
        self._silent_since_s = None
