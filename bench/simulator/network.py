"""What lies between the coordinator and a worker.

A stream over TCP loses nothing and keeps the order: a lost packet is sent again after a timeout, and everything behind
it waits (`stall`). The protocol claims more than it gets there, so messages may also be lost for good, come twice and
overtake one another.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# Linux waits at least this long before it sends a packet again that nothing behind it has shown to be lost.
LEAST_RETRANSMISSION_S = 0.2


@dataclass(frozen=True, slots=True)
class Network:
    """Seconds one way, and probabilities per message."""

    delay_s: float = 0.001
    jitter_s: float = 0.0  # up to so much more, evenly
    loss: float = 0.0  # never arrives
    duplication: float = 0.0  # arrives twice
    stall: float = 0.0  # a packet of it is lost: it arrives a round trip or the least retransmission timeout later
    is_ordered: bool = False  # nothing overtakes what was sent before it, as on a stream


class Path:
    """One direction of one link."""

    __slots__ = ("_last_s", "_network", "_random")

    def __init__(self, network: Network, chance: random.Random) -> None:
        self._network, self._random = network, chance
        self._last_s = 0.0

    @property
    def is_faithful(self) -> bool:
        """Whether every message arrives once, and in order: a late open behind its close would open anew."""
        network = self._network
        may_overtake = not network.is_ordered and network.jitter_s + network.stall > 0
        return not (network.loss or network.duplication or may_overtake)

    def arrivals_s(self, now_s: float) -> list[float]:
        """When a message that is sent now arrives, for each time that it does."""
        network, chance = self._network, self._random.random
        num_copies = 1 + (network.duplication > 0 and chance() < network.duplication)
        arrivals_s = []
        for _ in range(num_copies):
            if network.loss and chance() < network.loss:
                continue
            delay_s = network.delay_s
            if network.jitter_s:
                delay_s += chance() * network.jitter_s
            if network.stall and chance() < network.stall:
                delay_s += max(LEAST_RETRANSMISSION_S, 2 * network.delay_s)
            arrival_s = now_s + delay_s
            if network.is_ordered:
                arrival_s = self._last_s = max(self._last_s, arrival_s)
            arrivals_s.append(arrival_s)
        return arrivals_s
