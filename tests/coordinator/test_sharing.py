"""Workers that others use too, and drafters that are better than the one a request has: the core's side of both."""

from __future__ import annotations

import math
from dataclasses import replace

from coordinator.core.affinity import BLOCK
from coordinator.core.commands import Ask, Command, Fail
from coordinator.core.events import Arrived, Faulted, Tick, WorkerRenewed, WorkerUp
from coordinator.core.limits import Limits
from coordinator.core.placement import FULL_S
from paceline.errors import Overloaded, Unavailable
from paceline.types import Blame, Close, OpenDraft, OpenVerify, Role
from tests.coordinator.test_request import info, pipeline, spec, verdict
from tests.world import World


def opened(commands: list[Command]) -> dict[str, str]:
    """Who was asked to take which request."""
    found = [c for c in commands if isinstance(c, Ask) and isinstance(c.ask, OpenDraft | OpenVerify)]
    return {command.ask.request_id: command.worker for command in found}


def full(worker: str, request_id: str = "r") -> Faulted:
    return Faulted(worker, request_id, "requests: full at 4", Blame.FULL)


def test_a_verifier_without_a_place_costs_no_move_and_the_request_goes_elsewhere() -> None:
    it = pipeline(drafter=False, limits=Limits(max_moves=1))
    it.handle(WorkerUp("w", info(Role.VERIFIER)), 0.0)
    holder = opened(it.handle(Arrived(spec()), 0.0))["r"]
    for i in range(5):
        other = "w" if holder == "v" else "v"
        assert opened(it.handle(full(holder), 5.0 * i)) == {"r": other}
        holder = other


def test_with_all_verifiers_full_it_waits_and_tries_again_by_itself_until_its_time_is_up() -> None:
    it = pipeline(drafter=False, limits=Limits(queue_timeout_s=2.0))
    it.handle(Arrived(spec()), 0.0)
    assert it.handle(full("v"), 0.1) == []
    assert it.num_waiting == 1
    assert it.next_deadline_s() == 0.1 + FULL_S
    assert opened(it.handle(Tick(), 0.1 + FULL_S)) == {"r": "v"}
    assert it.handle(full("v"), 1.0) == []
    again_s = it.next_deadline_s()
    assert again_s == 1.0 + 2 * FULL_S, "it is asked less and less often"
    assert it.handle(full("w"), 1.2) == [], "what another worker says of it is not heard"
    assert opened(it.handle(Tick(), again_s)) == {"r": "v"}
    it.handle(full("v"), again_s)
    (failed,) = it.handle(Tick(), 2.0)
    assert isinstance(failed, Fail)
    assert isinstance(failed.error, Unavailable)
    assert it.next_deadline_s() == math.inf


def test_a_drafter_without_a_place_is_no_failure_of_it() -> None:
    it = pipeline(limits=Limits(max_moves=1))
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.0)
    for i in range(6):
        now_s = 0.5 * i
        assert opened(it.handle(full("d"), now_s)) == {}
        assert it.next_deadline_s() == now_s + FULL_S
        assert opened(it.handle(Tick(), now_s + FULL_S)) == {"r": "d"}
        it.handle(WorkerRenewed("d", info(Role.DRAFTER)), now_s + 0.3)
    assert it.pools.pace("d").breaker.num_trips == 0


def test_a_request_changes_to_a_better_drafter_while_it_runs_and_keeps_its_output() -> None:
    """The slow one is alone at first; `check_client` holds every token against the target's own."""
    world = World(seed=3)
    world.verifier(pass_s=0.028)
    slow = world.drafter("slow", token_s=0.02)
    client = world.request(max_tokens=300)
    world.run(lambda: len(client.tokens) > 20)
    fast = world.drafter("fast", token_s=0.001)
    world.run().check_client(client)
    assert client.metrics
    assert client.metrics.fallbacks["drafter changed"] <= 1
    assert fast.num_passes > slow.num_passes
    closes = [entry for _, entry in world.log if isinstance(entry, Ask) and isinstance(entry.ask, Close)]
    assert [close.worker for close in closes if close.worker == "slow"] == ["slow"]
    world.check_nothing_leaked()


def test_those_who_are_turned_away_are_told_different_times() -> None:
    it = pipeline(drafter=False, places=1, limits=Limits(max_waiting=1))
    told = []
    for i in range(6):
        for command in it.handle(Arrived(spec(f"r{i}")), 0.1 * i):
            if isinstance(command, Fail) and isinstance(command.error, Overloaded):
                told.append(command.error.retry_after_s)
    assert len(told) == 4
    it.handle(
        replace(verdict(3, *range(7, 27)), verdict=replace(verdict(3, *range(7, 27)).verdict, request_id="r0")), 9.0
    )
    later = [it.retry_after_s(9.0) for _ in range(3)]
    assert later == sorted(set(later)), "one turn after the other"


def failed(worker: str) -> Faulted:
    return Faulted(worker, "r", "the verifier failed: RuntimeError", Blame.WORKER)


def test_a_verifier_that_fails_a_request_is_not_given_it_again_while_another_is_free() -> None:
    """Though it knows the prompt's beginning, and is the first of equals."""
    it, long = pipeline(drafter=False), replace(spec(), token_ids=(1,) * BLOCK)
    it.handle(WorkerUp("w", info(Role.VERIFIER)), 0.0)
    assert opened(it.handle(Arrived(long), 0.0)) == {"r": "v"}
    assert opened(it.handle(failed("v"), 0.1)) == {"r": "w"}
    assert opened(it.handle(failed("w"), 100.0)) == {"r": "v"}, "both have failed it: better than none"


def test_alone_a_verifier_that_fails_requests_is_tried_again_less_and_less_often() -> None:
    it = pipeline(drafter=False)
    it.handle(Arrived(spec()), 0.0)
    now_s, pauses = 0.0, []
    while it.num_running:
        assert opened(it.handle(failed("v"), now_s)) == {}
        if it.num_waiting:
            pauses.append(it.next_deadline_s() - now_s)
            now_s = it.next_deadline_s()
            assert opened(it.handle(Tick(), now_s)) == {"r": "v"}
    assert pauses == [FULL_S, 2 * FULL_S, 4 * FULL_S]
