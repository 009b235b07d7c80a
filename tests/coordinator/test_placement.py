"""Who gets a request: the pools against the obvious way of choosing, which looks at every worker."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest

from coordinator.core.affinity import BLOCK, head_of
from coordinator.core.placement import FULL_S, VERIFIER, Pools, Wish
from coordinator.core.worker import Worker
from paceline.cache_use import CacheUse
from paceline.types import Role, StepCost, WorkerInfo

PROMPT = head_of((1,) * BLOCK)


def info(
    role: Role = Role.DRAFTER, places: int = 2, cost: StepCost | None = None, model_hash: str = "", **more: object
) -> WorkerInfo:
    one = WorkerInfo(role, "", 1, "toy", model_hash, "", 50, 4096, places, (), "float32", "cpu", cost)
    return replace(one, **more)  # type: ignore[arg-type]


def cost(base_ms: float, per_token_ms: float = 0.0) -> StepCost:
    return StepCost(base_ms, per_token_ms, 0.0, 0.0)


def mixed() -> Pools:
    """A verifier of 28 ms a pass, and two drafters of which one takes six times as long."""
    pools = Pools()
    pools.join("v", info(Role.VERIFIER, 64, cost(28, 1.1)))
    pools.join("slow", info(places=8, cost=cost(8)), rtt_s=0.001)
    pools.join("fast", info(places=4, cost=cost(1.3)), rtt_s=0.001)
    return pools


def get(pools: Pools, name: str) -> Worker:
    worker = pools.get(name)
    assert worker
    return worker


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
    assert max(map(len, pools._free.values())) <= 8 * 13


def test_a_worker_that_does_not_fit_is_passed_over_and_stays_for_others() -> None:
    pools = Pools()
    pools.join("believed", info(places=1), is_trusted=True)
    pools.join("other", info(places=4))
    assert take(pools, "r0") == "believed"
    assert pools.take(Wish(Role.DRAFTER, trusted_only=True), "r1", 0.0) is None
    pools.release("believed", "r0")
    assert take(pools, "r2") == "believed"
    assert [take(pools, f"s{i}") for i in range(4)] == ["other"] * 4


def test_the_faster_drafter_is_taken_until_the_slower_one_is_better_for_being_empty() -> None:
    pools = mixed()
    assert [take(pools, f"r{i}") for i in range(5)] == ["fast"] * 4 + ["slow"]


def test_a_long_way_makes_a_fast_drafter_the_worse_one() -> None:
    pools = mixed()
    pools.join("far", info(places=4, cost=cost(0.5)), rtt_s=0.3)
    assert take(pools, "r") == "fast"


def test_what_was_measured_counts_more_than_what_was_registered() -> None:
    pools = mixed()
    pace = pools.pace("fast")
    pace.draft_s, pace.delay_s = 0.030, 0.001
    assert take(pools, "r") == "slow"


def test_a_drafter_that_is_never_right_is_taken_last() -> None:
    pools = mixed()
    pools.pace("fast").acceptance = 0.0
    assert take(pools, "r") == "slow"


def test_a_silent_or_suspected_drafter_is_taken_if_there_is_no_other() -> None:
    for trouble in ("silent", "suspected"):
        pools = mixed()
        if trouble == "silent":
            pools.pace("fast").is_silent = True
        else:
            pools.missed("fast")
        assert [take(pools, f"r{i}") for i in range(9)] == ["slow"] * 8 + ["fast"]


def test_of_two_kinds_the_one_is_taken_that_is_better_beside_this_verifier() -> None:
    pools = mixed()
    pools.join("w", info(Role.VERIFIER, 64, cost(5, 0.1)))
    pools.join("guesser", info(places=64, model_hash="none"), rtt_s=0.0)
    pools.pace("guesser").acceptance, pools.pace("slow").acceptance = 0.4, 0.95
    pools.leave("fast")
    for verifier, drafter in (("v", "slow"), ("w", "guesser")):
        worker = pools.take(Wish(Role.DRAFTER), verifier, 0.0, passes=get(pools, verifier).passes)
        assert worker
        assert worker.name == drafter


def test_what_other_coordinators_have_there_is_part_of_a_workers_load() -> None:
    pools = Pools()
    pools.join("busy", info(places=8))
    pools.join("idle", info(places=8))
    for now_s in (1.0, 2.0):
        pools.heard("busy", info(places=8, num_requests=6), 0.001, now_s)
    assert [take(pools, f"r{i}") for i in range(6)] == ["idle"] * 6
    assert take(pools, "r6") == "busy", "others' places are its own to refuse"


def test_what_one_heartbeat_still_counts_of_closed_requests_is_nobody_elses() -> None:
    """A crowd that hung up was taken for another coordinator's until the next heartbeat, and each drafted less."""
    pools = Pools()
    pools.join("v", info(Role.VERIFIER, 8, cost(20)))
    for num_requests, num_others in ((3, 0), (0, 0), (2, 0), (4, 2), (1, 1)):
        pools.heard("v", info(Role.VERIFIER, 8, cost(20), num_requests=num_requests), None, 1.0)
        assert get(pools, "v").num_others == num_others


def test_a_verifier_is_taken_by_its_speed_and_by_the_room_in_its_cache() -> None:
    pools = Pools()
    pools.join("slow", info(Role.VERIFIER, 8, cost(60)))
    pools.join("fast", info(Role.VERIFIER, 8, cost(20)))
    taken = pools.take(VERIFIER, "r0", 0.0)
    assert taken
    assert taken.name == "fast"
    pools.join("other", info(Role.VERIFIER, 8, cost(20)))
    pools.heard("fast", info(Role.VERIFIER, 8, cost(20), num_requests=1, cache=CacheUse(1000, 950)), None, 1.0)
    assert [worker.name for i in range(3) if (worker := pools.take(VERIFIER, f"s{i}", 1.0))] == ["other"] * 3


def test_a_prompt_goes_where_its_beginning_is_known_unless_that_worker_is_overloaded() -> None:
    pools = Pools()
    for name in "ab":
        pools.join(name, info(Role.VERIFIER, 8, cost(20)))
    other = head_of((2,) * BLOCK)

    def taken(request_id: str, head: tuple[int, ...]) -> str:
        worker = pools.take(VERIFIER, request_id, 0.0, head=head)
        assert worker
        return worker.name

    assert [taken("r0", PROMPT), taken("r1", other)] == ["a", "b"]
    assert [taken(f"s{i}", PROMPT) for i in range(3)] == ["a"] * 3
    assert "b" in [taken(f"t{i}", PROMPT) for i in range(4)]
    pools.leave("a")
    assert taken("u", PROMPT) == "b"


def test_a_worker_that_says_it_is_full_is_left_alone_for_a_while_and_longer_each_time() -> None:
    pools = Pools()
    pools.join("d", info(places=4))
    for _ in range(2000):  # asked for at once, and refused one by one: that is one refusal
        pools.full("d", 0.0)
    wish = Wish(Role.DRAFTER)
    assert pools.take(wish, "r", 0.0) is None
    assert pools.next_free_s() == FULL_S
    assert pools.take(wish, "r", FULL_S)
    pools.full("d", 1.0)
    assert pools.take(wish, "s", 1.0 + FULL_S) is None
    assert pools.take(wish, "s", 1.0 + 2 * FULL_S)


def test_a_request_moves_to_a_drafter_that_is_so_much_faster_that_catching_up_pays() -> None:
    pools, wish = mixed(), Wish(Role.DRAFTER)
    passes = get(pools, "v").passes
    get(pools, "fast").info = info(places=4, cost=cost(1.3, 0.1))
    assert pools.better("slow", wish, passes, 0.0, num_known=100, num_left=200)
    assert not pools.better("fast", wish, passes, 0.0, num_known=100, num_left=200)
    assert not pools.better("slow", wish, passes, 0.0, num_known=100, num_left=1), "it would not earn the way"
    assert not pools.better("slow", wish, passes, 0.0, num_known=40_000, num_left=200), "catching up takes 4 s"


def test_a_drafter_that_is_a_little_faster_is_not_worth_a_move() -> None:
    pools = mixed()
    pools.join("like", info(places=4, cost=cost(7)), rtt_s=0.001)
    pools.leave("fast")
    assert not pools.better("slow", Wish(Role.DRAFTER), get(pools, "v").passes, 0.0, num_known=10, num_left=10_000)


def test_a_drafter_that_was_idle_for_a_minute_is_as_new() -> None:
    pools = mixed()
    pools.pace("fast").acceptance, pools.pace("fast").breaker.num_trips = 0.0, 2
    for now_s in (0.0, 59.0):
        pools.heard("fast", info(cost=cost(1.3)), 0.001, now_s)
    assert pools.pace("fast").acceptance == 0.0
    pools.heard("fast", info(cost=cost(1.3)), 0.001, 60.0)
    assert pools.pace("fast").acceptance > 0.5
    assert pools.pace("fast").breaker.num_trips == 2, "what it has done wrong is not forgotten"


def test_whoever_fits_nothing_is_not_looked_at_again_and_again() -> None:
    """A thousand drafters that a request does not fit, while it waits: looking costs the same as with ten."""

    def seconds(num: int) -> float:
        pools = Pools()
        for i in range(num):
            pools.join(f"d{i}", info(places=1))
        started_s = time.process_time()
        for _ in range(300):
            assert pools.take(Wish(Role.DRAFTER, trusted_only=True), "r", 0.0) is None
        return time.process_time() - started_s

    assert min(seconds(1000) for _ in range(3)) < 20 * min(seconds(10) for _ in range(3)) + 0.01


def test_one_that_had_rather_not_be_taken_is_taken_only_if_no_other_is_free() -> None:
    pools = Pools()
    pools.join("v", info(Role.VERIFIER, 2))
    pools.join("w", info(Role.VERIFIER, 1))

    def taken(request_id: str, *rather_not: str) -> str | None:
        worker = pools.take(VERIFIER, request_id, 0.0, head=PROMPT, rather_not=rather_not)
        return worker.name if worker else None

    assert taken("r0", "v", "w") == "v", "better than none, and the first of equals"
    assert taken("r1", "v") == "w", "though the other knows the prompt's beginning"
    assert taken("r2", "v") == "v", "w is full"
    assert taken("r3", "v") is None
