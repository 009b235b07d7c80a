"""Which worker a request goes to: of those with room, the one with the smallest share of its places taken.

Pure: membership and load in, a worker's id out. Ties go to the worker that came first, so a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from paceline.length_policy import LengthPolicy
from paceline.types import Role, WorkerInfo


@dataclass(slots=True)
class Worker:
    """A member of a pool and the requests that it holds for this coordinator."""

    name: str
    info: WorkerInfo
    is_trusted: bool = False  # of a drafter: its rows are believed
    requests: dict[str, None] = field(default_factory=dict)  # a set that remembers its order
    # What its requests have measured of it, for the next ones too.
    pace: Pace = field(default_factory=Pace)  # of a drafter
    passes: PassTimes = field(default_factory=PassTimes)  # of a verifier

    @property
    def load(self) -> float:
        return len(self.requests) / self.info.max_num_seqs


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

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def join(self, name: str, info: WorkerInfo, *, is_trusted: bool = False) -> None:
        self._workers[name] = Worker(name, info, is_trusted, passes=PassTimes(info.cost))

    @property
    def distrusts_all_drafters(self) -> bool:
        """Whether there are drafters, and none whose rows are believed."""
        drafters = [worker for worker in self._workers.values() if worker.info.role is Role.DRAFTER]
        return bool(drafters) and not any(worker.is_trusted for worker in drafters)

    def leave(self, name: str) -> Worker | None:
        """Remove a worker; returns it with the requests it held, `None` if it was not a member."""
        return self._workers.pop(name, None)

    def take(self, wish: Wish, request_id: str) -> Worker | None:
        """Give `request_id` a place at a worker that fits `wish`; `None` if there is none."""
        free = [worker for worker in self._workers.values() if wish.fits(worker) and worker.load < 1]
        if not free:
            return None
        worker = min(free, key=lambda w: w.load)
        worker.requests[request_id] = None
        return worker

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
            self._workers[name].requests.pop(request_id, None)
