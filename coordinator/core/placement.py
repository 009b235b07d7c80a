"""Which worker a request goes to: of those that fit and have room, the one from which most is expected.

Pure: membership, load and measurements in, a worker out. Of drafters that is the one with the largest gain beside the
request's verifier, of verifiers the fastest for its load; a worker that has served the beginning of the prompt is
preferred while it is not much worse (`Worker.cost` has the formulas). Among equals the least loaded is taken, then the
one that came first, so a run can be repeated.

The core looks for a place after every event while requests wait, so looking must cost little however many workers there
are. Workers of a kind stand in a heap by their cost, and kinds are few: a wish fits all of a kind or none. Who may be
given nothing now is in no heap until that changes. Costs are as old as a worker's last request or heartbeat; what comes
to the top of a heap is looked at anew.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from coordinator.core.affinity import Affinity, Head
from coordinator.core.gain import gain
from coordinator.core.kin import Kin
from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from coordinator.core.worker import Kind, Worker
from paceline.length_policy import LengthPolicy
from paceline.types import Role, WorkerInfo

_MAX_ENTRIES_PER_WORKER = 8  # with those out of date; then the heap is made anew, which so costs little a place
_MAX_LOOKS = 8  # at a heap's top whose cost has grown since it was entered; the next place finds the rest
_STALE = 1.05  # a cost that has grown by less is as good as new
# A worker that knows the prompt's beginning may cost so many times what the best one does: a verifier saves the client
# the wait for that prefill, a drafter only joins sooner.
_DETOUR = {Role.VERIFIER: 1.5, Role.DRAFTER: 1.15}
# A worker that had no place is not asked again so soon: somebody's request may have ended then. Twice as long each time
# until it is heard of again.
FULL_S, LONGEST_FULL_S = 0.25, 4.0
MOVE_GAIN = 1.3  # what another drafter must promise over the present one; measurements differ by less by chance
_MOVE_PAYS = 2.0  # and what it saves, over what its catching up costs


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request wants of a worker."""

    role: Role
    policy: str | None = None  # the name of one that a drafter must offer
    trusted_only: bool = False  # a drafter whose rows are believed

    def fits(self, kind: Kind) -> bool:
        if kind.role is not self.role or kind.is_trusted < self.trusted_only:
            return False
        return self.policy is None or not kind.policies or self.policy in kind.policies


VERIFIER = Wish(Role.VERIFIER)
_UNKNOWN = PassTimes()


class Pools:
    """Both pools. The one owner of membership and of who holds which request."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._verifiers: dict[str, Worker] = {}  # those of them
        self._num_of_kind: Counter[Kind] = Counter()
        self._kin_of: dict[Kind, Kin] = {}
        self._suspects: dict[str, None] = {}  # members that may have to be relieved of what they hold
        self._numbers = itertools.count()
        # By kind, a heap of (cost, number, name): one for every worker that is free, and some that are out of date.
        self._free: dict[Kind, list[tuple[float, int, str]]] = {}
        self._entry: dict[str, tuple[float, int, str]] = {}  # the one that is not out of date, by worker
        self._later: list[tuple[float, str]] = []  # heap: when workers that rest, or are full, may be looked at again
        self._affinity = {role: Affinity() for role in Role}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def get(self, name: str) -> Worker | None:
        return self._workers.get(name)

    @property
    def verifiers(self) -> tuple[Worker, ...]:
        return tuple(self._verifiers.values())

    # --- membership

    def join(self, name: str, info: WorkerInfo, *, is_trusted: bool = False, rtt_s: float | None = None) -> None:
        passes = PassTimes(info.cost)
        worker = Worker(name, info, is_trusted, next(self._numbers), rtt_s, passes=passes)
        self._workers[name] = worker
        if info.model_hash:  # else nothing says what it has in common with others
            worker.pace.kin = self._kin_of.setdefault(worker.kind, worker.pace.kin)
        if info.role is Role.VERIFIER:
            self._verifiers[name] = worker
        self._num_of_kind[worker.kind] += 1
        self._offer(worker)

    def leave(self, name: str) -> Worker | None:
        """Remove a worker; returns it with the requests it held, `None` if it was not a member."""
        worker = self._workers.pop(name, None)
        if worker is None:
            return None
        self._verifiers.pop(name, None)
        self._entry.pop(name, None)
        self._num_of_kind[worker.kind] -= 1
        if not self._num_of_kind[worker.kind]:
            del self._num_of_kind[worker.kind]
            self._free.pop(worker.kind, None)
            self._kin_of.pop(worker.kind, None)
        return worker

    def drain(self, name: str) -> None:
        """A member, if it is one, gets nothing new."""
        if name in self._workers:
            self._workers[name].is_draining = True
            self.suspect(name)

    def heard(self, name: str, info: WorkerInfo, rtt_s: float | None, now_s: float) -> None:
        """A member, if it is one, has renewed its lease."""
        if worker := self._workers.get(name):
            worker.heard(info, rtt_s, now_s)
            self._offer(worker)

    def missed(self, name: str) -> None:
        """A member, if it is one, has not renewed its lease in time: it comes after those that have."""
        if worker := self._workers.get(name):
            worker.is_suspected = True
            self._offer(worker)

    def full(self, name: str, now_s: float) -> None:
        """A member, if it is one, had no place after all: other coordinators may have taken what it has."""
        worker = self._workers.get(name)
        if worker and now_s >= worker.full_until_s:  # else one of many that were asked for at once: that is one refusal
            worker.full_until_s = now_s + min(FULL_S * 2 ** min(worker.num_refused, 8), LONGEST_FULL_S)
            worker.num_refused += 1

    @property
    def distrusts_all_drafters(self) -> bool:
        """Whether there are drafters, and none whose rows are believed."""
        kinds = [kind for kind in self._num_of_kind if kind.role is Role.DRAFTER]
        return bool(kinds) and not any(kind.is_trusted for kind in kinds)

    def why_not(self, policy: LengthPolicy) -> str:
        """What to do about a `policy` that no drafter here offers; empty if one does, or if there is none at all."""
        kinds = [kind for kind in self._num_of_kind if kind.role is Role.DRAFTER]
        if not kinds or any(Wish(Role.DRAFTER, policy.name).fits(kind) for kind in kinds):
            return ""
        names = sorted({name for kind in kinds for name in kind.policies})
        return f"no drafter offers it; the drafters that are here offer {', '.join(names)}"

    def pace(self, name: str) -> Pace:
        """What is known of a member's pace."""
        return self._workers[name].pace

    # --- who must be relieved

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

    # --- places

    def take(
        self,
        wish: Wish,
        request_id: str,
        now_s: float,
        *,
        passes: PassTimes | None = None,
        head: Head = (),
        rather_not: Collection[str] = (),
    ) -> Worker | None:
        """Give `request_id` a place at a worker that fits `wish` and may be given one now; `None` if there is none.

        `passes`: of the request's verifier, if it has one; `head`: of its prompt; `rather_not`: to these only if no
        other is free.
        """
        passes = passes or self._usual
        best = self._best(wish, passes, now_s)
        if best is None:
            return None
        worker = self._kin(wish, passes, head, now_s, _DETOUR[wish.role] * best.cost(passes)) or best
        if worker.name in rather_not:
            worker = self._other(wish, passes, now_s, rather_not) or worker
        worker.requests[request_id] = None
        self._affinity[wish.role].note(head, worker.name)
        self._offer(worker)
        return worker

    def better(
        self, drafter: str, wish: Wish, passes: PassTimes, now_s: float, *, num_known: int, num_left: int
    ) -> bool:
        """Whether a request of `num_known` tokens had better go on at another drafter, with `num_left` to come."""
        present, plain_s = self._workers[drafter], passes.seconds(1)
        best = self._best(wish, passes, now_s)
        if best is None or best is present or not plain_s:
            return False
        speed = best.speed()
        now, then = _doubted(present, passes), gain(speed, passes)
        cost = best.info.cost
        catching_up_s = speed.delay_s + (cost.ms(num_known, 1, 0) / 1e3 if cost else 0.0)
        saved_s = num_left * plain_s * (1 / now - 1 / then)
        return then > MOVE_GAIN * now and saved_s > _MOVE_PAYS * catching_up_s

    def release(self, name: str | None, request_id: str) -> None:
        """Give the place back; a worker that has left has none to give."""
        if name in self._workers:
            worker = self._workers[name]
            if request_id in worker.requests:
                del worker.requests[request_id]
                self._offer(worker)

    def forget(self, request_id: str) -> list[str]:
        """Free its places whatever else is wrong; who had one. They are offered anew when they are next heard of."""
        holders = [worker for worker in self if request_id in worker.requests]
        for worker in holders:
            del worker.requests[request_id]
        return [worker.name for worker in holders]

    def judged(self, name: str | None, now_s: float) -> None:
        """A draft of a member was judged: one that was on trial may be given more."""
        if name in self._workers and name not in self._entry and self._workers[name].is_free(now_s):
            self._offer(self._workers[name])

    def next_free_s(self) -> float:
        """When a worker may be free that is not now, though nothing happens; infinite if there is none."""
        return self._later[0][0] if self._later else math.inf

    @property
    def _usual(self) -> PassTimes:
        """The passes to hold workers against where no verifier is given: of the one that has been here longest."""
        return next((worker.passes for worker in self._verifiers.values()), _UNKNOWN)

    def _best(self, wish: Wish, passes: PassTimes, now_s: float) -> Worker | None:
        while self._later and self._later[0][0] <= now_s:
            _, name = heapq.heappop(self._later)
            if name in self._workers and name not in self._entry:
                self._offer(self._workers[name])
        tops = [top for kind in self._free if wish.fits(kind) and (top := self._top(kind, now_s))]
        if len(tops) < 2:
            return tops[0] if tops else None
        return min(tops, key=lambda worker: (worker.cost(passes), worker.number))

    def _top(self, kind: Kind, now_s: float) -> Worker | None:
        """The free worker of a kind that costs least; those above it that are not free leave the heap."""
        free, num_looks = self._free[kind], 0
        while free:
            cost, _, name = entry = free[0]
            if self._entry.get(name) != entry:
                heapq.heappop(free)  # out of date
                continue
            worker = self._workers[name]
            if not worker.is_free(now_s):
                heapq.heappop(free)
                del self._entry[name]
                if (at_s := worker.free_at_s(now_s)) is not None:
                    heapq.heappush(self._later, (at_s, name))
                continue
            if num_looks == _MAX_LOOKS or worker.cost(self._usual) <= _STALE * cost:
                return worker
            num_looks += 1
            self._offer(worker)
        return None

    def _kin(self, wish: Wish, passes: PassTimes, head: Head, now_s: float, most: float) -> Worker | None:
        """The worker that was given such a prompt last, if it fits, is free, and costs `most` at most."""
        worker = self._workers.get(self._affinity[wish.role].find(head) or "")
        if worker and wish.fits(worker.kind) and worker.is_free(now_s) and worker.cost(passes) <= most:
            return worker
        return None

    def _other(self, wish: Wish, passes: PassTimes, now_s: float, but: Collection[str]) -> Worker | None:
        """The best one that is none of these. Looks at all of them, which is seldom asked for."""
        others = (worker for worker in self if worker.name not in but and wish.fits(worker.kind))
        free = (worker for worker in others if worker.is_free(now_s))
        return min(free, key=lambda worker: (worker.cost(passes), worker.number), default=None)

    def _offer(self, worker: Worker) -> None:
        """Enter a worker at its present cost; its older entries are passed over when they come up."""
        free = self._free.setdefault(worker.kind, [])
        self._entry.pop(worker.name, None)
        if len(worker.requests) < worker.info.max_num_seqs:
            entry = self._entry[worker.name] = (worker.cost(self._usual), worker.number, worker.name)
            heapq.heappush(free, entry)
        if len(free) > _MAX_ENTRIES_PER_WORKER * (self._num_of_kind[worker.kind] + 1):
            free[:] = [entry for entry in set(free) if self._entry.get(entry[2]) == entry]
            heapq.heapify(free)


def _doubted(worker: Worker, passes: PassTimes) -> float:
    """The gain by the drafter that a request has: nothing, while it is not heard of."""
    is_doubtful = worker.is_suspected or worker.pace.is_silent
    return 1.0 if is_doubtful else gain(worker.speed(), passes)
