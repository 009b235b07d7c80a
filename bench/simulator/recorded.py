"""What a trace of a real run says about its workers, its network and its drafts, so that the run can be simulated.

    profile = measure(read("run.trace"))

Only the coordinator's clock and the durations that workers report are used, never two clocks. What a trace cannot tell:
how long a pass would take in a batch that was never seen, and where a drafter that was not asked would have been right.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bench.simulator.law import NO_RANK, RANKS, RecordedRequest
from bench.simulator.scenario import Pool, Scenario
from paceline.errors import InvalidInput
from paceline.plain import from_plain
from paceline.trace import Opened, Record, Step
from paceline.types import Source, StepCost

# A prompt of so many tokens is read in one pass, which says how much of it was not in the prefix cache.
_ONE_PASS = 512

IsWanted = Callable[[Mapping[str, Any]], bool]  # by the plain form of a RequestSpec


@dataclass(frozen=True, slots=True)
class Profile:
    """What is taken from a trace."""

    requests: tuple[RecordedRequest, ...]  # those that ended well, in the order of their arrival
    acceptance: float  # drafted tokens kept, of those tested
    verify: StepCost
    draft: StepCost
    verifier_hop_s: float  # one way, what the processes do to a message included
    drafter_hop_s: float
    num_verifiers: int
    num_drafters: int
    draft_length: int  # the usual one; 0 if nothing was drafted
    window: int | None  # likewise the usual one; None = as measured

    def apply(self, scenario: Scenario) -> Scenario:
        """`scenario` with the workers, the network and the requests of the trace.

        The network of `scenario` comes on top of the hops that were measured.
        """

        def pool(given: Pool, num_workers: int, cost: StepCost, hop_s: float) -> Pool:
            network = replace(given.network, delay_s=given.network.delay_s + hop_s)
            return replace(given, num_workers=max(1, num_workers), cost=cost, network=network)

        return replace(
            scenario,
            acceptance=self.acceptance,
            verifiers=pool(scenario.verifiers, self.num_verifiers, self.verify, self.verifier_hop_s),
            drafters=pool(scenario.drafters, self.num_drafters, self.draft, self.drafter_hop_s),
            load=replace(scenario.load, recorded=self.requests),
        )


@dataclass(slots=True)
class _Request:
    """One request while its trace is read."""

    num_prompt_tokens: int
    is_wanted: bool
    num_read: int = 0  # tokens of the prompt that the verifier forwarded; 0 = all, as far as is known
    kept: list[bool | None] = field(default_factory=list)
    recovered: dict[int, int] = field(default_factory=dict)  # by output position: what came for a rejected token
    # By position: the run that the branches for it leave, and their tokens, the likeliest first.
    branched: dict[int, tuple[int, list[int]]] = field(default_factory=dict)
    is_done: bool = False
    # When a draft was sent to the verifier that did not have to wait there for a pass of its own request, by its start.
    # Such a wait is in nobody's figures, so it would pass for the network's. The network is the same for all modes.
    asked_s: dict[int, float] = field(default_factory=dict)
    owed: int = 0  # position up to which the verifier has something to answer
    told_s: dict[int, float] = field(default_factory=dict)  # by the epoch of a commit sent to the drafter
    num_drafts: int = 0
    end: int = 0  # of the last verdict's tokens

    def rank(self, place: int) -> int | None:
        """Which of the branches for an output position had what came there. Some arrive only after it.

        None if there was no branch: then nobody knows whether one would have been right.
        """
        token_id = self.recovered.get(place)
        _, made = self.branched.get(self.num_prompt_tokens + place, (-1, []))
        if token_id is None or not made:
            return None
        return made.index(token_id) if token_id in made[: len(RANKS)] else NO_RANK


@dataclass(slots=True)
class _Samples:
    """What was seen, in milliseconds."""

    passes: list[tuple[int, float]] = field(default_factory=list)  # tokens, and the pass they took
    drafted: list[tuple[int, float]] = field(default_factory=list)  # likewise
    verifier_wire: list[float] = field(default_factory=list)  # round trips less what the worker did
    drafter_wire: list[float] = field(default_factory=list)
    costs: dict[str, list[StepCost]] = field(default_factory=lambda: defaultdict(list))  # by role, as registered
    workers: dict[str, str] = field(default_factory=dict)  # those that are there now: the role by the name
    most_workers: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # at a time, by role
    windows: list[int | None] = field(default_factory=list)


def measure(records: Iterable[Record], is_wanted: IsWanted = lambda spec: True) -> Profile:
    """The profile of a trace, or of its requests that are wanted. Raises InvalidInput if it shows too little."""
    requests: dict[str, _Request] = {}
    everything: list[_Request] = []
    seen = _Samples()
    for record in records:
        if isinstance(record, Opened):
            requests.clear()
            seen.workers.clear()
        elif isinstance(record, Step):
            _event(record, requests, everything, seen, is_wanted)
            for command in record.commands:
                _command(record.at_s, command, requests)
    whole = [request for request in everything if request.is_done and request.kept]
    tested = [kept for request in whole for kept in request.kept if kept is not None]
    if not whole or not seen.passes:
        raise InvalidInput("trace", f"{len(whole)} requests", "shows no request that ended well; record a longer run")
    return Profile(
        requests=tuple(
            RecordedRequest(r.num_read or r.num_prompt_tokens, tuple(r.kept), tuple(map(r.rank, range(len(r.kept)))))
            for r in whole
        ),
        acceptance=sum(tested) / len(tested) if tested else 0.0,
        verify=_line(seen.passes),
        draft=_draft_cost(seen),
        verifier_hop_s=_hop_s(seen.verifier_wire),
        drafter_hop_s=_hop_s(seen.drafter_wire),
        num_verifiers=seen.most_workers["verifier"],
        num_drafters=seen.most_workers["drafter"],
        draft_length=int(statistics.median(tokens for tokens, _ in seen.drafted)) if seen.drafted else 0,
        window=statistics.mode(seen.windows),
    )


def _event(
    step: Step,
    requests: dict[str, _Request],
    everything: list[_Request],
    seen: _Samples,
    is_wanted: IsWanted,
) -> None:
    event = step.event
    match event["is"]:
        case "Arrived":
            spec = event["spec"]
            num_known = len(spec["token_ids"]) + len(spec["resumed"])
            request = requests[spec["request_id"]] = _Request(num_known, is_wanted(spec))
            if request.is_wanted:
                everything.append(request)
                seen.windows.append(spec["window"])
        case "WorkerUp":
            _worker_up(event["worker"], event["info"], seen)
        case "WorkerDown":
            seen.workers.pop(event["worker"], None)
        case "Verified" if event["verdict"]["request_id"] in requests:
            _verdict(step.at_s, event["verdict"], requests[event["verdict"]["request_id"]], seen)
        case "Drafted" if event["draft"]["request_id"] in requests:
            _draft(step.at_s, event["draft"], requests[event["draft"]["request_id"]], seen)
        case "Branched" if event["branch"]["draft"]["request_id"] in requests:
            _branch(event["branch"], requests[event["branch"]["draft"]["request_id"]])


def _worker_up(name: str, info: dict[str, Any], seen: _Samples) -> None:
    role = seen.workers[name] = info["role"]
    seen.most_workers[role] = max(seen.most_workers[role], list(seen.workers.values()).count(role))
    if info["cost"]:
        seen.costs[role].append(from_plain(StepCost, info["cost"]))


def _verdict(at_s: float, verdict: dict[str, Any], request: _Request, seen: _Samples) -> None:
    if request.is_wanted and verdict["verify_ms"] and verdict["batch_tokens"]:
        # A token decoded behind another did not wait for an ask: what it waited for is the worker between two passes.
        is_behind = not verdict["num_drafts"] and verdict["start"] == request.end
        pass_ms = verdict["verify_ms"] + is_behind * verdict["queue_ms"]
        seen.passes.append((verdict["batch_tokens"], pass_ms))
        if verdict["start"] == request.num_prompt_tokens <= _ONE_PASS:
            request.num_read = min(verdict["batch_tokens"], request.num_prompt_tokens)
    request.end = verdict["start"] + len(verdict["token_ids"])
    asked_s = request.asked_s.get(verdict["start"])
    if asked_s is not None and verdict["num_drafts"]:
        seen.verifier_wire.append(1e3 * (at_s - asked_s) - verdict["verify_ms"] - verdict["queue_ms"])
    request.asked_s.clear()
    if verdict["num_drafts"]:
        request.owed = min(request.owed, request.end)  # a draft ends a decoding run


def _draft(at_s: float, draft: dict[str, Any], request: _Request, seen: _Samples) -> None:
    if not request.is_wanted:
        return
    request.num_drafts += 1
    if request.num_drafts > 1:  # the first one took the prompt, too
        seen.drafted.append((len(draft["token_ids"]), draft["draft_ms"]))
    told_s = request.told_s.pop(draft["epoch"], None)
    if told_s is not None:  # the first draft of a run that began with a commit
        seen.drafter_wire.append(1e3 * (at_s - told_s) - draft["draft_ms"])


def _branch(branch: dict[str, Any], request: _Request) -> None:
    run, position = branch["draft"]["epoch"], branch["draft"]["start"] - 1
    last, token_ids = request.branched.get(position, (-1, []))
    if run > last:  # what was made for an earlier run there is ruled out
        request.branched[position] = run, [branch["token_id"]]
    elif run == last:
        token_ids.append(branch["token_id"])


def _command(at_s: float, command: Any, requests: dict[str, _Request]) -> None:
    if command["is"] == "Ask":
        _ask(at_s, command["ask"], requests)
    elif request := requests.get(command["request_id"]):
        if command["is"] == "Emit":
            _emitted(command["token_ids"], command["sources"], request)
        elif command["is"] == "Finish":
            request.is_done = True


def _emitted(token_ids: Sequence[int], sources: Sequence[str], request: _Request) -> None:
    for token_id, source in zip(token_ids, sources, strict=True):
        if source == Source.RECOVERED.value:
            request.recovered[len(request.kept)] = token_id
        request.kept.append(_KEPT.get(source))


def _ask(at_s: float, ask: Any, requests: dict[str, _Request]) -> None:
    request = requests.get(ask["draft"]["request_id"] if ask["is"] == "Verify" else ask["request_id"])
    if request is None:
        return
    match ask["is"]:
        case "Verify":
            start = ask["draft"]["start"]
            if request.end >= request.owed and not ask["preverify"]:
                request.asked_s[start] = at_s
            request.owed = start + 1
        case "OpenVerify":
            request.owed = len(ask["token_ids"]) + ask["num_decode"]
        case "Decode":
            request.owed = ask["start"] + ask["num_tokens"]
        case "Commit":
            request.told_s.setdefault(ask["epoch"], at_s)


_KEPT = {Source.ACCEPTED.value: True, Source.RECOVERED.value: False}


def _line(samples: list[tuple[int, float]]) -> StepCost:
    """`base + per token` through `samples`: the shape by least squares on relative errors, as workers estimate it.

    Then scaled, so that all passes together take as long as they did: on a busy machine the slow ones count, too.
    """
    tokens, ms = (np.array(column, dtype=float) for column in zip(*samples, strict=True))
    if len(set(tokens)) == 1:
        return StepCost(float(ms.mean()), 0.0, 0.0, 0.0)
    per_token, base = np.polyfit(tokens, ms, 1, w=1 / ms)
    if base < 0 or per_token < 0:
        return StepCost(float(ms.mean()), 0.0, 0.0, 0.0)
    scale = float(ms.sum() / (base + per_token * tokens).sum())
    return StepCost(scale * float(base), scale * float(per_token), 0.0, 0.0)


def _draft_cost(seen: _Samples) -> StepCost:
    """The drafter's own estimate, scaled to what a drafted token took while it was traced."""
    num_tokens = sum(tokens for tokens, _ in seen.drafted)
    own = seen.costs["drafter"][-1] if seen.costs["drafter"] else None
    if not num_tokens:
        return own or StepCost(0.0, 0.0, 0.0, 0.0)
    token_ms = sum(ms for _, ms in seen.drafted) / num_tokens
    if own is None or not own.ms(1, 1, 0):
        return StepCost(token_ms, 0.0, 0.0, 0.0)
    scale = token_ms / own.ms(1, 1, 0)
    return StepCost(scale * own.base_ms, scale * own.per_token_ms, scale * own.per_seq_ms, 0.0)


def _hop_s(wire_ms: list[float]) -> float:
    return max(0.0, statistics.median(wire_ms)) / 2e3 if wire_ms else 0.0
