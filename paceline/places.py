"""A worker's places, divided between the coordinators that use it.

Pure. Whoever is alone may take them all. One that is turned away is owed its share, an equal part of all places: until
it comes back, what is set free is kept for it, and nobody who has a share already gets more. Nothing is taken away from
anybody; so a coordinator waits for others' requests to end, never for others to stop asking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

from paceline.errors import Overloaded

RETRY_S = 0.25  # after which one that was turned away had better ask again
OWED_S = 5.0  # and by when, lest its places be given to others; coordinators ask every 4 s at the latest


class Places:
    """See the top of the file."""

    def __init__(self, num_places: int) -> None:
        self._num_places = num_places
        self._owed: dict[int, float] = {}  # peers that were turned away, and when last; first come first

    def take(self, what: str, peer: int, holders: Iterable[int], now_s: float) -> None:
        """Let `peer` have one more place, or raise Overloaded. `holders`: the peer of each request that is here."""
        held = Counter(holders)
        self._owed = {other: at_s for other, at_s in self._owed.items() if now_s - at_s < OWED_S}
        others = (held.keys() | self._owed.keys()) - {peer}
        share = max(1, self._num_places // (len(others) + 1))
        if held.total() + self._num_kept(peer, held, share) >= self._num_places:
            self._owed[peer] = now_s
            raise Overloaded(what, self._num_places, retry_after_s=RETRY_S)
        self._owed.pop(peer, None)

    def drop(self, peer: int) -> None:
        """It has gone, and is owed nothing."""
        self._owed.pop(peer, None)

    def _num_kept(self, peer: int, held: Counter[int], share: int) -> int:
        """Places that are kept from `peer` for others: all that they are owed if it has its share, else their turns."""
        num_kept = 0
        for other in self._owed:
            if other == peer:
                if held[peer] < share:
                    break  # those behind it in the line come after it
                continue
            missing = max(0, share - held[other])
            num_kept += missing if held[peer] >= share else min(1, missing)
        return num_kept


def in_turns(owners: Iterable[Hashable]) -> list[int]:
    """For items of these owners, which of its owner's each one is. Example: a a b a b → 0 1 0 2 1.

    Sorted by it first, items of all owners take turns, however many each has.
    """
    seen: Counter[Hashable] = Counter()
    turns = []
    for owner in owners:
        turns.append(seen[owner])
        seen[owner] += 1
    return turns
