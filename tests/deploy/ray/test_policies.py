"""A policy is called in the controller's event loop: it never waits, and does nothing that it has no grounds for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.deploy.ray.test_scaling import entry, worker

pytest.importorskip("ray", reason="ray is not installed; pip install 'paceline[ray]'")

from deploy.ray.policies import RETRY_S, STALE_S, DrafterPolicy, Outlook, VerifierPolicy
from deploy.ray.scaling import Demand


class Directory:
    """A directory whose answers come when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Future[Sequence[Any]]] = []
        self.coordinators = SimpleNamespace(remote=lambda: SimpleNamespace(future=self._ask))

    def _ask(self) -> Future[Sequence[Any]]:
        self.asked.append(Future())
        return self.asked[-1]


class World:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.directory: Directory | None = Directory()
        self.num_looks = 0
        self.outlook = Outlook(self._find, lambda: self.now_s)

    def _find(self, _: str) -> Directory | None:
        self.num_looks += 1
        return self.directory


def test_an_answer_is_read_when_it_is_there_and_not_waited_for() -> None:
    world = World()
    assert world.directory
    assert world.outlook.demand("it") is None
    assert world.outlook.demand("it") is None
    assert len(world.directory.asked) == 1, "one question at a time"
    world.directory.asked[0].set_result([entry(3, 0.5, worker("verifier", "a:1"))])
    assert world.outlook.demand("it") == Demand(
        num_running=3, num_speculative=3, num_places=16, stall_share=0.5, verify_ms=30.0
    )


def test_what_is_old_says_nothing() -> None:
    world = World()
    assert world.directory
    world.outlook.demand("it")
    world.directory.asked[0].set_result([entry(3, 0.5)])
    assert world.outlook.demand("it")
    world.now_s = STALE_S + 0.1
    assert world.outlook.demand("it") is None


def test_no_coordinator_is_no_reason_to_believe_that_nobody_asks_for_anything() -> None:
    """Else the drafters would go whenever the coordinator restarts."""
    world = World()
    assert world.directory
    world.outlook.demand("it")
    world.directory.asked[0].set_result([])
    assert world.outlook.demand("it") is None


def test_a_directory_that_has_died_is_looked_for_again_but_not_at_once() -> None:
    world = World()
    assert world.directory
    world.outlook.demand("it")
    world.directory.asked[0].set_exception(RuntimeError("the actor died"))
    world.outlook.demand("it")
    world.outlook.demand("it")
    assert world.num_looks == 1
    world.now_s = RETRY_S
    world.outlook.demand("it")
    assert world.num_looks == 2


def context(num_replicas: int, **metrics: dict[str, float]) -> Any:
    return SimpleNamespace(
        app_name="it", target_num_replicas=num_replicas, current_num_replicas=num_replicas, aggregated_metrics=metrics
    )


def knowing(policy: Any, demand: Demand | None) -> Any:
    policy._outlook = SimpleNamespace(demand=lambda _: demand)
    return policy


def test_a_pool_stays_as_it_is_while_nothing_is_known() -> None:
    drafters = knowing(DrafterPolicy(requests_per_replica=4, max_stall_share=0.4), None)
    verifiers = knowing(VerifierPolicy(max_kv_used=0.8, max_load=0.8, max_step_ms=None), None)
    assert drafters(context(3))[0] == 3
    assert verifiers(context(2))[0] == 2


def drafters_after(demand: Demand, **held: float) -> int:
    """With one replica, which records what it holds."""
    policy = knowing(DrafterPolicy(requests_per_replica=4, max_stall_share=0.4), demand)
    return int(policy(context(1, num_requests=held))[0])


def test_drafters_are_called_by_stall_share_and_by_queued_work_alone() -> None:
    calm = Demand(num_running=4, num_speculative=4, num_places=64)
    assert drafters_after(calm, one=4) == 1
    assert drafters_after(replace(calm, stall_share=0.5)) == 2
    assert drafters_after(replace(calm, num_undrafted=1)) == 2
    assert drafters_after(replace(calm, num_speculative=9)) == 3
    assert drafters_after(calm, one=9) == 3, "recorded by its replicas"
    assert drafters_after(replace(calm, num_waiting=20, verify_ms=900.0)) == 1, "not its business"
    assert drafters_after(Demand(num_running=4, num_places=64), one=9) == 0, "nobody wants drafts"


def verifiers_after(demand: Demand, kv_used: float = 0.1) -> int:
    policy = knowing(VerifierPolicy(max_kv_used=0.8, max_load=0.8, max_step_ms=50.0), demand)
    return int(policy(context(1, kv_used={"one": kv_used}))[0])


def test_verifiers_are_called_by_kv_use_queue_and_step_time_alone() -> None:
    calm = Demand(num_running=4, num_speculative=4, num_places=64, verify_ms=20.0)
    assert verifiers_after(calm) == 1
    assert verifiers_after(calm, kv_used=0.9) == 2, "recorded by its replicas"
    assert verifiers_after(replace(calm, kv_used=0.9)) == 2, "as coordinators see it"
    assert verifiers_after(replace(calm, num_waiting=1)) == 2
    assert verifiers_after(replace(calm, num_waiting=120)) == 3
    assert verifiers_after(replace(calm, verify_ms=60.0)) == 2
    assert verifiers_after(replace(calm, stall_share=1.0, num_undrafted=4)) == 1, "not its business"


def test_drafters_follow_the_demand_and_verifiers_what_their_replicas_record() -> None:
    demand = Demand(num_running=2, num_speculative=9, num_places=64)
    drafters = knowing(DrafterPolicy(requests_per_replica=4, max_stall_share=0.4), demand)
    assert drafters(context(0))[0] == 3
    verifiers = knowing(VerifierPolicy(max_kv_used=0.8, max_load=0.8, max_step_ms=None), demand)
    assert verifiers(context(2, kv_used={"one": 1.0, "other": 0.9}))[0] == 3
    assert verifiers(context(2, kv_used={"one": 0.6, "other": 0.4}))[0] == 2
