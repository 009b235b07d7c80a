"""How many replicas are wanted, without Ray: every signal moves its own pool, and no other."""

from __future__ import annotations

from dataclasses import replace

from deploy.ray.directory import Entry, WorkerEntry
from deploy.ray.scaling import Demand, DrafterAims, VerifierAims, drafters_wanted, verifiers_wanted

DRAFTERS = DrafterAims(requests_per_replica=4, max_stall_share=0.4)
VERIFIERS = VerifierAims(max_kv_used=0.8, max_load=0.8)
BUSY = Demand(num_running=8, num_speculative=8, num_places=64)


def worker(role: str, address: str, *, kv_used: float = 0.0, is_draining: bool = False) -> WorkerEntry:
    return WorkerEntry(
        role=role, address=address, model="m", num_requests=0, max_num_seqs=16, kv_used=kv_used, is_draining=is_draining
    )


def entry(num_running: int, stall_share: float, *workers: WorkerEntry, num_waiting: int = 0) -> Entry:
    return Entry(
        grpc="127.0.0.1:1",
        http="",
        num_running=num_running,
        num_waiting=num_waiting,
        num_undrafted=0,
        num_resting=0,
        num_speculative=num_running + num_waiting,
        stall_share=stall_share,
        verify_ms=10.0 * num_running,
        workers=list(workers),
    )


def test_coordinators_add_up_and_a_verifier_that_both_know_counts_once() -> None:
    shared = worker("verifier", "127.0.0.1:5")
    other = worker("verifier", "127.0.0.1:7", kv_used=0.5)
    going = worker("verifier", "127.0.0.1:6", kv_used=1.0, is_draining=True)
    drafter = worker("drafter", "127.0.0.1:8", kv_used=1.0)
    demand = Demand.of([entry(3, 0.5, shared, going), entry(1, 0.1, shared, other, drafter, num_waiting=2)])
    assert demand == Demand(
        num_running=4, num_waiting=2, num_speculative=6, num_places=32, kv_used=0.25, stall_share=0.4, verify_ms=30.0
    )


def test_nobody_who_wants_drafts_needs_no_drafter() -> None:
    assert drafters_wanted(Demand(), 0, 3, DRAFTERS) == 0
    plain = Demand(num_running=50, num_speculative=0, num_places=64)
    assert drafters_wanted(plain, 0, 3, DRAFTERS) == 0


def test_a_pool_without_replicas_comes_back_for_the_first_request() -> None:
    first = Demand(num_running=1, num_speculative=1, num_undrafted=1, stall_share=1.0)
    assert drafters_wanted(first, 0, 0, DRAFTERS) == 1


def test_drafters_follow_the_requests_that_want_drafts() -> None:
    wanted = [drafters_wanted(replace(BUSY, num_speculative=n), 0, 0, DRAFTERS) for n in (1, 4, 5, 8, 9)]
    assert wanted == [1, 1, 2, 2, 3]


def test_one_drafter_more_is_tried_where_verifiers_decode_alone_and_only_there() -> None:
    assert drafters_wanted(replace(BUSY, stall_share=0.39), 0, 2, DRAFTERS) == 2
    assert drafters_wanted(replace(BUSY, stall_share=0.41), 0, 2, DRAFTERS) == 3
    assert drafters_wanted(replace(BUSY, num_undrafted=1), 0, 4, DRAFTERS) == 5
    assert drafters_wanted(replace(BUSY, stall_share=1.0), 0, 8, DRAFTERS) == 8, "no more drafters than requests"


def test_where_drafting_does_not_pay_one_drafter_is_kept_to_be_tried() -> None:
    assert drafters_wanted(replace(BUSY, num_resting=8), 0, 3, DRAFTERS) == 1
    assert drafters_wanted(replace(BUSY, num_resting=4), 0, 1, DRAFTERS) == 1


def test_a_pool_has_drafters_for_its_share_alone() -> None:
    half = replace(DRAFTERS, share=0.5)
    assert drafters_wanted(replace(BUSY, num_speculative=16), 0, 2, half) == 2
    assert drafters_wanted(replace(BUSY, num_speculative=17), 0, 2, half) == 3


def test_what_a_pools_own_drafters_hold_counts_where_it_is_more_than_its_share() -> None:
    """As when the other pools are away."""
    half = replace(DRAFTERS, share=0.5)
    assert drafters_wanted(replace(BUSY, num_speculative=8), 4, 1, half) == 1
    assert drafters_wanted(replace(BUSY, num_speculative=8), 8, 1, half) == 2
    resting = replace(BUSY, num_speculative=8, num_resting=6)
    assert drafters_wanted(resting, 8, 1, half) == 1, "who rests asks for nothing"


def test_a_long_queue_calls_for_several_verifiers_at_once() -> None:
    full = Demand(num_running=16, num_places=16)
    aims = replace(VERIFIERS, max_load=1.0)
    assert [verifiers_wanted(replace(full, num_waiting=n), 0.3, 1, aims) for n in (0, 1, 16, 17, 48)] == [1, 2, 2, 3, 4]


def test_each_of_the_three_signals_of_a_verifier_calls_for_another() -> None:
    calm = Demand(num_running=4, num_places=16, verify_ms=40.0)
    assert verifiers_wanted(calm, 0.3, 1, VERIFIERS) == 1
    assert verifiers_wanted(calm, 0.9, 1, VERIFIERS) == 2, "KV"
    assert verifiers_wanted(replace(calm, num_running=14), 0.3, 1, VERIFIERS) == 2, "places"
    assert verifiers_wanted(replace(calm, num_waiting=1), 0.3, 1, VERIFIERS) == 2, "queue"
    slow = replace(VERIFIERS, max_step_ms=30.0)
    assert verifiers_wanted(calm, 0.3, 1, slow) == 2, "step time"
    assert verifiers_wanted(replace(calm, num_running=0), 0.3, 1, slow) == 1, "a pass of long ago says nothing"


def test_a_verifier_goes_once_the_others_would_be_calm_without_it() -> None:
    demand = Demand(num_running=8, num_places=32)  # a load of 0.25, so 0.5 without one of two
    assert verifiers_wanted(demand, 0.1, 2, VERIFIERS) == 1
    assert verifiers_wanted(replace(demand, num_running=10), 0.1, 2, VERIFIERS) == 2, "0.625 of 0.8 is not calm"
    assert verifiers_wanted(replace(demand, num_waiting=1), 0.1, 2, VERIFIERS) == 3
    assert verifiers_wanted(Demand(), 0.0, 1, VERIFIERS) == 1
    assert verifiers_wanted(Demand(), 0.0, 0, VERIFIERS) == 1


def test_neither_pool_looks_at_the_others_signals() -> None:
    stalled = replace(BUSY, stall_share=1.0, num_undrafted=8)
    assert verifiers_wanted(stalled, 0.1, 1, VERIFIERS) == verifiers_wanted(BUSY, 0.1, 1, VERIFIERS) == 1
    full = replace(BUSY, num_waiting=50, verify_ms=500.0, num_places=8)
    assert drafters_wanted(full, 0, 2, DRAFTERS) == drafters_wanted(BUSY, 0, 2, DRAFTERS) == 2
