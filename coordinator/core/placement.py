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
from coordinator.core.passes import PassTimes
from paceline.length_policy import LengthPolicy
from paceline.types import Role, WorkerInfo

_MAX_ENTRIES_PER_WORKER = 8  # with those out of date; then the heap is made anew, which so costs little a place


@dataclass(slots=True)
class Worker:
    """A member of a pool and the requests that it holds for this coordinator."""

    name: str
    info: WorkerInfo
    is_trusted: bool = False  # of a drafter: its rows are believed
    number: int = 0  # grows with each that joins
    requests: dict[str, None] = field(default_factory=dict)  # a set that remembers its order
    # What its requests have measured of it, for the next ones too.
    pace: Pace = field(default_factory=Pace)  # of a drafter
    passes: PassTimes = field(default_factory=PassTimes)  # of a verifier
    is_draining: bool = False

    @property
    def load(self) -> float:
        return len(self.requests) / self.info.max_num_seqs

    def is_free(self, now_s: float) -> bool:
        """Whether it may be given another request."""
        return self.load < 1 and not self.is_draining and self.pace.breaker.allows(now_s, len(self.requests))


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request wants of a worker."""

    role: Role
    policy: LengthPolicy | None = None  # one that a drafter must offer
    trusted_only: bool = False  # a drafter whose rows are believed

    def fits(self, worker: Worker) -> bool:
        if worker.info.role is not self.role or worker.is_trusted < self.trusted_only:
            return False
        return self.policy is None or worker.info.offers(self.policy)


VERIFIER = Wish(Role.VERIFIER)


class Pools:
    """Both pools. The one owner of membership and of who holds which request."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._suspects: dict[str, None] = {}  # members that may have to be relieved of what they hold
        self._numbers = itertools.count()
        # By role, a heap of (load, number, name): an entry for every worker with room, and some that are out of date.
        self._free: dict[Role, list[tuple[float, int, str]]] = {role: [] for role in Role}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def join(self, name: str, info: WorkerInfo, *, is_trusted: bool = False) -> None:
        passes = PassTimes(info.cost)
        worker = self._workers[name] = Worker(name, info, is_trusted, next(self._numbers), passes=passes)
        self._offer(worker)

    @property
    def distrusts_all_drafters(self) -> bool:
        """Whether there are drafters, and none whose rows are believed."""
        drafters = [worker for worker in self._workers.values() if worker.info.role is Role.DRAFTER]
        return bool(drafters) and not any(worker.is_trusted for worker in drafters)

    def leave(self, name: str) -> Worker | None:
        """Remove a worker; returns it with the requests it held, `None` if it was not a member."""
        return self._workers.pop(name, None)

    def drain(self, name: str) -> None:
        """A member, if it is one, gets nothing new."""
        if name in self._workers:
            self._workers[name].is_draining = True
            self.suspect(name)

    def suspect(self, name: str | None) -> None:
        """A member, if it is one, may have to be relieved; `leaving` looks at no others, since it is asked so often."""
        if name in self._workers:
            self._suspects[name] = None

    def leaving(self, now_s: float) -> list[Worker]:
        """Who is to be rid of the requests that it holds: who drains, and the drafters that rest."""
        found = []
        for name in list(self._suspects):
            worker = self._workers.get(name)
            if worker is None or not (worker.is_draining or worker.pace.breaker.is_resting(now_s)):
                del self._suspects[name]
            elif worker.requests:
                found.append(worker)
        return found

    def take(self, wish: Wish, request_id: str, now_s: float) -> Worker | None:
        """Give `request_id` a place at a worker that fits `wish` and may be given one now; `None` if there is none."""
        free, passed_over = self._free[wish.role], []
        found: Worker | None = None
        while free and not found:
            entry = load, number, name = heapq.heappop(free)
            worker = self._workers.get(name)
            if worker is None or (worker.load, worker.number) != (load, number):
                continue  # out of date
            if wish.fits(worker) and worker.is_free(now_s):
                found = worker
            else:
                passed_over.append(entry)
        for entry in passed_over:
            heapq.heappush(free, entry)
        if found:
            found.requests[request_id] = None
            self._offer(found)
        return found

    def pace(self, name: str) -> Pace:
        """What is known of a member's pace."""
        return self._workers[name].pace

    def why_not(self, policy: LengthPolicy) -> str:
        """What to do about a `policy` that no drafter here offers; empty if one does, or if there is none at all."""
        drafters = [w.info for w in self._workers.values() if w.info.role is Role.DRAFTER]
        if not drafters or any(info.offers(policy) for info in drafters):
            return ""
        names = sorted({name for info in drafters for name in info.policies})
        return f"no drafter offers it; the drafters that are here offer {', '.join(names)}"

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
