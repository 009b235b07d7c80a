"""The shell that drafter and verifier share: streams of asks in, an engine in its own thread, replies out.

    coordinator ==stream==> reader --inbox--> engine thread --one call a batch--> outbox --> writer ==> coordinator

Rules. The engine is synchronous and belongs to one thread, and so does its device. A coordinator's stream is a
*peer*, a number; when the stream ends, the engine drops all that the peer had. A bad ask costs its request, a peer
that does not read costs its stream, an engine that fails three steps running, or is lost, ends the process. Every
queue is bounded: a full inbox stops the readers, and flow control carries that to the coordinators.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, Unpack, cast

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from paceline.codec import request_id_of, worker_info_from_wire, worker_info_to_wire
from paceline.door import Door
from paceline.drain import DRAIN_S, emptied
from paceline.errors import EngineLost, InvalidInput, PacelineError, Unavailable
from paceline.holdings import Figures, told_on_signal
from paceline.kind import Kind, Place
from paceline.outbox import Outbox
from paceline.rpc import Server, answering, keep_registered, register_now, run_until_signalled, start_server, with_port
from paceline.security import PeerRole, Tls
from paceline.types import Blame, Close, Fault, WorkerInfo

log = logging.getLogger(__name__)

MAX_INBOX = 4096  # asks waiting for the engine; at 256 requests a peer, several asks of each
MAX_STEP_FAILURES = 3  # in a row: the device is gone, not a request bad
IDLE_CHECK_S = 1.0  # an idle engine may be lost too; whoever has no work is asked this often whether it has
WRITE_GRACE_S = 1.0
SHUTDOWN_S = 10.0  # more than a forward pass takes, less than the 30 s after which Kubernetes kills


class Named(Protocol):
    """What every ask is: about one request."""

    @property
    def request_id(self) -> str: ...


Ask = TypeVar("Ask", bound=Named)
Reply = TypeVar("Reply")
AskIn = TypeVar("AskIn", bound=Named, contravariant=True)


class Engine(Protocol[AskIn, Reply]):
    """What computes. Only the engine thread calls it."""

    @property
    def info(self) -> WorkerInfo:
        """What to register; the shell fills in the address and the incarnation."""

    @property
    def num_requests(self) -> int:
        """How many it holds; may be read at any time, from any thread."""

    @property
    def held(self) -> Figures:
        """What it has that must be given back, counted by name; likewise."""

    def handle(self, peer: int, ask: AskIn) -> list[tuple[int, Reply]]:
        """Take one ask of stream `peer`. What it raises becomes a `Fault`, and a `Close` follows."""

    def step(self) -> list[tuple[int, Reply]]:
        """One forward pass."""

    def has_work(self) -> bool:
        """Whether `step` would do anything, be it only to raise EngineLost."""

    def drop(self, peer: int) -> None:
        """Stream `peer` has ended: free all its requests."""

    def fail(self, error: Exception) -> list[tuple[int, Fault]]:
        """`step` raised this: give up the requests that it may have spoilt."""


class EngineThread(Generic[Ask, Reply]):
    """Owns the engine. All public methods are for the event loop's thread."""

    def __init__(
        self,
        engine: Engine[Ask, Reply],
        deliver: Callable[[list[tuple[int, Reply | Fault]]], None],
        died: Callable[[str], None],
        *,
        max_inbox: int = MAX_INBOX,
    ) -> None:
        """`deliver` gets the replies of a batch and `died` the reason, both called in the event loop."""
        self._engine, self._deliver, self._died = engine, deliver, died
        self._max_inbox = max_inbox
        self._inbox: queue.SimpleQueue[tuple[int, Ask | None] | None] = queue.SimpleQueue()
        self._room = asyncio.Event()
        self._wants_room = False
        self._failures = 0
        self._loop = asyncio.get_running_loop()
        # A daemon: a pass that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def submit(self, peer: int, ask: Ask) -> None:
        """Hand over an ask; waits while the inbox is full."""
        while self._inbox.qsize() >= self._max_inbox:
            self._room.clear()
            self._wants_room = True
            # Looked at again after the flag is up, else the thread may have emptied the inbox just before.
            if self._inbox.qsize() >= self._max_inbox:
                await self._room.wait()
        self._inbox.put((peer, ask))

    @property
    def num_requests(self) -> int:
        """Requests that the engine holds, and asks that wait for it."""
        return self._engine.num_requests + self._inbox.qsize()

    @property
    def held(self) -> Figures:
        """What the engine has that must be given back, and asks that wait for it."""
        return {**self._engine.held, "asks": self._inbox.qsize()}

    def drop(self, peer: int) -> None:
        """Free all that `peer` had. Never waits."""
        self._inbox.put((peer, None))

    async def stop(self, within_s: float) -> bool:
        """End the thread after its current step; False if it did not end in time."""
        self._inbox.put(None)
        await self._loop.run_in_executor(None, self._thread.join, within_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            log.critical("the engine has failed for good", exc_info=error)
            self._call(self._died, f"the engine has failed: {type(error).__name__}: {error}")

    def _turn(self) -> bool:
        """Take what has come, then one step; False when told to stop."""
        items = [] if self._engine.has_work() else self._wait()
        items += [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
        if self._wants_room:
            self._wants_room = False
            self._call(self._room.set)
        replies: list[tuple[int, Reply | Fault]] = []
        for item in items:
            if item is None:
                return False
            replies += self._take(*item)
        self._send(replies)
        if self._engine.has_work():
            self._send(self._step())
        return True

    def _wait(self) -> list[tuple[int, Ask | None] | None]:
        try:
            return [self._inbox.get(timeout=IDLE_CHECK_S)]
        except queue.Empty:
            return []

    def _take(self, peer: int, ask: Ask | None) -> Sequence[tuple[int, Reply | Fault]]:
        if ask is None:
            self._quietly(self._engine.drop, peer)
            return ()
        try:
            return self._engine.handle(peer, ask)
        except PacelineError as error:
            blame = Blame.CALLER if isinstance(error, InvalidInput) else Blame.WORKER
            fault = Fault(ask.request_id, str(error), blame)
        except Exception:
            log.exception("request %s: the engine failed on %s", ask.request_id, type(ask).__name__)
            fault = Fault(ask.request_id, "internal error; the worker's log says more")
        if not isinstance(ask, Close):
            self._quietly(self._engine.handle, peer, cast(Ask, Close(ask.request_id)))
        return [(peer, fault)]

    def _step(self) -> Sequence[tuple[int, Reply | Fault]]:
        try:
            replies = self._engine.step()
        except Exception as error:
            self._failures += 1
            log.exception("step failure %d of %d in a row", self._failures, MAX_STEP_FAILURES)
            faults = self._engine.fail(error)
            if self._failures < MAX_STEP_FAILURES and not isinstance(error, EngineLost):
                return faults
            self._send(faults)
            raise
        self._failures = 0
        return replies

    def _quietly(self, call: Callable[..., object], *arguments: object) -> None:
        """For what frees: if it fails, only the log can be told."""
        try:
            call(*arguments)
        except Exception:
            log.exception("the engine failed to free %s", arguments)

    def _send(self, replies: Sequence[tuple[int, Reply | Fault]]) -> None:
        if replies:
            self._call(self._deliver, list(replies))

    def _call(self, call: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear
            self._loop.call_soon_threadsafe(call, *arguments)


class WorkerServer(Generic[Ask, Reply]):
    """A worker's server: `start`, wait for `ended`, `stop`."""

    def __init__(self, engine: Engine[Ask, Reply], kind: Kind[Ask, Reply]) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()  # exit code
        self.info = engine.info
        # A whole new value each time, so that reading it needs no lock.
        self._engine_info: Callable[[], WorkerInfo] = lambda: engine.info
        self._kind = kind
        self._peers = itertools.count(1)
        self._streams: dict[int, Outbox] = {}
        self._server: Server | None = None
        self._is_stopping = False
        self._coordinators: tuple[str, ...] = ()
        self._tls: Tls | None = None
        self._registrations: list[asyncio.Task[None]] = []
        self._engine: EngineThread[Ask, Reply] = EngineThread(engine, self._deliver, partial(self._end, 1))

    async def start(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        coordinators: Sequence[str] = (),
        insecure: bool = False,
        advertise: str | None = None,
        tls: Tls | None = None,
        has_reflection: bool = False,
    ) -> None:
        """Serve on `host`, and keep registered with each coordinator as `advertise` (HOST[:PORT]; else `host`).

        With `tls` only coordinators may call, and there is no reflection unless `has_reflection`.
        """
        self._coordinators, self._tls = tuple(coordinators), tls
        if advertise is None and host.strip("[]") in ("0.0.0.0", "::"):
            fix = "give the host name by which coordinators reach this machine"
            raise InvalidInput("advertise", advertise, fix)

        def add(server: Any) -> None:
            self._kind.add(self._serve_stream, server)

        door = Door({"Connect": (PeerRole.COORDINATOR,)}, has_tls=tls is not None)
        services = ((self._kind.service, add),)
        self._server, bound = await start_server(
            services, host, port, insecure=insecure, tls=tls, door=door, has_reflection=has_reflection
        )
        address = with_port(advertise or host, bound)
        info = replace(self.info, address=address, incarnation=secrets.randbits(64))
        try:
            self.info = worker_info_from_wire(worker_info_to_wire(info))
        except InvalidInput:
            await self._server.stop()
            raise
        self._registrations = [asyncio.create_task(self._register(to)) for to in coordinators]

    async def drain(self, within_s: float = DRAIN_S) -> None:
        """Ask every coordinator to take away what it has here; returns when that is done, or after `within_s`."""
        if self.ended.done() or not self._server:
            return  # it has failed, and serves nobody any more
        self.info = replace(self.info, is_draining=True)
        await self._server.drain()
        wire = worker_info_to_wire(self._info_now())
        tell = asyncio.gather(*(register_now(to, wire, self._tls) for to in self._coordinators))
        await emptied(tell, lambda: self._engine.num_requests == 0 or self.ended.done(), within_s)

    async def stop(self, within_s: float = SHUTDOWN_S) -> bool:
        """End registrations, streams and the engine thread; False if the thread did not end in time."""
        self._is_stopping = True
        await _cancel(*self._registrations)
        for stream in self._streams.values():
            stream.end(Unavailable("this worker is shutting down"))
        if self._server:
            await self._server.stop(grace_s=min(1, within_s / 2))
        return await self._engine.stop(within_s / 2)

    async def _serve_stream(self, context: Any) -> None:
        """One coordinator's `Connect`, until either side ends it."""
        async with answering(context):
            if self._is_stopping:
                raise Unavailable("this worker is shutting down")
            peer, stream = next(self._peers), Outbox()
            self._streams[peer] = stream
            reader = asyncio.ensure_future(self._read(peer, stream, context))
            writer = asyncio.ensure_future(self._write(stream, context))
            work = (reader, writer, stream.ended)
            try:
                done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    future.result()
            finally:
                del self._streams[peer]
                self._engine.drop(peer)
                reader.cancel()
                stream.close()
                # gRPC cannot send a status while a write is under way, so that one gets a moment to end.
                await asyncio.wait((writer,), timeout=WRITE_GRACE_S)
                await _cancel(*work)

    async def _read(self, peer: int, stream: Outbox, context: Any) -> None:
        while (wire := await _next(context)) is not grpc.aio.EOF:
            try:
                ask = self._kind.ask_from_wire(wire)
            except InvalidInput as error:
                request_id = request_id_of(wire)
                if request_id is None:
                    raise
                stream.put(Fault(request_id, str(error), Blame.CALLER))
                ask = cast(Ask, Close(request_id))
            await self._engine.submit(peer, ask)

    async def _write(self, stream: Outbox, context: Any) -> None:
        while not stream.ended.done():
            while stream.replies and not stream.ended.done():
                await context.write(self._kind.reply_to_wire(stream.replies.popleft()))
            await stream.wait()

    def _deliver(self, replies: list[tuple[int, Reply | Fault]]) -> None:
        for peer, reply in replies:
            if stream := self._streams.get(peer):  # else it has ended, and its drop is on the way
                stream.put(reply)

    def _end(self, code: int, reason: str) -> None:
        print(f"paceline {self.info.role}: {reason}", file=sys.stderr, flush=True)
        if not self.ended.done():
            self.ended.set_result(code)

    def _info_now(self) -> WorkerInfo:
        """What is registered, with the engine's present load, cache and estimate of its costs."""
        engine = self._engine_info()
        return replace(self.info, cost=engine.cost, cache=engine.cache, num_requests=self._engine.num_requests)

    @property
    def held(self) -> Figures:
        """What the engine has, and how many coordinators' streams are open."""
        return {**self._engine.held, "streams": len(self._streams)}

    async def _register(self, coordinator: str) -> None:
        try:
            reason = await keep_registered(coordinator, lambda: worker_info_to_wire(self._info_now()), self._tls)
        except Exception as error:
            log.exception("the registration with %s failed", coordinator)
            self._end(1, f"the registration with {coordinator} failed: {type(error).__name__}")
        else:
            self._end(2, f"coordinator {coordinator} refuses this worker: {reason}")


async def _cancel(*futures: asyncio.Future[None]) -> None:
    for future in futures:
        future.cancel()
    await asyncio.gather(*futures, return_exceptions=True)


async def _next(context: Any) -> Any:
    try:
        return await context.read()
    except DecodeError as error:
        raise InvalidInput("ask", str(error), "these bytes are no message of this service") from None


async def serve_worker(
    engine: Engine[Ask, Reply], kind: Kind[Ask, Reply], drain_s: float = DRAIN_S, **place: Unpack[Place]
) -> int:
    """Serve until a signal, then drain; the exit code: 0, 1 if the engine failed, 2 if a coordinator refused it."""
    worker = WorkerServer(engine, kind)
    try:
        await worker.start(**place)
    except InvalidInput:
        await worker.stop(1)
        raise
    info = worker.info
    print(f"paceline {info.role} ready on {info.address} (model {info.model})", flush=True)

    async def shutdown() -> None:
        await worker.drain(drain_s)
        await worker.stop()

    with told_on_signal(info.role, lambda: worker.held):
        return await run_until_signalled(shutdown, within_s=drain_s + SHUTDOWN_S + 2, ended=worker.ended)
