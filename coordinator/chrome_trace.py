"""A request's steps as a trace that Perfetto and Chrome draw: who worked when, and what was on its way meanwhile.

The format is Google's "Trace Event Format": an object with `traceEvents`, times in microseconds. Each party has a track
of its own: the client (what it has seen of the request), the coordinator (what it asked for), the drafter, the
verifier, and the network. Bars that would lie over one another on a track get a second line.

All times are the coordinator's own clock and the durations that workers report, so no two clocks are compared. Where
the coordinator knows when it asked, what is left of a round trip once the worker's own time is off it is the network's,
and half of it is taken for each way; where it does not (a draft that followed another unasked), work is placed by the
arrival of its result, late by one way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from coordinator.core.commands import Ask, Command, Emit, Fail, Finish
from coordinator.core.events import Arrived, Branched, Drafted, Event, Faulted, Passed, Verified, WorkerDown
from coordinator.recent import Seen
from paceline.types import Branch, Close, Commit, Decode, Draft, OpenDraft, OpenVerify, Verdict, Verify

CLIENT, COORDINATOR, DRAFTER, VERIFIER, NETWORK = "client", "coordinator", "drafter", "verifier", "network"
TRACKS = (CLIENT, COORDINATOR, DRAFTER, VERIFIER, NETWORK)
_LINES = 100  # thread ids a track may take


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that took a while, or a moment if it ends when it starts."""

    track: str
    name: str
    start_s: float
    end_s: float
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Request:
    """What is known of the request while its steps are read."""

    bars: list[Bar] = field(default_factory=list)
    arrived_s: float = 0.0
    first_token_s: float | None = None
    asked_s: dict[int, float] = field(default_factory=dict)  # by the start of a draft that was sent to be judged
    told_s: dict[int, float] = field(default_factory=dict)  # by the epoch of a commit sent to the drafter
    is_placed: bool = False  # a verifier has it
    end: int = 0  # of the tokens that the last verdict has brought
    owed: int = 0  # position up to which the verifier has something to answer


def chrome_trace(
    request_id: str, steps: Sequence[Seen], unix_s: float = 0.0, *, is_cut: bool = False
) -> dict[str, Any]:
    """The trace; empty tracks are left out. `unix_s`: the wall clock at the first step, told beside the events.

    `is_cut`: there were more steps than could be kept, so the picture ends before the request did.
    """
    bars = list(bars_of(steps))
    if is_cut and steps:
        why = "the request went on; so many steps of one are kept"
        bars.append(Bar(CLIENT, "cut here", steps[-1].at_s, steps[-1].at_s, {"why": why, "steps": len(steps)}))
    begun_s = min((bar.start_s for bar in bars), default=0.0)
    events = [_meta("process_name", 0, f"request {request_id}")]
    for number, track in enumerate(TRACKS):
        lines = _lines([bar for bar in bars if bar.track == track])
        for i, line in enumerate(lines):
            thread = 1 + number * _LINES + min(i, _LINES - 1)
            events.append(_meta("thread_name", thread, track if i == 0 else f"{track} ({i + 1})"))
            events.append(_meta("thread_sort_index", thread, thread))
            events += [_event(bar, thread, begun_s) for bar in line]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"request_id": request_id, "unix_s": unix_s, "program": "paceline", "is_cut": is_cut},
    }


def bars_of(steps: Iterable[Seen]) -> Iterator[Bar]:
    """What happened, in no order."""
    request = _Request()
    last_s = 0.0
    for step in steps:
        last_s = step.at_s
        _event_bars(step.event, step.at_s, request)
        for command in step.commands:
            _command_bars(command, step.at_s, request)
    if request.arrived_s and not any(bar.name == "request" for bar in request.bars):
        request.bars.append(Bar(CLIENT, "request (unfinished)", request.arrived_s, last_s))
    return iter(request.bars)


def _event_bars(event: Event, at_s: float, request: _Request) -> None:
    bars = request.bars
    match event:
        case Arrived(spec):
            request.arrived_s = at_s
            arguments = {"prompt tokens": len(spec.token_ids), "max_tokens": spec.max_tokens}
            bars.append(Bar(COORDINATOR, "arrived", at_s, at_s, arguments))
        case Drafted(worker, draft):
            _drafted(worker, draft, at_s, request)
        case Branched(worker, branch):
            bars.append(_branch(worker, branch, at_s))
        case Verified(worker, verdict):
            _verified(worker, verdict, at_s, request)
        case Passed(worker, _):
            bars.append(Bar(COORDINATOR, "the drafter passes", at_s, at_s, {"worker": worker}))
        case Faulted(worker, _, message):
            bars.append(Bar(COORDINATOR, "refused by a worker", at_s, at_s, {"worker": worker, "why": message}))
        case WorkerDown(worker):
            bars.append(Bar(COORDINATOR, "worker lost", at_s, at_s, {"worker": worker}))


def _drafted(worker: str, draft: Draft, at_s: float, request: _Request) -> None:
    draft_s = draft.draft_ms / 1e3
    arguments = {"worker": worker, "tokens": len(draft.token_ids), "epoch": draft.epoch, "start": draft.start}
    told_s = request.told_s.pop(draft.epoch, None)
    one_way_s = max(0.0, at_s - told_s - draft_s) / 2 if told_s is not None else 0.0
    if told_s is not None and one_way_s:
        request.bars.append(Bar(NETWORK, "commit to the drafter", told_s, told_s + one_way_s, {"worker": worker}))
        request.bars.append(Bar(NETWORK, "draft", at_s - one_way_s, at_s, {"worker": worker}))
    request.bars.append(Bar(DRAFTER, "draft", at_s - one_way_s - draft_s, at_s - one_way_s, arguments))


def _branch(worker: str, branch: Branch, at_s: float) -> Bar:
    """Nobody asks for one, so it is placed by its arrival."""
    draft = branch.draft
    arguments = {"worker": worker, "tokens": len(draft.token_ids), "beside epoch": draft.epoch, "start": draft.start}
    return Bar(DRAFTER, "branch", at_s - draft.draft_ms / 1e3, at_s, arguments)


def _verified(worker: str, verdict: Verdict, at_s: float, request: _Request) -> None:
    pass_s, queue_s = verdict.verify_ms / 1e3, verdict.queue_ms / 1e3
    asked_s = request.asked_s.get(verdict.start) if verdict.num_drafts else None
    request.asked_s.clear()
    request.end = verdict.start + len(verdict.token_ids)
    if verdict.num_drafts:
        request.owed = min(request.owed, request.end)  # a draft ends a decoding run
    one_way_s = max(0.0, at_s - asked_s - pass_s - queue_s) / 2 if asked_s is not None else 0.0
    if asked_s is not None and one_way_s:
        request.bars.append(Bar(NETWORK, "draft to the verifier", asked_s, asked_s + one_way_s, {"worker": worker}))
        request.bars.append(Bar(NETWORK, "verdict", at_s - one_way_s, at_s, {"worker": worker}))
    end_s = at_s - one_way_s
    arguments = {
        "worker": worker,
        "tokens": len(verdict.token_ids),
        "sources": ", ".join(verdict.sources),
        "tested": verdict.num_tested,
        "tokens in the pass": verdict.batch_tokens,
    }
    if verdict.verify_ms:
        if asked_s is not None and queue_s:
            request.bars.append(Bar(VERIFIER, "waits for a pass", end_s - pass_s - queue_s, end_s - pass_s))
        request.bars.append(
            Bar(VERIFIER, "verify" if verdict.num_drafts else "decode", end_s - pass_s, end_s, arguments)
        )
    else:
        request.bars.append(Bar(VERIFIER, "answer from the log", end_s, end_s, arguments))


def _command_bars(command: Command, at_s: float, request: _Request) -> None:
    match command:
        case Ask(worker, ask):
            name, arguments = _ask(ask, at_s, request)
            request.bars.append(Bar(COORDINATOR, name, at_s, at_s, {"worker": worker, **arguments}))
            if isinstance(ask, OpenVerify) and not request.is_placed:
                request.is_placed = True
                if at_s > request.arrived_s:
                    request.bars.append(Bar(COORDINATOR, "waits for a verifier", request.arrived_s, at_s))
        case Emit(_, token_ids, sources):
            if request.first_token_s is None:
                request.first_token_s = at_s
                request.bars.append(Bar(CLIENT, "until the first token", request.arrived_s, at_s))
            arguments = {"tokens": len(token_ids), "sources": ", ".join(sources)}
            request.bars.append(Bar(CLIENT, "tokens", at_s, at_s, arguments))
        case Finish(_, reason, metrics):
            request.bars.append(Bar(CLIENT, "request", request.arrived_s, at_s, {"ended by": reason, **_told(metrics)}))
        case Fail(_, error):
            request.bars.append(Bar(CLIENT, "request", request.arrived_s, at_s, {"failed": str(error)}))


def _ask(ask: Any, at_s: float, request: _Request) -> tuple[str, dict[str, Any]]:
    match ask:
        case OpenVerify():
            request.owed = len(ask.token_ids) + ask.num_decode
            return "ask to prefill", {"tokens": len(ask.token_ids)}
        case OpenDraft():
            return "ask for drafts", {"epoch": ask.epoch, "window": ask.window, "policy": str(ask.policy)}
        case Verify(draft):
            # One that waits for a pass of its own request is not on its way meanwhile, and nobody counts that wait.
            if request.end >= request.owed and not ask.preverify:
                request.asked_s[draft.start] = at_s
            request.owed = draft.start + 1
            return "ask to verify", {"tokens": len(draft.token_ids), "start": draft.start}
        case Decode():
            request.owed = ask.start + ask.num_tokens
            return "ask to decode", {"tokens": ask.num_tokens}
        case Commit():
            request.told_s.setdefault(ask.epoch, at_s)
            return "tell what is committed", {"epoch": ask.epoch, "tokens": len(ask.token_ids)}
        case Close():
            return "close", {}
    return type(ask).__name__, {}


def _told(metrics: Any) -> dict[str, Any]:
    """What the request did, in numbers; the overlap, which a file does not hold, is to be seen in the picture."""
    figures = metrics.figures().items()
    return {name: value for name, value in figures if isinstance(value, str | int | float) and name != "overlap_share"}


def _lines(bars: Sequence[Bar]) -> list[list[Bar]]:
    """The bars of a track in as many lines as they need: in each, bars lie beside or within one another."""
    lines: list[list[Bar]] = []
    open_until: list[list[float]] = []  # by line: the ends of the bars that are under way, outermost first
    for bar in sorted(bars, key=lambda bar: (bar.start_s, -bar.end_s)):
        for line, ends in zip(lines, open_until, strict=True):
            while ends and ends[-1] <= bar.start_s:
                ends.pop()
            if not ends or bar.end_s <= ends[-1]:
                line.append(bar)
                ends.append(bar.end_s)
                break
        else:
            lines.append([bar])
            open_until.append([bar.end_s])
    return lines


def _event(bar: Bar, thread: int, begun_s: float) -> dict[str, Any]:
    common = {"name": bar.name, "cat": bar.track, "pid": 1, "tid": thread, "args": bar.arguments}
    start_us = round(1e6 * (bar.start_s - begun_s), 3)
    if bar.end_s <= bar.start_s:
        return common | {"ph": "i", "ts": start_us, "s": "t"}
    return common | {"ph": "X", "ts": start_us, "dur": round(1e6 * (bar.end_s - bar.start_s), 3)}


def _meta(name: str, thread: int, value: str | int) -> dict[str, Any]:
    key = "sort_index" if name.endswith("sort_index") else "name"
    return {"name": name, "ph": "M", "pid": 1, "tid": thread, "args": {key: value}}
