"""The core: `handle(event, now_s) -> list[Command]`, and nothing else.

A value, not a process: no I/O, no clock, no chance, no logging. Three shells run it unchanged: asyncio and gRPC
(`coordinator/server.py`), the tests' small worlds, the simulator. Every event passes through `handle`; it finds the
request concerned, lets `Request` say what follows, and keeps the two things that are nobody else's: the queue of
requests that wait for a verifier, and the order of deadlines.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from coordinator.core.affinity import Head
from coordinator.core.commands import Ask, Command, Fail
from coordinator.core.events import (
    Arrived,
    Branched,
    Drafted,
    Ended,
    Event,
    Faulted,
    Passed,
    RequestSpec,
    Tick,
    Verified,
    WorkerDown,
    WorkerDraining,
    WorkerRenewed,
    WorkerSuspected,
    WorkerUp,
    request_id_of,
)
from coordinator.core.fair import FairQueue
from coordinator.core.limits import Limits
from coordinator.core.metrics import RequestMetrics
from coordinator.core.passes import PassTimes
from coordinator.core.placement import VERIFIER, Pools, Wish
from coordinator.core.request import Request
from coordinator.core.rules import choose_rule
from coordinator.core.turnover import Turnover
from coordinator.core.worker import Worker
from paceline.errors import Internal, InvalidInput, Overloaded, UnknownRequest, Unsupported
from paceline.types import Blame, Close, Mode, Verdict

# Committed tokens after which a request looks for a drafter that is worth a move: often enough to matter for an output
# of a few hundred, seldom enough to cost nothing.
_LOOK_EVERY = 64
BUG = "internal error; the coordinator's log says more"


class CoreFailed(Exception):
    """A bug, raised `from` what it was; `commands` are what was decided before, and the end of the request concerned.

    The shell carries them out and goes on: whatever goes wrong here may cost one request, and tells its client.
    """

    def __init__(self, commands: list[Command], request_id: str | None) -> None:
        super().__init__(f"the core failed on {request_id or 'no request'}")
        self.commands = commands


class Pipeline:
    """See the top of the file."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.pools = Pools()
        self._requests: dict[str, Request] = {}
        self._waiting = FairQueue()  # requests without a verifier
        self._turnover = Turnover()  # of that queue
        self._moved_s = -math.inf  # when one who had waited in it had the first answer, at last
        # Running requests that want a drafter, by what they want of it; first come first, and none of these is empty.
        self._undrafted: dict[Wish, OrderedDict[str, None]] = {}
        self._deadlines: list[tuple[float, str]] = []  # heap; an entry that is out of date is skipped
        self._failed_at: dict[str, set[str]] = {}  # by running request, the verifiers that it has lost
        self._carried: str | None = None  # the request that is being carried a step further

    @property
    def num_running(self) -> int:
        return len(self._requests) - len(self._waiting)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def retry_after_s(self, now_s: float) -> float:
        """When one who is turned away had better come back; each such call takes a turn."""
        return self._turnover.retry_after_s(now_s)

    def check_room(self, client: str, now_s: float) -> None:
        """Raises Overloaded if a request of `client` would find the queue full, and nobody to give way to it."""
        if len(self._waiting) >= self.limits.max_waiting and self._waiting.crowding_out(client) is None:
            raise self._overloaded(now_s)

    @property
    def num_undrafted(self) -> int:
        """Running requests that want a drafter and have none."""
        return sum(map(len, self._undrafted.values()))

    def metrics(self, request_id: str) -> RequestMetrics | None:
        """What a running request does, up to its end, for those who read and change nothing; None if there is none."""
        request = self._requests.get(request_id)
        return request.metrics if request else None

    def called(self, call_id: str, client: str) -> list[str]:
        """The requests here that are `client`'s and belong to the call of that id, or have that id themselves."""
        specs = [request.spec for request in self._requests.values() if request.spec.client == client]
        return [spec.request_id for spec in specs if call_id in (spec.request_id, spec.call_id)]

    def next_deadline_s(self) -> float:
        """When to call back with `Tick` at the latest; infinite if nothing is under way."""
        is_placing = len(self._waiting) > 0 or self._undrafted
        return min(self._next_request_s(), self.pools.next_free_s() if is_placing else math.inf)

    def _next_request_s(self) -> float:
        while self._deadlines:
            deadline_s, request_id = self._deadlines[0]
            request = self._requests.get(request_id)
            if request and request.deadline_s == deadline_s:
                return deadline_s
            heapq.heappop(self._deadlines)
        return math.inf

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Everything that follows from `event`, in order. Raises CoreFailed if there is a bug here."""
        commands: list[Command] = []
        self._carried = request_id_of(event)
        try:
            # One by one: what was decided before a failure is to be done, since the books have it so.
            for command in itertools.chain(self._dispatch(event, now_s), self._place(now_s)):
                commands.append(command)
        except Exception as error:
            raise CoreFailed([*commands, *self._abandon(self._carried)], self._carried) from error
        return commands

    def _abandon(self, request_id: str | None) -> Iterator[Command]:
        """Give up a request whose state may be spoilt, or that was only just coming, without asking it anything."""
        if request_id is None:
            return
        is_told = False
        if request := self._requests.pop(request_id, None):
            is_told, request.done = request.done, True
            self._leave_undrafted(request)
        self._waiting.discard(request_id)
        self._failed_at.pop(request_id, None)
        for worker in self.pools.forget(request_id):
            yield Ask(worker, Close(request_id))
        if not is_told:
            yield Fail(request_id, Internal(BUG))

    def _dispatch(self, event: Event, now_s: float) -> Iterable[Command]:
        match event:
            case Verified(worker, verdict):
                request = self._requests.get(verdict.request_id)
                if request and request.verifier == worker:  # else it ended, or moved, meanwhile
                    if request.is_unheard:
                        self.pools.suspect(request.drafter)  # it may be silent for too long
                    return self._verified(request, verdict, now_s)
            case Drafted(worker, draft):
                request = self._requests.get(draft.request_id)
                if request and request.drafter == worker:
                    return self._run(request, request.drafted(draft, now_s))
            case Branched(worker, branch):
                request = self._requests.get(branch.request_id)
                if request and request.drafter == worker:
                    return self._run(request, request.branched(branch, now_s))
            case Passed(worker, passed):
                request = self._requests.get(passed.request_id)
                if request and request.drafter == worker:
                    return self._run(request, request.passed(passed, now_s))
            case Arrived(spec):
                return self._arrived(spec, now_s)
            case Ended(request_id, reason, error):
                request = self._requests.get(request_id)
                if request is None:
                    return [Fail(request_id, UnknownRequest(request_id))]
                if error:
                    return self._run(request, request.fail(error))
                return self._run(request, request.finish(reason, now_s))
            case Faulted():
                return self._faulted(event, now_s)
            case WorkerUp(worker, info, is_trusted, rtt_s):
                self.pools.join(worker, info, is_trusted=is_trusted, rtt_s=rtt_s)
            case WorkerRenewed(worker, info, rtt_s):
                self.pools.heard(worker, info, rtt_s, now_s)
            case WorkerSuspected(worker):
                self.pools.missed(worker)
            case WorkerDraining(worker):
                self.pools.drain(worker)
            case WorkerDown(worker):
                return self._worker_down(worker, now_s)
            case Tick():
                return self._tick(now_s)
        return ()

    # --- requests

    def _arrived(self, spec: RequestSpec, now_s: float) -> Iterator[Command]:
        if spec.request_id in self._requests:
            error = InvalidInput("request_id", spec.request_id, "is running already; choose another")
            yield Fail(spec.request_id, error)
            return
        if spec.mode is not Mode.OFF and spec.policy and (fix := self.pools.why_not(spec.policy)):
            yield Fail(spec.request_id, Unsupported("length_policy", spec.policy.name, fix))
            return
        try:
            rule = choose_rule(spec, is_distrusted=self.pools.distrusts_all_drafters)
        except InvalidInput as error:
            yield Fail(spec.request_id, error)
            return
        if len(self._waiting) >= self.limits.max_waiting:
            last, overloaded = self._waiting.crowding_out(spec.client), self._overloaded(now_s)
            if last is None:
                yield Fail(spec.request_id, overloaded)
                return
            yield from self._run(self._requests[last], self._requests[last].fail(overloaded))
        request = self._requests[spec.request_id] = Request(spec, rule, self.limits, now_s)
        self._waiting.add(spec.request_id, spec.client, len(request.committed))
        self._arm(request)

    def _overloaded(self, now_s: float) -> Overloaded:
        return Overloaded("waiting requests", self.limits.max_waiting, self.retry_after_s(now_s))

    def _verified(self, request: Request, verdict: Verdict, now_s: float) -> Iterator[Command]:
        num_known = len(request.committed)
        if not request.metrics.sources:
            self._moved_s = now_s
        yield from self._run(request, request.verified(verdict, now_s))
        self._waiting.used(request.spec.client, len(request.committed) - num_known)
        self.pools.judged(request.drafter, now_s)
        if num_known // _LOOK_EVERY < len(request.committed) // _LOOK_EVERY:
            yield from self._change_drafter(request, now_s)

    def _change_drafter(self, request: Request, now_s: float) -> Iterator[Command]:
        """Another drafter takes over if it is so much faster that catching up pays."""
        passes, num_known = self._passes(request), len(request.committed)
        if request.drafter is None or passes is None or request.done:
            return
        num_left = request.spec.end - num_known
        if self.pools.better(request.drafter, request.wish, passes, now_s, num_known=num_known, num_left=num_left) and (
            drafter := self.pools.take(request.wish, request.spec.request_id, now_s, passes=passes)
        ):
            yield from self._run(request, request.leave_drafter("drafter changed", now_s))
            self._leave_undrafted(request)
            yield from self._run(request, request.attach_drafter(drafter))

    def _passes(self, request: Request) -> PassTimes | None:
        """Those of its verifier."""
        verifier = self.pools.get(request.verifier) if request.verifier else None
        return verifier.passes if verifier else None

    def _run(self, request: Request, commands: Iterable[Command]) -> Iterator[Command]:
        """Carry `request` one step further, then keep the books: places given back, queues, deadline."""
        request_id = self._carried = request.spec.request_id
        before = (request.verifier, request.drafter)
        yield from commands
        for worker in before:
            if request.done or worker not in (request.verifier, request.drafter):
                self.pools.release(worker, request_id)
        if request.done:
            del self._requests[request_id]
            self._waiting.discard(request_id)
            self._failed_at.pop(request_id, None)
            self._leave_undrafted(request)
            return
        if request.verifier is None and request_id not in self._waiting:
            if before[0]:
                self._failed_at.setdefault(request_id, set()).add(before[0])
            self._waiting.add_first(request_id)
        if request.drafter is None and request.wants_drafter:
            self._undrafted.setdefault(request.wish, OrderedDict())[request_id] = None
        self._arm(request)

    def _arm(self, request: Request) -> None:
        heapq.heappush(self._deadlines, (request.deadline_s, request.spec.request_id))

    # --- workers

    def _place(self, now_s: float) -> Iterator[Command]:
        """Relieve who leaves, give drafters to running requests that want one, then both workers to waiting ones."""
        yield from self._relieve(now_s)
        for wish, undrafted in list(self._undrafted.items()):
            while undrafted:
                request_id = self._carried = next(iter(undrafted))
                request = self._requests[request_id]
                drafter = self.pools.take(wish, request_id, now_s, passes=self._passes(request), head=request.head)
                if drafter is None:
                    break
                self._leave_undrafted(request)
                yield from self._run(request, request.attach_drafter(drafter))
        while (waiting := self._waiting.next()) is not None:
            request, self._carried = self._requests[waiting], waiting
            verifier = self._take_verifier(request, now_s, head=request.head)
            if verifier is None:
                break
            self._waiting.take()
            self._turnover.served(now_s)
            yield from self._run(request, self._start(request, verifier, now_s))

    def _relieve(self, now_s: float) -> Iterator[Command]:
        """From a drafter that leaves its requests go at once, from a verifier as far as there is room elsewhere."""
        for worker in self.pools.leaving(now_s):
            reason = "drafter drained" if worker.is_draining else "drafter resting"
            for request_id in list(worker.requests):
                request = self._requests[request_id]
                if request.drafter == worker.name:
                    yield from self._run(request, request.leave_drafter(reason, now_s))
                elif verifier := self._take_verifier(request, now_s):
                    yield from self._run(request, request.move_verifier(verifier, now_s))

    def _take_verifier(self, request: Request, now_s: float, head: Head = ()) -> Worker | None:
        """One that has not failed this request before, as long as there is another."""
        request_id = request.spec.request_id
        failed_at = self._failed_at.get(request_id, ())
        return self.pools.take(VERIFIER, request_id, now_s, head=head, rather_not=failed_at)

    def _leave_undrafted(self, request: Request) -> None:
        """It wants no drafter any more, or has one."""
        undrafted = self._undrafted.get(request.wish, OrderedDict())
        undrafted.pop(request.spec.request_id, None)
        if not undrafted:
            self._undrafted.pop(request.wish, None)

    def _start(self, request: Request, verifier: Worker, now_s: float) -> Iterator[Command]:
        """Both workers start prefilling in parallel."""
        if request.drafter is None and request.wants_drafter:
            drafter = self.pools.take(
                request.wish, request.spec.request_id, now_s, passes=verifier.passes, head=request.head
            )
            if drafter:
                yield from request.attach_drafter(drafter)
        yield from request.attach_verifier(verifier, now_s)

    def _worker_down(self, worker: str, now_s: float) -> Iterator[Command]:
        left = self.pools.leave(worker)
        for request_id in left.requests if left else ():
            request = self._requests[request_id]
            if request.verifier == worker:
                yield from self._run(request, request.lose_verifier(now_s))
            else:
                yield from self._run(request, request.lose_drafter("drafter lost", now_s))

    def _faulted(self, event: Faulted, now_s: float) -> Iterable[Command]:
        """A refusal ends the request if it is to blame itself; else the request goes on without whoever is."""
        request = self._requests.get(event.request_id)
        if request is None or event.worker not in (request.verifier, request.drafter):
            return ()
        if event.blame is Blame.FULL:
            return self._full(request, event.worker, now_s)
        if event.worker == request.drafter or event.blame is Blame.DRAFTER:
            if request.drafter and event.blame is not Blame.CALLER:
                self.pools.pace(request.drafter).breaker.refused(now_s)
                self.pools.suspect(request.drafter)
            return self._run(request, request.refuse_drafter(now_s))
        if event.blame is Blame.CALLER:
            error = InvalidInput("request_id", event.request_id, event.message)
            return self._run(request, request.fail(error))
        # It may fail all that come, and one that is always empty would draw them all: it rests for a moment.
        self.pools.full(event.worker, now_s)
        return self._run(request, request.lose_verifier(now_s))

    def _full(self, request: Request, worker: str, now_s: float) -> Iterator[Command]:
        """Others have taken the place that was meant for it. That is nobody's failure: it goes elsewhere, or waits."""
        self.pools.full(worker, now_s)
        if worker == request.drafter:
            return self._run(request, request.leave_drafter("drafter full", now_s))
        request.bounce()
        self.pools.release(worker, request.spec.request_id)
        return self._run(request, ())

    # --- time

    def _tick(self, now_s: float) -> Iterator[Command]:
        while self._next_request_s() <= now_s and self._deadlines:
            _, request_id = heapq.heappop(self._deadlines)
            request = self._requests[request_id]
            if request.verifier is None and now_s < self._moved_s + self.limits.queue_timeout_s:
                request.deadline_s = self._moved_s + self.limits.queue_timeout_s  # the queue is long, but it moves
                self._arm(request)
                continue
            self.pools.suspect(request.drafter)  # it may be late once too often
            yield from self._run(request, request.tick(now_s))
