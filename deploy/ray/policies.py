"""One policy class a pool, as Serve's controller calls them: what is known, handed to `deploy.ray.scaling`.

The controller asks in its own event loop, many times a second, so a policy never waits: it asks the directory, and
looks at the answer the next time that it is called. While nothing is known for sure the pool stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from deploy.ray import directory
from deploy.ray.directory import Entry
from deploy.ray.scaling import Demand, DrafterAims, VerifierAims, drafters_wanted, verifiers_wanted

STALE_S = 5.0  # what was learnt longer ago says nothing any more
RETRY_S = 1.0
ASK_S = 0.2  # between two questions

Decision = tuple[int, dict[str, Any]]


class Outlook:
    """What the coordinators report, without ever waiting for it."""

    def __init__(
        self,
        find: Callable[[str], Any | None] = directory.find,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find, self._clock = find, clock
        self._handle: Any = None
        self._asked: Future[Sequence[Entry]] | None = None
        self._next_s = 0.0  # nothing is asked before
        self._known: tuple[float, Demand] | None = None  # when it was learnt, and what

    def demand(self, application: str) -> Demand | None:
        """The latest that is known of it; None if that is too old, or if no coordinator is there."""
        now_s = self._clock()
        self._hear(now_s)
        if self._asked is None and now_s >= self._next_s:
            self._ask(application, now_s)
        if self._known is None or now_s - self._known[0] > STALE_S:
            return None
        return self._known[1]

    def _hear(self, now_s: float) -> None:
        if self._asked is None or not self._asked.done():
            return
        try:
            entries = self._asked.result()
        except Exception:  # whatever became of the directory, another one is looked for
            self._handle, self._next_s = None, now_s + RETRY_S
        else:
            if entries:
                self._known = (now_s, Demand.of(entries))
        self._asked = None

    def _ask(self, application: str, now_s: float) -> None:
        self._next_s = now_s + ASK_S
        if self._handle is None:
            self._handle = self._find(application)
        if self._handle is None:
            self._next_s = now_s + RETRY_S
        else:
            self._asked = self._handle.coordinators.remote().future()


class DrafterPolicy:
    """Stall share and queued drafting work, for one pool of drafters."""

    def __init__(self, **aims: float) -> None:
        self._outlook = Outlook()
        self._aims = DrafterAims(**aims)

    def __call__(self, context: Any) -> Decision:
        demand = self._outlook.demand(context.app_name)
        if demand is None:
            return context.target_num_replicas, {}
        num_held = sum(recorded(context, "num_requests"))
        return drafters_wanted(demand, num_held, context.current_num_replicas, self._aims), {}


class VerifierPolicy:
    """KV use, queue and step time."""

    def __init__(self, **aims: Any) -> None:
        self._outlook = Outlook()
        self._aims = VerifierAims(**aims)

    def __call__(self, context: Any) -> Decision:
        demand = self._outlook.demand(context.app_name)
        if demand is None:
            return context.target_num_replicas, {}
        # What coordinators see calls quickly; what Serve has recorded is the mean of half a minute, and lets go slowly.
        kv_used = max(demand.kv_used, mean(recorded(context, "kv_used")))
        return verifiers_wanted(demand, kv_used, context.current_num_replicas, self._aims), {}


def recorded(context: Any, name: str) -> list[float]:
    """What the pool's replicas have recorded of themselves (`record_autoscaling_stats`), a figure each."""
    return list((context.aggregated_metrics or {}).get(name, {}).values())


def mean(values: Sequence[float]) -> float:
    """0 for none."""
    return sum(values) / len(values) if values else 0.0
