"""Who may go on when the pool is short: pure policy over counts of blocks, no pool and no clock.

Age decides, and age is when a request was taken. An older request that needs blocks takes them from the youngest
ones, which are *preempted*: they lose their cache, never their tokens, and are prefilled anew when there is room.
Hence the oldest request always goes on, and with it, one after another, all.

1. Nobody is preempted for a younger one, and nobody unless that makes enough room.
2. A request that holds nothing starts when there is room for all that it wants and a block more for each older one
   that is running. So it is not preempted again a step later.
3. While one cannot start, no younger one starts: a long prompt is not overtaken for ever by short ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Claim(NamedTuple):
    """What a request holds and wants, in blocks. `num_wanted`: after its next forward pass, 0 if none is due."""

    key: str
    num_held: int
    num_wanted: int

    @property
    def num_missing(self) -> int:
        return max(0, self.num_wanted - self.num_held)


class Sharing(NamedTuple):
    going: list[str]  # whose wants there is room for, once those `preempted` are gone
    preempted: list[str]


def share(claims: Sequence[Claim], num_free: int, num_owned: Callable[[str], int]) -> Sharing:
    """Decides over all requests, oldest first. `num_owned(key)`: blocks that preempting it makes free.

    Example: 4 blocks free; an old request wants 3 more, a young one that holds 6 wants 2 more: the old one goes on,
    the young one waits. If 2 were free, the young one would be preempted for it.
    """
    going: list[str] = []
    preempted: list[str] = []
    num_older = 0  # that hold something
    is_anyone_waiting = False
    for index, claim in enumerate(claims):
        if claim.key in preempted:
            continue
        is_starting = not claim.num_held and claim.num_wanted > 0
        if is_starting and is_anyone_waiting:
            continue
        num_missing = claim.num_missing
        num_short = num_missing + (num_older if is_starting else 0) - num_free if num_missing else 0
        victims, num_gained = _victims(claims[index + 1 :], preempted, num_short, num_owned)
        # Blocks that two victims share are counted for neither, so the last resort goes by who is left, not by sums.
        if num_gained >= num_short or not num_older:
            preempted += victims
            num_free += num_gained - num_missing
            going.append(claim.key)
        else:
            is_anyone_waiting = True
        num_older += claim.num_held > 0 or (is_starting and claim.key in going[-1:])
    return Sharing(going, preempted)


def _victims(
    younger: Sequence[Claim], preempted: Sequence[str], num_short: int, num_owned: Callable[[str], int]
) -> tuple[list[str], int]:
    """The youngest holders that make `num_short` blocks free, all of them if that is not enough; what they make."""
    victims: list[str] = []
    num_gained = 0
    for claim in reversed(younger):
        if num_gained >= num_short:
            break
        if claim.num_held and claim.key not in preempted:
            victims.append(claim.key)
            num_gained += num_owned(claim.key)
    return victims, num_gained
