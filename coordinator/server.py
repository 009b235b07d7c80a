"""The asyncio shell around the core: owns the clock, the streams to the workers, and the clients' queues.

One thread, one event loop. Whatever happens becomes an event; `feed` hands it to the core and carries out what the
core wants, at once and without waiting for anything, so the core never sees two events at a time. All waiting is at
the edges: one task reads and one writes for each worker's stream.

    client --Generate--> api --Arrived--> feed --Ask--> link ==stream==> worker
                          ^-----Emit------  ^--Drafted, Verified-- link <==
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.config import CoordinatorConfig
from coordinator.core.commands import Ask, Command, Emit, Fail, Finish
from coordinator.core.events import (
    Arrived,
    Branched,
    Drafted,
    Ended,
    Event,
    RequestSpec,
    Tick,
    Verified,
    event_of,
    request_id_of,
)
from coordinator.core.pipeline import BUG, CoreFailed, Pipeline
from coordinator.demand import Demand
from coordinator.recent import RecentRequests
from coordinator.registry import Link, Registry
from coordinator.shares import Shares
from coordinator.telemetry import Telemetry
from paceline import codec, trace
from paceline.api_keys import ApiKeys
from paceline.drain import emptied
from paceline.errors import Internal, InvalidInput, Overloaded, PeerFault, Unavailable, Unhelpful
from paceline.holdings import Figures
from paceline.plain import to_plain
from paceline.rpc import connect
from paceline.security import PeerRole
from paceline.tokenizer import Tokenizer
from paceline.types import MAX_BRANCHES, FinishReason, Role
from paceline.wire import drafter_pb2_grpc, verifier_pb2_grpc

log = logging.getLogger(__name__)

MAX_CLIENT_QUEUE = 4096  # replies a client has not read; it stopped reading long before
MAX_TOKENIZED = 2**27  # characters of long texts that wait for a thread: thirty-two messages of the largest size
# An open or a commit lets a drafter send a window of drafts, 64 at most, and branches, a decode its run of verdicts;
# either may end in a fault. What was not used is kept up to so much; a worker that says more than all of it floods us.
MAX_REPLIES_AN_ASK, MAX_OWED = 64 + MAX_BRANCHES + 1, 2**16
CONNECT_TIMEOUT_S = 5.0
AFTER_BUG_S = 0.1  # a deadline that the core fails on is tried again, and must leave time for everything else
MAKE_WAY_S = 1.0  # several passes and round trips
PING_S = 2.0  # between two measurements of a worker's round trip


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of work on a watched request, on the coordinator's clock.

    Placed by the arrival of its result and the duration that the worker reports, so it stands late by one way of the
    wire, and no two clocks are compared.
    """

    role: Role
    start_s: float
    end_s: float
    num_tokens: int  # drafted, or committed by the pass
    is_branch: bool = False  # drafted for an outcome that had not happened yet


class ClientQueue(asyncio.Queue[Emit | Finish | Fail | Span]):
    """What a client has yet to read; bounded by `Coordinator._tell`, which adds one last word."""

    def __init__(self, client: str = "") -> None:
        super().__init__()
        self.client = client  # the name of its API key


class Observer(Protocol):
    """Whoever wants to know what the core was told, and what it said. It must not wait and must not raise."""

    def observe(self, event: Event, commands: Sequence[Command], now_s: float) -> None: ...


class Coordinator:
    """See the top of the file."""

    def __init__(self, config: CoordinatorConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.tokenizer = Tokenizer.load(config.tokenizer, config.revision)
        self.pipeline = Pipeline(config.limits)
        self.keys = ApiKeys(config.api_keys) if config.api_keys else None
        self.is_draining = False
        self._clock = clock
        self.registry = Registry(config, self.tokenizer.hash, self.pipeline.pools, clock, self.feed, self._serve)
        self.links = self.registry.links
        self.demand = Demand()
        self.recent = RecentRequests(config.num_traces)
        self.observers: list[Observer] = [self.recent, self.demand]
        self.telemetry: Telemetry | None = None  # one of them, if traces are wanted
        self._clients: dict[str, ClientQueue] = {}
        self._held: Counter[str] = Counter()  # requests by API key, those included that are being admitted
        self.texts = Shares("characters being tokenized", MAX_TOKENIZED)
        self._watched: set[str] = set()  # requests whose clients are told of spans
        self._busy_ms: dict[str, float] = {}  # time spent here, by request
        self._timer: asyncio.TimerHandle | None = None
        self._rings_s = math.inf  # when it rings
        self._trace = _open_trace(config, clock())

    def now_s(self) -> float:
        """The time on the clock that spans are on."""
        return self._clock()

    @property
    def held(self) -> Figures:
        """What it has that must be given back, counted by name."""
        core = self.pipeline
        requests = {"requests": core.num_running + core.num_waiting, "clients": len(self._clients)}
        return {**requests, "timed": len(self._busy_ms), "links": len(self.links)}

    # --- the one door to the core

    def feed(self, event: Event) -> None:
        """Let the core handle an event, and do what it says. Never waits."""
        started_s, least_s = self._clock(), 0.0
        request_id = request_id_of(event)
        if request_id in self._watched and (span := _span(event, started_s)):
            self._tell(request_id, span)
        try:
            commands = self.pipeline.handle(event, started_s)
        except CoreFailed as failed:
            # The link that brought the event, and all other requests, go on.
            log.exception("%s, at %s", failed, type(event).__name__)
            commands, least_s = failed.commands, AFTER_BUG_S
        self._carry_out(commands)
        if self._trace:
            self._trace.observe(event, commands, started_s)
        for observer in self.observers:
            observer.observe(event, commands, started_s)
        self._set_timer(least_s)
        if request_id in self._busy_ms:
            self._busy_ms[request_id] += 1e3 * (self._clock() - started_s)

    def _carry_out(self, commands: Sequence[Command]) -> None:
        """Asks before all else: whoever waits for one makes the round longer, a client only reads a little later."""
        for command in commands:
            if isinstance(command, Ask):
                self._send(command.worker, command.ask)
        for command in commands:
            match command:
                case Emit(request_id):
                    self._tell(request_id, command)
                case Finish(request_id, _, metrics):
                    metrics.coordinator_ms = self._busy_ms.pop(request_id, 0.0)
                    self._tell(request_id, command)
                case Fail(request_id):
                    self._busy_ms.pop(request_id, None)
                    self._tell(request_id, command)

    def _send(self, worker: str, ask: Any) -> None:
        link = self.links.get(worker)
        if link is None:
            return  # lost; its WorkerDown has been, or is about to be, handled
        try:
            link.asks.put_nowait(ask)
            link.num_owed = min(link.num_owed + MAX_REPLIES_AN_ASK, MAX_OWED)
        except asyncio.QueueFull:
            log.warning("%s takes no asks: cutting it off", worker)
            if link.task:
                link.task.cancel()

    def _tell(self, request_id: str, reply: Emit | Finish | Fail | Span) -> None:
        queue = self._clients.get(request_id)
        if queue is None:
            return  # the client has left
        if queue.qsize() < MAX_CLIENT_QUEUE:
            queue.put_nowait(reply)
            return
        del self._clients[request_id]
        queue.put_nowait(Fail(request_id, Overloaded("replies that the client has not read", MAX_CLIENT_QUEUE, 1.0)))
        asyncio.get_running_loop().call_soon(self.feed, Ended(request_id, FinishReason.CANCELLED))

    def _set_timer(self, least_s: float = 0.0) -> None:
        """Have the timer ring by the core's next deadline, not before `least_s`.

        Deadlines are put off far more often than they pass, so a timer that would ring too early is left as it is.
        """
        deadline_s = self.pipeline.next_deadline_s()
        if deadline_s >= self._rings_s:
            return
        if self._timer:
            self._timer.cancel()
        self._rings_s = deadline_s
        delay_s = max(least_s, deadline_s - self._clock())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._timer, self._rings_s = None, math.inf
        if self.pipeline.next_deadline_s() <= self._clock():
            self.feed(Tick())
        else:
            self._set_timer()

    # --- clients

    def check_room(self, client: str) -> None:
        """Whether to take in a request of the key `client`. Raises Unavailable and Overloaded."""
        if self.is_draining:
            raise Unavailable("this coordinator is shutting down; ask another one")
        now_s, limit = self._clock(), self.config.max_requests_per_key
        try:
            if client and self._held[client] >= limit:
                raise Overloaded(f"requests of the key {client}", limit, self.pipeline.retry_after_s(now_s))
            self.pipeline.check_room(client, now_s)
        except Overloaded as error:
            for observer in self.observers:  # the core hears nothing of it, and it counts all the same
                observer.observe(Tick(), [Fail("", error)], now_s)
            raise

    @contextlib.contextmanager
    def place(self, client: str) -> Iterator[None]:
        """One of those that the key `client` may hold. Raises Unavailable and Overloaded."""
        self.check_room(client)
        self._held[client] += 1
        try:
            yield
        finally:
            self._held[client] -= 1
            if not self._held[client]:
                del self._held[client]

    @contextlib.contextmanager
    def generation(self, spec: RequestSpec, *, watch: bool = False) -> Iterator[ClientQueue]:
        """Run a request: a queue of what the core says of it. Leaving the context early cancels it."""
        with self.place(spec.client):
            if spec.request_id in self._clients:
                self._make_way(spec)
            queue = self._clients[spec.request_id] = ClientQueue(spec.client)
            self._busy_ms[spec.request_id] = 0.0
            if watch:
                self._watched.add(spec.request_id)
            try:
                self.feed(Arrived(spec))
                yield queue
            finally:
                if self._clients.get(spec.request_id, queue) is queue:  # else the id is another call's by now
                    self._watched.discard(spec.request_id)
                    if self._clients.pop(spec.request_id, None) and spec.request_id in self._busy_ms:
                        self.feed(Ended(spec.request_id, FinishReason.CANCELLED))

    def _make_way(self, spec: RequestSpec) -> None:
        """End the call that runs under this id if its own client wants to go on in another one; raises in any case.

        That call's connection is dead, and nobody here knew. What its workers have said already is still to come, and
        must not be taken for what they say of the new call: hence Overloaded, and a moment in which it comes.
        """
        former = self._clients[spec.request_id]
        if not spec.resumed or former.client != spec.client:
            raise InvalidInput("request_id", spec.request_id, "is running already; choose another, or none")
        if spec.request_id in self._busy_ms:
            self.feed(Ended(spec.request_id, FinishReason.CANCELLED))
        self._clients.pop(spec.request_id, None)
        while not former.empty():
            former.get_nowait()
        error = InvalidInput("request_id", spec.request_id, "was resumed by another call, which ends this one")
        former.put_nowait(Fail(spec.request_id, error))
        raise Overloaded("calls of this request_id, the former of which has been ended", 1, MAKE_WAY_S)

    def abort(self, request_id: str, client: str = "") -> bool:
        """End this client's running requests of that id: one, or all of its call; False if it has none."""
        found = self.pipeline.called(request_id, client)
        for one in found:
            self.feed(Ended(one, FinishReason.CANCELLED))
        return bool(found)

    # --- workers

    async def _serve(self, link: Link) -> None:
        """The life of a link: connect, exchange, and say that it is over."""
        try:
            # A worker of the other role, or none, fails the handshake: its certificate must say what it registered as.
            async with connect(link.info.address, self.config.tls, expects=PeerRole(link.info.role)) as channel:
                stub_class = (
                    drafter_pb2_grpc.DrafterStub if link.info.role is Role.DRAFTER else verifier_pb2_grpc.VerifierStub
                )
                call = stub_class(channel).Connect()
                await asyncio.wait_for(call.wait_for_connection(), CONNECT_TIMEOUT_S)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._write(link, call))
                    tasks.create_task(self._read(link, call))
                    tasks.create_task(self.registry.watch_lease(link))
                    tasks.create_task(self._measure(link, channel))
        except* (grpc.RpcError, asyncio.InvalidStateError, TimeoutError, Unavailable, Unhelpful, PeerFault) as group:
            log.warning("%s down: %s", link.name, _reason(group.exceptions[0]))
        except* Exception:  # a bug of ours, or gRPC's, which costs the link as any loss does
            log.exception("%s down", link.name)
        finally:
            self.registry.lost(link)

    async def _measure(self, link: Link, channel: Any) -> None:
        """Measure the way to a worker, now and then, by calls that need no model; a failure says nothing here."""
        check = health_pb2_grpc.HealthStub(channel).Check

        async def ping() -> None:
            started_s = self._clock()
            with contextlib.suppress(grpc.RpcError):
                await check(health_pb2.HealthCheckRequest(), timeout=PING_S)
                link.rtt_s = self._clock() - started_s

        await self.registry.take_in(link, ping)
        while True:
            await ping()
            await asyncio.sleep(PING_S)

    async def _write(self, link: Link, call: Any) -> None:
        to_wire = codec.drafter_ask_to_wire if link.info.role is Role.DRAFTER else codec.verifier_ask_to_wire
        while True:
            ask = await link.asks.get()
            try:
                wire = to_wire(ask)
            except Exception:  # a bug of ours: it costs this request, and neither the link nor the next worker
                log.exception("%s cannot be asked about %r", link.name, ask.request_id)
                self.feed(Ended(ask.request_id, FinishReason.CANCELLED, Internal(BUG)))
                continue
            await call.write(wire)

    async def _read(self, link: Link, call: Any) -> None:
        from_wire = codec.drafter_reply_from_wire if link.info.role is Role.DRAFTER else codec.verifier_reply_from_wire
        while (wire := await call.read()) is not grpc.aio.EOF:
            link.num_owed -= 1
            if wire is None:  # gRPC has logged why
                raise PeerFault("it sent what cannot be read")
            if link.num_owed < 0:
                raise PeerFault("it says more than it was asked for")
            self.feed(event_of(link.name, from_wire(wire)))
        raise Unavailable("the worker has ended its stream")

    async def drain(self, within_s: float) -> None:
        """Take no new requests, and let those that run end; returns when they have, or after `within_s`."""
        self.is_draining = True
        await emptied(asyncio.sleep(0), lambda: not self._clients, within_s)

    async def close(self) -> None:
        """Fail every request, so that its client may go on elsewhere, and end every link."""
        error = Unavailable(
            "this coordinator is shutting down; go on at another one (gRPC has resume_token_ids for it)"
        )
        for request_id in list(self._clients):
            self.feed(Ended(request_id, FinishReason.CANCELLED, error))
        tasks = [link.task for link in self.links.values() if link.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._timer:
            self._timer.cancel()
        if self._trace:
            self._trace.close()


def _open_trace(config: CoordinatorConfig, clock_s: float) -> trace.Writer | None:
    """Raises InvalidInput if the file that was named cannot hold a trace."""
    if config.trace is None:
        return None
    settings = to_plain(config)
    return trace.Writer(
        config.trace, unix_s=time.time(), clock_s=clock_s, settings=settings, max_bytes=config.max_trace_bytes
    )


def _span(event: Event, now_s: float) -> Span | None:
    match event:
        case Drafted(_, draft) if draft.draft_ms:
            return Span(Role.DRAFTER, now_s - draft.draft_ms / 1e3, now_s, len(draft.token_ids))
        case Branched(_, branch) if (draft := branch.draft).draft_ms:
            return Span(Role.DRAFTER, now_s - draft.draft_ms / 1e3, now_s, len(draft.token_ids), is_branch=True)
        case Verified(_, verdict) if verdict.verify_ms:
            return Span(Role.VERIFIER, now_s - verdict.verify_ms / 1e3, now_s, len(verdict.token_ids))
    return None


def _reason(error: BaseException) -> str:
    details = error.details() if isinstance(error, grpc.aio.AioRpcError) else ""
    return details or str(error) or type(error).__name__
