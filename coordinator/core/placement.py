"""Which worker a request goes to: of those with room, the one with the smallest share of its places taken.

Pure: membership and load in, a worker's id out. Ties go to the worker that came first, so a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from coordinator.core.pace import Pace
from paceline.length_policy import LengthPolicy
from paceline.types import Role, WorkerInfo


@dataclass(slots=True)
class Worker:
    """A member of a pool and the requests that it holds for this coordinator."""

    name: str
    info: WorkerInfo
    requests: dict[str, None] = field(default_factory=dict)  # a set that remembers its order
    pace: Pace = field(default_factory=Pace)  # of a drafter: what its requests have measured, for the next ones too

    @property
    def load(self) -> float:
        return len(self.requests) / self.info.max_num_seqs


class Pools:
    """Both pools. The one owner of membership and of who holds which request."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def join(self, name: str, info: WorkerInfo) -> None:
        self._workers[name] = Worker(name, info)

    def leave(self, name: str) -> Worker | None:
        """Remove a worker; returns it with the requests it held, `None` if it was not a member."""
        return self._workers.pop(name, None)

    def take(self, role: Role, request_id: str, policy: LengthPolicy | None = None) -> str | None:
        """Give `request_id` a place in the pool of `role`; `None` if there is none.

        `policy`: one that the worker must offer, if it is a drafter.
        """
        free = [w for w in self._free(role) if policy is None or w.info.offers(policy)]
        if not free:
            return None
        worker = min(free, key=lambda w: w.load)
        worker.requests[request_id] = None
        return worker.name

    def has_place(self, role: Role) -> bool:
        """Whether any worker of `role` has room for a request."""
        return any(True for _ in self._free(role))

    def _free(self, role: Role) -> Iterator[Worker]:
        return (w for w in self._workers.values() if w.info.role is role and w.load < 1)

    def why_not(self, policy: LengthPolicy) -> str:
        """What to do about a `policy` that no drafter here offers; empty if one does, or if there is none at all."""
        drafters = [w.info for w in self._workers.values() if w.info.role is Role.DRAFTER]
        if not drafters or any(info.offers(policy) for info in drafters):
            return ""
        names = sorted({name for info in drafters for name in info.policies})
        return f"no drafter offers it; the drafters that are here offer {', '.join(names)}"

    def pace(self, name: str) -> Pace:
        """What is known of a member's pace."""
        return self._workers[name].pace

    def release(self, name: str | None, request_id: str) -> None:
        """Give the place back; a worker that has left has none to give."""
        if name in self._workers:
            self._workers[name].requests.pop(request_id, None)
