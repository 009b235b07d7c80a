"""What scales the pools: tokens that were decoded for want of a draft, of the requests that would have had drafts."""

from __future__ import annotations

import pytest

from coordinator.core.commands import Ask, Command, Emit, Finish
from coordinator.core.events import Arrived, Event, RequestSpec, Tick, Verified
from coordinator.core.metrics import RequestMetrics
from coordinator.demand import MEMORY_S, Demand
from paceline.length_policy import LengthPolicy
from paceline.types import Commit, Draft, DraftPlan, FinishReason, Mode, SamplingParams, Source, Verdict

A, S = Source.ACCEPTED, Source.SELF_DECODED


def arrived(request_id: str, mode: Mode | None = None) -> Event:
    return Arrived(RequestSpec(request_id, (1, 2), 8, SamplingParams(), seed=1, draft_seed=2, mode=mode))


def emitted(request_id: str, *sources: Source) -> list[Command]:
    return [Emit(request_id, tuple(range(len(sources))), sources)]


def planned(request_id: str, window: int) -> list[Command]:
    return [Ask("drafter-1", Commit(request_id, 1, 2, (3,), DraftPlan(LengthPolicy(), window)))]


def test_the_stall_share_is_of_tokens_that_would_have_had_drafts() -> None:
    demand = Demand()
    demand.observe(arrived("a"), (), 0.0)
    demand.observe(arrived("plain", Mode.OFF), (), 0.0)
    assert demand.stall_share == 0
    demand.observe(Tick(), emitted("a", A, A, A, S), 0.0)
    demand.observe(Tick(), emitted("plain", S, S, S, S), 0.0)
    assert demand.stall_share == pytest.approx(0.25)
    assert demand.num_speculative == 1


def test_a_request_whose_drafter_rests_stalls_nobody_until_it_drafts_again() -> None:
    demand = Demand()
    demand.observe(arrived("a"), (), 0.0)
    demand.observe(Tick(), [*planned("a", 0), *emitted("a", S, S)], 0.0)
    assert (demand.stall_share, demand.num_resting) == (0, 1)
    demand.observe(Tick(), [*planned("a", 4), *emitted("a", S)], 0.0)
    assert (demand.stall_share, demand.num_resting) == (1, 0)


def test_what_is_old_fades() -> None:
    demand = Demand()
    demand.observe(arrived("a"), (), 0.0)
    demand.observe(Tick(), emitted("a", *[S] * 100), 0.0)
    demand.observe(Tick(), emitted("a", *[A] * 100), 5 * MEMORY_S)
    assert demand.stall_share < 0.01


def test_a_request_that_has_ended_is_forgotten() -> None:
    demand = Demand()
    demand.observe(arrived("a"), (), 0.0)
    demand.observe(Tick(), planned("a", 0), 0.0)
    metrics = RequestMetrics("pearl", "match", "fixed:length=8", 4, num_prompt_tokens=2)
    demand.observe(Tick(), [Finish("a", FinishReason.STOP, metrics)], 0.0)
    assert (demand.num_speculative, demand.num_resting) == (0, 0)


def test_a_pass_is_the_mean_of_those_of_late() -> None:
    demand = Demand()
    for at_s, ms in ((0.0, 400.0), (10 * MEMORY_S, 20.0), (10 * MEMORY_S, 30.0)):
        demand.observe(Verified("verifier-1", Verdict("a", 1, 2, (3,), (A,), verify_ms=ms)), (), at_s)
    assert demand.verify_ms == pytest.approx(25, abs=0.1)


def test_drafts_alone_are_no_output() -> None:
    from coordinator.core.events import Drafted

    demand = Demand()
    demand.observe(Drafted("drafter-1", Draft("a", 1, 2, (3, 4))), (), 0.0)
    assert (demand.stall_share, demand.verify_ms) == (0, 0)
