"""The thread that owns a worker's engine: asks in from the event loop, replies out to it.

The engine is synchronous and belongs to one thread, and so does its device. A bad ask costs its request; an engine
that fails three steps running, or is lost, ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar, cast

from paceline.errors import EngineLost, InvalidInput, Overloaded, PacelineError
from paceline.holdings import Figures
from paceline.types import Blame, Close, Fault, WorkerInfo

log = logging.getLogger(__name__)

MAX_INBOX = 4096  # asks waiting for the engine; at 256 requests a peer, several asks of each
MAX_STEP_FAILURES = 3  # in a row: the device is gone, not a request bad
IDLE_CHECK_S = 1.0  # an idle engine may be lost too; whoever has no work is asked this often whether it has


class Named(Protocol):
    """What every ask is: about one request."""

    @property
    def request_id(self) -> str: ...


Ask = TypeVar("Ask", bound=Named)
Reply = TypeVar("Reply")
# A peer, its ask or None for the end of its stream, and when that came; None ends the thread.
_Item = tuple[int, Ask | None, float] | None
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

    def handle(self, peer: int, ask: AskIn, waited_s: float = 0.0) -> list[tuple[int, Reply]]:
        """Take one ask of stream `peer`, which came `waited_s` ago and lay in the inbox since.

        What it raises becomes a `Fault`, and a `Close` follows.
        """

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
        self._inbox: queue.SimpleQueue[_Item[Ask]] = queue.SimpleQueue()
        self._room = asyncio.Event()
        self._wants_room = False
        self._failures = 0
        self._turned_s = time.monotonic()
        self._loop = asyncio.get_running_loop()
        # A daemon: a pass that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def submit(self, peer: int, ask: Ask) -> None:
        """Hand over an ask; waits while the inbox is full."""
        came_s = time.monotonic()
        while self._inbox.qsize() >= self._max_inbox:
            self._room.clear()
            self._wants_room = True
            # Looked at again after the flag is up, else the thread may have emptied the inbox just before.
            if self._inbox.qsize() >= self._max_inbox:
                await self._room.wait()
        self._inbox.put((peer, ask, came_s))

    @property
    def num_requests(self) -> int:
        """That the engine holds; asks that wait for it are more often about these than new ones."""
        return self._engine.num_requests

    @property
    def is_empty(self) -> bool:
        """Whether it holds no request and no ask waits for it."""
        return self._inbox.empty() and not self._engine.num_requests

    @property
    def held(self) -> Figures:
        """What the engine has that must be given back, and asks that wait for it."""
        return {**self._engine.held, "asks": self._inbox.qsize()}

    @property
    def busy_s(self) -> float:
        """For how long it has not come round to its inbox, which it looks at once a second even if it has no work."""
        return time.monotonic() - self._turned_s

    def drop(self, peer: int) -> None:
        """Free all that `peer` had. Never waits."""
        self._inbox.put((peer, None, 0.0))

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
        self._turned_s = time.monotonic()
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

    def _wait(self) -> list[_Item[Ask]]:
        try:
            return [self._inbox.get(timeout=IDLE_CHECK_S)]
        except queue.Empty:
            return []

    def _take(self, peer: int, ask: Ask | None, came_s: float) -> Sequence[tuple[int, Reply | Fault]]:
        if ask is None:
            self._quietly(self._engine.drop, peer)
            return ()
        try:
            return self._engine.handle(peer, ask, time.monotonic() - came_s)
        except PacelineError as error:
            fault = Fault(ask.request_id, str(error), _blame(error))
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


def _blame(error: PacelineError) -> Blame:
    if isinstance(error, Overloaded):
        return Blame.FULL
    return Blame.CALLER if isinstance(error, InvalidInput) else Blame.WORKER
