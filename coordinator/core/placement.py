"""Which worker a request goes to: of those with room, the one with the smallest share of its places taken.

Pure: membership and load in, a worker's id out. Ties go to the worker that came first, so a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from coordinator.core.pace import Pace
from paceline.types import Role, WorkerInfo


@dataclass(slots=True)
class Worker:
    """A member of a pool and the requests that it holds for this coordinator."""

    name: str
    info: WorkerInfo
    requests: dict[str, None] = field(default_factory=dict)  # a set that remembers its order
    pace: Pace = field(default_factory=Pace)  # of a drafter: what its requests have measured, for the next ones too
    is_draining: bool = False

    @property
    def load(self) -> float:
        return len(self.requests) / self.info.max_num_seqs

    def is_free(self, now_s: float) -> bool:
        """Whether it may be given another request."""
        return self.load < 1 and not self.is_draining and self.pace.breaker.allows(now_s, len(self.requests))


class Pools:
    """Both pools. The one owner of membership and of who holds which request."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._suspects: dict[str, None] = {}  # members that may have to be relieved of what they hold

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def join(self, name: str, info: WorkerInfo) -> None:
        self._workers[name] = Worker(name, info)

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

    def take(self, role: Role, request_id: str, now_s: float) -> str | None:
        """Give `request_id` a place in the pool of `role`; `None` if there is none."""
        free = [w for w in self._workers.values() if w.info.role is role and w.is_free(now_s)]
        if not free:
            return None
        worker = min(free, key=lambda w: w.load)
        worker.requests[request_id] = None
        return worker.name

    def pace(self, name: str) -> Pace:
        """What is known of a member's pace."""
        return self._workers[name].pace

    def release(self, name: str | None, request_id: str) -> None:
        """Give the place back; a worker that has left has none to give."""
        if name in self._workers:
            self._workers[name].requests.pop(request_id, None)
