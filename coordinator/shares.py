"""Room that several clients divide, nobody told how many they will be.

One may hold as much as it leaves free: alone a half of all, one of two a third, and so on. So whoever comes finds
room, however greedy the others are, and together they never hold more than there is.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from paceline.errors import Overloaded

RETRY_AFTER_S = 1.0


class Shares:
    """See the top of the file."""

    def __init__(self, what: str, size: int) -> None:
        """`what` is divided, for who is refused."""
        self.held: Counter[str] = Counter()  # by client; none is zero
        self._what, self._size = what, size

    @contextlib.contextmanager
    def hold(self, client: str, amount: int = 1) -> Iterator[None]:
        """Raises Overloaded if there is no room for so much more of this client's."""
        if self.held[client] + amount > self._size - self.held.total():
            raise Overloaded(self._what, self._size, RETRY_AFTER_S)
        self.held[client] += amount
        try:
            yield
        finally:
            self.held[client] -= amount
            if not self.held[client]:
                del self.held[client]
