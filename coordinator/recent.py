"""The last requests as the core saw them: what `paceline trace` shows. Bounded, and told to their owners only.

An observer of the coordinator keeps, for each request, the events that were its own and what followed from them for it.
These are references to values that exist anyway, without draft rows, so keeping them costs a list entry an event. What
is kept is bounded in requests and in weight, whatever clients do: the oldest ended requests go first, and a request
that alone is too long keeps its beginning.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack

from coordinator.core.commands import Ask, Command, Fail, Finish
from coordinator.core.events import Arrived, Drafted, Event, RequestSpec, request_id_of
from coordinator.core.metrics import RequestMetrics
from paceline import trace
from paceline.errors import UnknownRequest
from paceline.types import Verify

DEFAULT_KEPT = 64  # ended requests
MAX_WEIGHT = 100_000  # of all requests together; some 30 MB
MAX_WEIGHT_OF_ONE = 20_000
STEPS_A_PIECE = 50  # some milliseconds' work
TOKENS_A_WEIGHT = 32  # so many token ids weigh as much as a step
PREFIXES = ("cmpl-", "chatcmpl-")  # what OpenAI's API puts before an id


@dataclass(frozen=True, slots=True)
class Seen:
    """One event of a request, and what followed from it for the request."""

    at_s: float
    event: Event
    commands: tuple[Command, ...]


@dataclass(slots=True)
class Recent:
    """What is kept of one request."""

    spec: RequestSpec
    unix_s: float  # wall clock at its arrival
    arrived_s: float
    steps: list[Seen] = field(default_factory=list)
    weight: int = 0
    is_cut: bool = False  # there was more than may be kept
    ended: str = ""  # finish reason, or "failed"; empty while it runs
    ended_s: float = 0.0
    metrics: RequestMetrics | None = None  # once it has ended well

    def summary(self) -> dict[str, Any]:
        """By the names of `TraceSummary` in coordinator.proto."""
        return {
            "request_id": self.spec.request_id,
            "unix_s": self.unix_s,
            "num_prompt_tokens": len(self.spec.token_ids),
            "num_generated_tokens": self.metrics.num_generated_tokens if self.metrics else 0,
            "mode": self.metrics.mode if self.metrics else "",
            "finish_reason": self.ended,
            "e2e_ms": 1e3 * (self.ended_s - self.arrived_s) if self.ended else 0.0,
        }

    def records(self) -> Iterator[bytes]:
        """A trace file with this request in it, a piece at a time, as it was when the first one was taken."""
        steps = tuple(self.steps)
        pack = msgpack.Packer(use_bin_type=True).pack
        yield pack(trace.opened(self.unix_s, self.arrived_s, {"request_id": self.spec.request_id}))
        for start in range(0, len(steps), STEPS_A_PIECE):
            some = steps[start : start + STEPS_A_PIECE]
            yield b"".join(pack(trace.step(one.event, one.commands, one.at_s)) for one in some)
        if self.is_cut:
            yield pack([trace.FULL])


class RecentRequests:
    """See the top of the file. An observer of the coordinator."""

    def __init__(self, num_kept: int = DEFAULT_KEPT, *, bounded: bool = True) -> None:
        """`num_kept`: ended requests at most; 0 = keep nothing. `bounded`: by weight as well, as a server must be."""
        self._num_kept = num_kept
        self._max_weight = MAX_WEIGHT if bounded else math.inf
        self._max_of_one = MAX_WEIGHT_OF_ONE if bounded else math.inf
        self._running: dict[str, Recent] = {}
        self._ended: OrderedDict[str, Recent] = OrderedDict()  # oldest first
        self._weight = 0  # of both together

    def of(self, client: str) -> list[Recent]:
        """What is kept of `client`'s requests, the newest first."""
        return [one for one in self.all() if one.spec.client == client]

    def all(self) -> list[Recent]:
        """What is kept, whosever it is, the newest first."""
        return sorted((*self._ended.values(), *self._running.values()), key=lambda one: -one.arrived_s)

    def get(self, request_id: str, client: str) -> Recent:
        """One of `client`'s requests. Raises UnknownRequest, for another's too: nobody learns what others ask."""
        for name in names_of(request_id):
            found = self._running.get(name) or self._ended.get(name)
            if found and found.spec.client == client:
                return found
        raise UnknownRequest(request_id)

    def observe(self, event: Event, commands: Sequence[Command], now_s: float, *, unix_s: float | None = None) -> None:
        """`unix_s`: the wall clock, if that is not now."""
        if not self._num_kept:
            return
        if isinstance(event, Arrived):
            self._forget(event.spec.request_id)
            self._running[event.spec.request_id] = Recent(event.spec, time.time() if unix_s is None else unix_s, now_s)
        for request_id, own in _by_request(event, commands):
            recent = self._running.get(request_id)
            if recent is None:
                continue
            self._keep(recent, Seen(now_s, _without_rows(event), tuple(map(_lean, own))))
            for command in own:
                if isinstance(command, Finish | Fail):
                    self._end(recent, command, now_s)

    def _keep(self, recent: Recent, step: Seen) -> None:
        weight = 1 + _num_token_ids(step) // TOKENS_A_WEIGHT
        while self._weight + weight > self._max_weight and self._ended:
            self._forget(next(iter(self._ended)))
        if recent.weight + weight > self._max_of_one or self._weight + weight > self._max_weight:
            recent.is_cut = True
            return
        recent.steps.append(step)
        recent.weight += weight
        self._weight += weight

    def _end(self, recent: Recent, last: Finish | Fail, now_s: float) -> None:
        self._running.pop(recent.spec.request_id, None)
        recent.ended = last.reason if isinstance(last, Finish) else "failed"
        recent.metrics = last.metrics if isinstance(last, Finish) else None
        recent.ended_s = now_s
        self._ended[recent.spec.request_id] = recent
        while len(self._ended) > self._num_kept:
            self._forget(next(iter(self._ended)))

    def _forget(self, request_id: str) -> None:
        recent = self._ended.pop(request_id, None)
        if recent:
            self._weight -= recent.weight


def names_of(request_id: str) -> tuple[str, ...]:
    """What a request may be called here that a client calls `request_id`."""
    return (request_id, *(request_id.removeprefix(prefix) for prefix in PREFIXES))


def _by_request(event: Event, commands: Sequence[Command]) -> Iterator[tuple[str, tuple[Command, ...]]]:
    """The requests that an event was about, or that something followed for, with what followed."""
    if len(commands) == 1 or all(_id_of(command) == _id_of(commands[0]) for command in commands[1:]):
        owners = [_id_of(commands[0])] if commands else []  # as nearly always
    else:
        owners = list(dict.fromkeys(map(_id_of, commands)))
    own = request_id_of(event)
    if own is not None and own not in owners:
        yield own, ()
    for owner in owners:
        yield owner, tuple(commands) if len(owners) == 1 else tuple(c for c in commands if _id_of(c) == owner)


def _id_of(command: Command) -> str:
    return command.ask.request_id if isinstance(command, Ask) else command.request_id


def _without_rows(event: Event) -> Event:
    if isinstance(event, Drafted) and event.draft.rows is not None:
        return replace(event, draft=replace(event.draft, rows=None))
    return event


def _lean(command: Command) -> Command:
    """The same without draft rows: nothing here reads them, and they are most of what a draft weighs."""
    match command:
        case Ask(worker, Verify(draft, preverify)) if draft.rows is not None:
            return Ask(worker, Verify(replace(draft, rows=None), preverify))
    return command


def _num_token_ids(step: Seen) -> int:
    """Of the event, and of the asks that repeat the whole text."""
    num = sum(len(getattr(command.ask, "token_ids", ())) for command in step.commands if isinstance(command, Ask))
    return num + (len(step.event.spec.token_ids) if isinstance(step.event, Arrived) else 0)
