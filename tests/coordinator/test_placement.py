"""Who gets a request: the pools against the obvious way of choosing, which looks at every worker."""

from __future__ import annotations

import random

import pytest

from coordinator.core.placement import Pools, Wish
from paceline.types import Role, WorkerInfo


def info(role: Role = Role.DRAFTER, places: int = 2) -> WorkerInfo:
    return WorkerInfo(role, "", 1, "toy", "", "", 50, 4096, places, (), "float32", "cpu")


def take(pools: Pools, request_id: str) -> str | None:
    """The drafter that gets the request."""
    worker = pools.take(Wish(Role.DRAFTER), request_id, 0.0)
    return worker.name if worker else None


def test_the_least_loaded_worker_is_taken_and_the_first_of_equals() -> None:
    pools = Pools()
    pools.join("small", info(places=1))
    pools.join("big", info(places=4))
    assert [take(pools, f"r{i}") for i in range(6)] == ["small", "big", "big", "big", "big", None]


def test_a_place_that_was_given_back_is_given_again() -> None:
    pools = Pools()
    pools.join("d", info(places=1))
    assert take(pools, "r0") == "d"
    assert take(pools, "r1") is None
    pools.release("d", "r0")
    assert take(pools, "r1") == "d"


def test_a_worker_that_has_left_is_not_taken_even_if_its_name_comes_back() -> None:
    pools = Pools()
    pools.join("d", info(places=2))
    assert take(pools, "r0") == "d"
    assert pools.leave("d") is not None
    assert take(pools, "r1") is None
    pools.release("d", "r0")
    pools.join("d", info(places=1))
    assert [take(pools, f"r{i}") for i in (2, 3)] == ["d", None]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_the_choice_is_that_of_looking_at_every_worker(seed: int) -> None:
    """Entries of the pools' heaps are out of date most of the time, and the heaps are made anew now and then."""
    chance, pools, num_joined = random.Random(seed), Pools(), 0
    for i in range(400):
        members = [worker for worker in pools if worker.info.role is Role.DRAFTER]
        held = [(worker.name, request_id) for worker in members for request_id in worker.requests]
        match chance.randrange(10):
            case 0 if len(members) < 6:
                pools.join(f"w{num_joined}", info(chance.choice(list(Role)), chance.randint(1, 4)))
                num_joined += 1
            case 1 if len(members) > 2:
                pools.leave(chance.choice(members).name)
            case 2 | 3 | 4 | 5 if held:
                pools.release(*chance.choice(held))
            case _:
                free = [worker for worker in members if worker.load < 1]
                expected = min(free, key=lambda worker: worker.load).name if free else None
                assert take(pools, f"r{i}") == expected
    assert max(map(len, pools._free.values())) <= 8 * 12 + 8


def test_a_worker_that_does_not_fit_is_passed_over_and_stays_for_others() -> None:
    pools = Pools()
    pools.join("believed", info(places=1), is_trusted=True)
    pools.join("other", info(places=4))
    assert take(pools, "r0") == "believed"
    assert pools.take(Wish(Role.DRAFTER, trusted_only=True), "r1", 0.0) is None
    pools.release("believed", "r0")
    assert take(pools, "r2") == "believed"
    assert [take(pools, f"s{i}") for i in range(4)] == ["other"] * 4
