"""Which worker a request goes to: of those with room, the one with the smallest share of its places taken.

Pure: membership and load in, a worker's id out. Ties go to the worker that came first, so a run can be repeated. A
place is found in logarithmic time: the core looks for one after every event while requests wait, however many workers
there are.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from coordinator.core.pace import Pace
from paceline.types import Role, WorkerInfo

_MAX_ENTRIES_PER_WORKER = 8  # with those out of date; then the heap is made anew, which so costs little a place


@dataclass(slots=True)
class Worker:
    """A member of a pool and the requests that it holds for this coordinator."""

    name: str
    info: WorkerInfo
    number: int = 0  # grows with each that joins
    requests: dict[str, None] = field(default_factory=dict)  # a set that remembers its order
    pace: Pace = field(default_factory=Pace)  # of a drafter: what its requests have measured, for the next ones too

    @property
    def load(self) -> float:
        return len(self.requests) / self.info.max_num_seqs


class Pools:
    """Both pools. The one owner of membership and of who holds which request."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._numbers = itertools.count()
        # By role, a heap of (load, number, name): an entry for every worker with room, and some that are out of date.
        self._free: dict[Role, list[tuple[float, int, str]]] = {role: [] for role in Role}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def join(self, name: str, info: WorkerInfo) -> None:
        worker = self._workers[name] = Worker(name, info, next(self._numbers))
        self._offer(worker)

    def leave(self, name: str) -> Worker | None:
        """Remove a worker; returns it with the requests it held, `None` if it was not a member."""
        return self._workers.pop(name, None)

    def take(self, role: Role, request_id: str) -> str | None:
        """Give `request_id` a place in the pool of `role`; `None` if there is none."""
        free = self._free[role]
        while free:
            load, number, name = heapq.heappop(free)
            worker = self._workers.get(name)
            if worker and (worker.load, worker.number) == (load, number):
                worker.requests[request_id] = None
                self._offer(worker)
                return name
        return None

    def pace(self, name: str) -> Pace:
        """What is known of a member's pace."""
        return self._workers[name].pace

    def release(self, name: str | None, request_id: str) -> None:
        """Give the place back; a worker that has left has none to give."""
        if name in self._workers:
            worker = self._workers[name]
            if request_id in worker.requests:
                del worker.requests[request_id]
                self._offer(worker)

    def _offer(self, worker: Worker) -> None:
        """Enter a worker at its present load; its older entries are passed over when they come up."""
        free = self._free[worker.info.role]
        if worker.load < 1:
            heapq.heappush(free, (worker.load, worker.number, worker.name))
        if len(free) > _MAX_ENTRIES_PER_WORKER * len(self._workers) + _MAX_ENTRIES_PER_WORKER:
            members = (w for w in self._workers.values() if w.info.role is worker.info.role and w.load < 1)
            free[:] = [(w.load, w.number, w.name) for w in members]
            heapq.heapify(free)
