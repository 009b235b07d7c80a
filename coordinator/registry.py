"""Who has registered: every worker's link, its lease, and whether it is taken in.

A worker registers by a call that it repeats; each call renews its lease. One that is silent for too long is suspected,
and dropped when the lease has run out. A process that starts anew at the same address is another worker: it has drawn
another incarnation number, and the link to the one before ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from coordinator.admission import Admission
from coordinator.config import CoordinatorConfig
from coordinator.core.events import (
    WorkerDown,
    WorkerDraining,
    WorkerEvent,
    WorkerRenewed,
    WorkerSuspected,
    WorkerUp,
)
from coordinator.core.placement import Pools
from paceline.compatibility import check_wire
from paceline.errors import Overloaded, Unavailable, Unsupported
from paceline.types import Role, WorkerInfo

log = logging.getLogger(__name__)

MAX_ASK_QUEUE = 8192  # asks a worker has not taken; 64 requests with a window of 64 each, and as much again
NUM_FIRST_PINGS = 3  # of which the last counts: the first ones on a connection are long
JUDGE_S = 2.0  # a drafter that registers is told within it whether it is taken in, if that is known by then
SUSPECT_SHARE = 0.7  # of a lease: who has not renewed it by then has missed two turns
HELD_UP_S = 0.1  # a watch that wakes so late slept through a stall of the event loop, and not of the worker
STATES = ("connecting", "probation", "healthy", "suspected")  # of a link


@dataclass(slots=True)
class Link:
    """The stream to one worker, from its registration to its loss."""

    name: str
    info: WorkerInfo
    asks: asyncio.Queue[Any]
    task: asyncio.Task[None] | None = None
    lease_until_s: float = 0.0
    is_trusted: bool = False  # of a drafter: its rows are believed
    rtt_s: float | None = None  # of a call that needs no model, the last one measured
    is_up: bool = False  # the core knows of it
    is_suspected: bool = False  # it has missed a turn of its heartbeat
    num_owed: int = 0  # replies that it may send to what it was asked
    judged: asyncio.Event = field(default_factory=asyncio.Event)  # it was taken in, put on probation, or lost

    @property
    def state(self) -> str:
        """For metrics and the page: one of `STATES`."""
        if self.is_up:
            return "suspected" if self.is_suspected else "healthy"
        return "probation" if self.judged.is_set() else "connecting"


class Registry:
    """See the top of the file."""

    def __init__(
        self,
        config: CoordinatorConfig,
        tokenizer_hash: str,
        pools: Pools,
        clock: Callable[[], float],
        feed: Callable[[WorkerEvent], None],
        serve: Callable[[Link], Coroutine[Any, Any, None]],
    ) -> None:
        """`feed` tells the core; `serve` is the life of a link, which ends in `lost`."""
        self.links: dict[str, Link] = {}
        self.admission = Admission(pools, admits_any=config.admit_any)
        self._config, self._tokenizer_hash = config, tokenizer_hash
        self._clock, self._feed, self._serve = clock, feed, serve
        self._numbers = itertools.count(1)

    async def admit(self, info: WorkerInfo, *, is_trusted: bool = False) -> None:
        """`register`, and wait a moment for what becomes of a drafter. Raises Unhelpful, too."""
        link = self.register(info, is_trusted=is_trusted)
        if link and info.role is Role.DRAFTER:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(link.judged.wait(), JUDGE_S)
            self.admission.check(info, self._clock())

    def register(self, info: WorkerInfo, *, is_trusted: bool = False) -> Link | None:
        """Take a worker in, or renew its lease; one that drains is relieved, and never taken in.

        `is_trusted` counts when the worker is taken in; a renewal changes nothing. Raises Unsupported if it cannot
        serve here, with the reason, and Overloaded for one too many. Returns the link to a new one.
        """
        lease_until_s = self._clock() + self._config.lease_s
        for link in self.links.values():
            if _identity(link.info) == _identity(info):
                link.lease_until_s, link.is_suspected = lease_until_s, False
                link.info = link.info.renewed(info)
                if link.is_up:
                    self._feed(WorkerRenewed(link.name, info, link.rtt_s))
                if info.is_draining:
                    self._feed(WorkerDraining(link.name))
                return None
        if info.is_draining:
            return None
        check_wire(info.wire_version, info.model)
        self._check(info)
        # Each role by itself: drafters that nobody reaches, however many, must not keep a verifier out.
        if sum(link.info.role is info.role for link in self.links.values()) >= self._config.max_workers:
            self.admission.refusals[info.role, "full"] += 1
            raise Overloaded(f"registered {info.role}s", self._config.max_workers, self._config.lease_s)
        name = f"{info.role}-{next(self._numbers)}"
        link = Link(name, info, asyncio.Queue(MAX_ASK_QUEUE), lease_until_s=lease_until_s, is_trusted=is_trusted)
        self.links[name] = link
        link.task = asyncio.create_task(self._serve(link), name=name)
        return link

    def _check(self, info: WorkerInfo) -> None:
        self.admission.check(info, self._clock())
        fits_any = info.role is Role.DRAFTER and not info.tokenizer_hash  # it has no model and copies ids
        if info.tokenizer_hash != self._tokenizer_hash and not fits_any:
            own = self._config.tokenizer
            fix = f"differs from the coordinator's ({own}); start it with a model of the same tokenizer"
            self.admission.refusals[info.role, "tokenizer"] += 1
            raise Unsupported(f"tokenizer of {info.model}", info.tokenizer_hash[:12], fix)
        for link in self.links.values():
            if link.info.role is info.role is Role.VERIFIER and link.info.model_hash != info.model_hash:
                fix = f"another target ({link.info.model}) is being served; start a coordinator of its own for this one"
                self.admission.refusals[info.role, "model"] += 1
                raise Unsupported(f"model {info.model}", info.model_hash[:12], fix)

    async def take_in(self, link: Link, ping: Callable[[], Awaitable[None]]) -> None:
        """Tell the core of a worker that is connected, once it is admitted. `ping` measures the way to it.

        Raises Unhelpful for a drafter that is not.
        """
        is_drafter = link.info.role is Role.DRAFTER  # of a verifier nothing depends on the way
        while True:
            for _ in range(NUM_FIRST_PINGS if is_drafter else 0):
                await ping()
            if self.admission.admits(link.info, link.rtt_s, self._clock()):
                break
            log.info("%s waits for a verifier: %s at %s", link.name, link.info.model, link.info.address)
            link.judged.set()
            await self.admission.changed().wait()
        trust = ", trusted" if link.is_trusted else ""
        log.info("%s up: %s at %s%s", link.name, link.info.model, link.info.address, trust)
        link.is_up = True
        self._feed(WorkerUp(link.name, link.info, link.is_trusted, link.rtt_s))
        link.judged.set()
        self._note_change(link)
        if link.info.is_draining:  # it has said so meanwhile
            self._feed(WorkerDraining(link.name))

    def lost(self, link: Link) -> None:
        """The link has ended, whatever of."""
        del self.links[link.name]
        link.judged.set()
        if link.is_up:
            self._feed(WorkerDown(link.name))
            self._note_change(link)

    async def watch_lease(self, link: Link) -> None:
        """Suspect the worker when it is silent for too long; raises Unavailable when its lease has run out."""
        while (left_s := link.lease_until_s - self._clock()) > 0:
            doubt_s = left_s - (1 - SUSPECT_SHARE) * self._config.lease_s
            if doubt_s <= 0 and not link.is_suspected:
                link.is_suspected = True
                log.warning("%s is silent for longer than it should be", link.name)
                if link.is_up:
                    self._feed(WorkerSuspected(link.name))
            pause_s = doubt_s if doubt_s > 0 else left_s
            wakes_s = self._clock() + pause_s
            await asyncio.sleep(pause_s)
            late_s = self._clock() - wakes_s
            if late_s > HELD_UP_S:  # the loop heard nobody meanwhile, and what workers have said may wait to be read
                more_s = min(late_s, self._config.lease_s)
                link.lease_until_s = max(link.lease_until_s, self._clock() + more_s)
        raise Unavailable(f"no sign of life for {self._config.lease_s:g} s")

    def _note_change(self, link: Link) -> None:
        if link.info.role is Role.VERIFIER:
            self.admission.verifiers_changed()


def _identity(info: WorkerInfo) -> tuple[Role, str, int]:
    """What makes two registrations one worker's."""
    return info.role, info.address, info.incarnation
