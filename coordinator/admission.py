"""Which drafters are taken in: those that can help a verifier that is here.

A drafter is held against every verifier as soon as the way to it has been measured. One that could help none of them,
even if each of its tokens were accepted, is refused with the figures, and may ask again later or when the verifiers
have changed. While there is no verifier it is on probation: registered, connected, and used by nobody.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict

from coordinator.core.gain import STRETCH, best_s, plain_s
from coordinator.core.placement import Pools
from coordinator.core.worker import Worker
from paceline.errors import Unhelpful
from paceline.types import Role, WorkerInfo

RETRY_S = 15.0  # a refused drafter is judged again after this, or when the verifiers have changed
MAX_REFUSED = 1024  # drafters whose refusal is remembered, the oldest forgotten first


class Admission:
    """See the top of the file."""

    def __init__(self, pools: Pools, *, admits_any: bool = False) -> None:
        self.refusals: Counter[tuple[Role, str]] = Counter()  # registrations that were refused, by role and reason
        self._pools = pools
        self._admits_any = admits_any
        self._refused: OrderedDict[tuple[str, int], tuple[float, Unhelpful]] = OrderedDict()  # until when, and why
        self._changed = asyncio.Event()  # set, and replaced by another, when the verifiers change

    def num_refused(self, now_s: float) -> int:
        """Drafters that would help nobody here, as far as has been asked of late."""
        return sum(until_s > now_s for until_s, _ in self._refused.values())

    def verifiers_changed(self) -> None:
        """One has come or gone: what was said of drafters may not be so any more."""
        self._refused.clear()
        self._changed.set()
        self._changed = asyncio.Event()

    def changed(self) -> asyncio.Event:
        """Set with the next change of the verifiers."""
        return self._changed

    def check(self, info: WorkerInfo, now_s: float) -> None:
        """Raises Unhelpful for a drafter that was refused a short while ago."""
        until_s, error = self._refused.get((info.address, info.incarnation), (0.0, None))
        if error and until_s > now_s:
            self.refusals[info.role, "unhelpful"] += 1
            raise error

    def admits(self, info: WorkerInfo, rtt_s: float | None, now_s: float) -> bool:
        """Whether it is taken in now; False while there is no verifier. Raises Unhelpful, and remembers it."""
        if info.role is Role.VERIFIER or self._admits_any:
            return True
        if not self._pools.verifiers:
            return False
        if reason := _unhelpful(info, rtt_s, self._pools.verifiers):
            error = Unhelpful("drafter", info.model, reason, RETRY_S)
            self._refused[info.address, info.incarnation] = (now_s + RETRY_S, error)
            while len(self._refused) > MAX_REFUSED:
                self._refused.popitem(last=False)
            raise error
        return True


def _unhelpful(info: WorkerInfo, rtt_s: float | None, verifiers: tuple[Worker, ...]) -> str:
    """Why it can help none of `verifiers`; empty if it can help one, or if nothing is known of one."""
    speed = Worker("", info, rtt_s=rtt_s).speed()
    slowest: tuple[float, float] | None = None  # what it would save or cost, and what is needed without it
    for verifier in verifiers:
        with_it_s, alone_s = best_s(speed, verifier.passes), plain_s(verifier.passes)
        if with_it_s is None or alone_s is None or with_it_s < alone_s:
            return ""
        if slowest is None or alone_s > slowest[1]:
            slowest = (with_it_s, alone_s)
    assert slowest
    return (
        f"takes {1e3 * speed.draft_s:.1f} ms a token and {1e3 * speed.delay_s:.1f} ms there and back, so that "
        f"{STRETCH} tokens take {slowest[0]:.1f} s even if each is accepted, and the slowest verifier here needs "
        f"{slowest[1]:.1f} s alone: draft with a smaller model, on a faster device, or nearer; --admit-any on the "
        "coordinator takes it in all the same"
    )
