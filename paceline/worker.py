"""The shell that drafter and verifier share: streams of asks in, an engine in its own thread, replies out.

    coordinator ==stream==> reader --inbox--> engine thread --one call a batch--> outbox --> writer ==> coordinator

Rules. The engine is synchronous and belongs to one thread, and so does its device. A coordinator's stream is a
*peer*, a number; when the stream ends, the engine drops all that the peer had. A bad ask costs its request, a peer
that does not read costs its stream, an engine that fails three steps running, or is lost, ends the process. Every
queue is bounded: a full inbox stops the readers, and flow control carries that to the coordinators.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Unpack, cast

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from paceline.codec import request_id_of, worker_info_from_wire, worker_info_to_wire
from paceline.door import Door
from paceline.drain import DRAIN_S, emptied
from paceline.engine_thread import Ask, Engine, EngineThread, Reply
from paceline.errors import InvalidInput, Unavailable
from paceline.holdings import Figures, told_on_signal
from paceline.kind import Kind, Place
from paceline.outbox import Outbox
from paceline.registrations import Registrations
from paceline.rpc import Server, answering, keep_registered, register_now, run_until_signalled, start_server, with_port
from paceline.security import PeerRole, Tls
from paceline.types import Blame, Close, Fault, WorkerInfo

log = logging.getLogger(__name__)

WRITE_GRACE_S = 1.0
HANGS_S = 30.0  # an engine that has been busy for so long with a pass of seconds at most will not come back
FULL_PASS_TOKENS = 4096  # twice what a verifier's pass holds unless it is told otherwise
SHUTDOWN_S = 10.0  # more than a forward pass takes, less than the 30 s after which Kubernetes kills


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
        self._tls: Tls | None = None
        self._exits_if_refused = False
        self._registrations = Registrations(self._register)
        self._refusals: dict[str, str] = {}  # by coordinator that will not have this worker, why
        self._engine: EngineThread[Ask, Reply] = EngineThread(engine, self._deliver, partial(self._end, 1))

    async def start(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        coordinators: Sequence[str] = (),
        coordinators_file: str | None = None,
        insecure: bool = False,
        advertise: str | None = None,
        tls: Tls | None = None,
        has_reflection: bool = False,
        exits_if_refused: bool = False,
    ) -> None:
        """Serve on `host`, and keep registered with each coordinator as `advertise` (HOST[:PORT]; else `host`).

        `coordinators_file` lists more of them and may change. With `tls` only coordinators may call, without reflection
        unless `has_reflection`. `exits_if_refused`: by a coordinator that has no use for this worker now, instead of
        asking it again.
        """
        self._tls, self._exits_if_refused = tls, exits_if_refused
        if advertise is None and host.strip("[]") in ("0.0.0.0", "::"):
            raise InvalidInput("advertise", advertise, "give the host name by which coordinators reach this machine")

        add = partial(self._kind.add, self._serve_stream)
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
        self._registrations.start(coordinators, coordinators_file)

    async def drain(self, within_s: float = DRAIN_S) -> None:
        """Ask every coordinator to take away what it has here; returns when that is done, or after `within_s`."""
        if self.ended.done() or not self._server:
            return  # it has failed, and serves nobody any more
        self.info = replace(self.info, is_draining=True)
        await self._server.drain()
        wire = worker_info_to_wire(self._info_now())
        tell = asyncio.gather(*(register_now(to, wire, self._tls) for to in self._registrations.coordinators))
        await emptied(tell, lambda: self._engine.is_empty or self.ended.done(), within_s)

    async def stop(self, within_s: float = SHUTDOWN_S) -> bool:
        """End registrations, streams and the engine thread; False if the thread did not end in time."""
        self._is_stopping = True
        await self._registrations.stop()
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

    def _heartbeat(self) -> Any:
        """What to say to a coordinator; None while the engine hangs, so that its requests go on elsewhere."""
        info = self._info_now()
        busy_s, most_s = self._engine.busy_s, longest_turn_s(info)
        if busy_s <= most_s:
            return worker_info_to_wire(info)
        log.error("the engine has been busy for %.0f s with what takes %.0f s at most: no heartbeat", busy_s, most_s)
        return None

    @property
    def held(self) -> Figures:
        """What the engine has, and how many coordinators' streams are open."""
        return {**self._engine.held, "streams": len(self._streams)}

    async def _register(self, coordinator: str) -> None:
        self._refusals.pop(coordinator, None)  # it may be listed again, having been away
        try:
            reason = await keep_registered(
                coordinator,
                self._heartbeat,
                self._tls,
                asks_again=not self._exits_if_refused,
            )
        except Exception as error:
            log.exception("the registration with %s failed", coordinator)
            self._end(1, f"the registration with {coordinator} failed: {type(error).__name__}")
        else:
            log.error("coordinator %s refuses this worker: %s", coordinator, reason)
            self._refusals[coordinator] = str(reason)
            # One that is set up otherwise than the others must not take this worker away from them.
            if all(each in self._refusals for each in self._registrations.coordinators):
                told = (f"coordinator {each} refuses this worker: {why}" for each, why in self._refusals.items())
                self._end(2, "; ".join(told))


def longest_turn_s(info: WorkerInfo) -> float:
    """How long the engine may be busy with one turn before it is taken to hang: well over what a full pass takes."""
    full_pass_ms = info.cost.ms(FULL_PASS_TOKENS, info.max_num_seqs, 0) if info.cost else 0.0
    return max(HANGS_S, 2 * full_pass_ms / 1e3)


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
    engine: Engine[Ask, Reply],
    kind: Kind[Ask, Reply],
    drain_s: float = DRAIN_S,
    *,
    as_json: bool = False,
    **place: Unpack[Place],
) -> int:
    """Serve until a signal, then drain; the exit code: 0, 1 if the engine failed, 2 if a coordinator refused it.

    `as_json`: the line that says that it is ready is a JSON object.
    """
    worker = WorkerServer(engine, kind)
    try:
        await worker.start(**place)
    except InvalidInput:
        await worker.stop(1)
        raise
    info = worker.info
    told = {"ready": info.role, "grpc": info.address, "model": info.model}
    line = f"paceline {info.role} ready on {info.address} (model {info.model})"
    print(json.dumps(told) if as_json else line, flush=True)

    async def shutdown() -> None:
        await worker.drain(drain_s)
        await worker.stop()

    with told_on_signal(info.role, lambda: worker.held):
        return await run_until_signalled(shutdown, within_s=drain_s + SHUTDOWN_S + 2, ended=worker.ended)
