"""Registration and leases, with a clock of its own and links that never connect."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.core.events import WorkerDown, WorkerDraining, WorkerEvent, WorkerRenewed, WorkerSuspected, WorkerUp
from coordinator.core.placement import Pools
from coordinator.registry import NUM_FIRST_PINGS, Link, Registry
from paceline.errors import Overloaded, Unavailable, Unhelpful
from paceline.types import Role, StepCost, WorkerInfo

LEASE_S = 0.3


def info(role: Role, ms: float = 10.0, incarnation: int = 1) -> WorkerInfo:
    address = f"h:{1 + (role is Role.DRAFTER)}"
    cost = StepCost(ms, 0.0, 0.0, 0.0)
    return WorkerInfo(role, address, incarnation, "m", "a", "t", 50, 99, 4, (), "float32", "cpu", cost)


@dataclass
class World:
    """A registry, what it has told the core, and the pools as the core would have them."""

    admit_any: bool = False
    max_workers: int = 8
    pools: Pools = field(default_factory=Pools)
    events: list[WorkerEvent] = field(default_factory=list)
    num_pings: int = 0
    stalled_s: float = 0.0  # how long the loop has stood still, as far as it knows

    def __post_init__(self) -> None:
        loop_s = asyncio.get_running_loop().time

        def clock() -> float:
            return loop_s() + self.stalled_s

        config = CoordinatorConfig("t", lease_s=LEASE_S, admit_any=self.admit_any, max_workers=self.max_workers)
        self.it = Registry(config, "t", self.pools, clock, self.feed, self.serve)

    def feed(self, event: WorkerEvent) -> None:
        self.events.append(event)
        if isinstance(event, WorkerUp):
            self.pools.join(event.worker, event.info)
        elif isinstance(event, WorkerDown):
            self.pools.leave(event.worker)

    async def ping(self) -> None:
        self.num_pings += 1

    async def serve(self, link: Link) -> None:
        link.rtt_s = 0.001
        try:
            await self.it.take_in(link, self.ping)
            await self.it.watch_lease(link)
        except (Unhelpful, Unavailable):
            pass
        finally:
            self.it.lost(link)

    def states(self) -> list[str]:
        return [link.state for link in self.it.links.values()]

    async def empty(self) -> None:
        async with asyncio.timeout(30):
            while self.it.links:
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        tasks = [link.task for link in self.it.links.values() if link.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_silent_worker_is_suspected_then_dropped_and_comes_back_as_another() -> None:
    world = World()
    world.it.register(info(Role.VERIFIER))
    await asyncio.sleep(0)
    assert world.states() == ["healthy"]
    (link,) = world.it.links.values()
    link.lease_until_s -= 0.8 * LEASE_S
    assert link.task
    link.task.cancel()  # the watch looks again when it wakes; here at once
    await asyncio.gather(link.task, return_exceptions=True)
    world.it.register(info(Role.VERIFIER))
    await world.empty()
    kinds = [type(event) for event in world.events]
    assert kinds == [WorkerUp, WorkerDown, WorkerUp, WorkerSuspected, WorkerDown]
    assert world.events[0].worker != world.events[2].worker
    assert world.states() == []


async def test_a_renewal_ends_the_suspicion_and_tells_the_load() -> None:
    world = World()
    world.it.register(info(Role.VERIFIER))
    await asyncio.sleep(0.85 * LEASE_S)
    assert world.states() == ["suspected"]
    world.it.register(replace(info(Role.VERIFIER), num_requests=3, max_model_len=1, model_hash="b", cost=None))
    assert world.states() == ["healthy"]
    assert isinstance(world.events[-1], WorkerRenewed)
    assert world.events[-1].info.num_requests == 3
    (link,) = world.it.links.values()
    assert link.info == replace(info(Role.VERIFIER), num_requests=3), "what it is was checked, and stays"
    await asyncio.sleep(0.6 * LEASE_S)
    assert len(world.it.links) == 1, "its lease is a new one"
    await world.stop()


async def test_a_worker_is_not_dropped_because_the_loop_stood_still() -> None:
    """It had renewed its lease all the while, and nobody had read it."""
    world = World()
    world.it.register(info(Role.VERIFIER))
    await asyncio.sleep(0)
    world.stalled_s += 10 * LEASE_S  # and nobody dies of it
    await asyncio.sleep(0.8 * LEASE_S)
    assert world.it.register(info(Role.VERIFIER)) is None, "it is the same one's"
    assert world.states() == ["healthy"]
    await world.empty()
    assert [type(event) for event in world.events][-2:] == [WorkerSuspected, WorkerDown], "whoever is silent goes"


async def test_a_process_that_starts_anew_is_another_worker() -> None:
    world = World()
    world.it.register(info(Role.VERIFIER, incarnation=1))
    world.it.register(info(Role.VERIFIER, incarnation=2))
    world.it.register(info(Role.VERIFIER, incarnation=2))
    await asyncio.sleep(0)
    ups = [event.worker for event in world.events if isinstance(event, WorkerUp)]
    assert ups == ["verifier-1", "verifier-2"]
    await world.stop()


async def test_a_drafter_waits_for_a_verifier_and_is_measured_when_it_comes() -> None:
    world = World()
    await asyncio.wait_for(world.it.admit(info(Role.DRAFTER, ms=1.0)), 1)
    assert world.states() == ["probation"]
    assert world.events == []
    world.it.register(info(Role.VERIFIER))
    await asyncio.sleep(0.05)
    assert world.states() == ["healthy", "healthy"]
    assert [type(event) for event in world.events] == [WorkerUp, WorkerUp]
    assert world.num_pings == 2 * NUM_FIRST_PINGS
    await world.stop()


async def test_a_drafter_that_can_help_nobody_is_refused_with_its_registration_until_the_verifiers_change() -> None:
    world = World()
    world.it.register(info(Role.VERIFIER))
    await asyncio.sleep(0)
    for _ in range(2):
        with pytest.raises(Unhelpful, match=r"takes 50\.0 ms a token"):
            await world.it.admit(info(Role.DRAFTER, ms=50.0))
    assert world.states() == ["healthy"]
    assert world.it.admission.num_refused(asyncio.get_running_loop().time()) == 1
    world.it.register(info(Role.VERIFIER, ms=90.0, incarnation=2))
    await asyncio.sleep(0)
    await world.it.admit(info(Role.DRAFTER, ms=50.0))
    assert world.states() == ["healthy"] * 3
    await world.stop()


async def test_one_that_drains_while_it_is_on_probation_goes_unused() -> None:
    world = World()
    await world.it.admit(info(Role.DRAFTER, ms=1.0))
    world.it.register(replace(info(Role.DRAFTER, ms=1.0), is_draining=True))
    world.it.register(info(Role.VERIFIER))
    await asyncio.sleep(0.05)
    drafters = [type(event) for event in world.events if event.worker.startswith("drafter")]
    assert drafters[-2:] == [WorkerUp, WorkerDraining]
    await world.stop()


async def test_over_the_bound_a_worker_is_told_to_come_back_and_counted() -> None:
    world = World(max_workers=1)
    world.it.register(info(Role.VERIFIER))
    with pytest.raises(Overloaded, match="registered verifiers"):
        world.it.register(info(Role.VERIFIER, incarnation=2))
    assert world.it.admission.refusals == {(Role.VERIFIER, "full"): 1}
    await world.stop()


async def test_drafters_however_many_keep_no_verifier_out() -> None:
    world = World(max_workers=2)
    for i in range(2):
        world.it.register(info(Role.DRAFTER, incarnation=i))
    with pytest.raises(Overloaded, match="registered drafters"):
        world.it.register(info(Role.DRAFTER, incarnation=9))
    assert world.it.register(info(Role.VERIFIER))
    await world.stop()


async def test_a_worker_renews_no_lease_of_another_roles() -> None:
    world = World()
    drafter = world.it.register(info(Role.DRAFTER))
    assert drafter
    assert world.it.register(replace(info(Role.VERIFIER), address=drafter.info.address)), "it is another worker"
    assert drafter.info.role is Role.DRAFTER
    await world.stop()
