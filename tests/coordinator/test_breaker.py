"""When a drafter rests."""

from __future__ import annotations

from coordinator.core.breaker import (
    FIRST_REST_S,
    LONGEST_REST_S,
    MAX_LATE,
    MAX_REFUSALS,
    MIN_SILENCE_S,
    Breaker,
)
from coordinator.core.commands import Ask
from coordinator.core.events import Arrived, Drafted, Faulted, Tick, Verified, WorkerUp
from coordinator.core.limits import Limits
from paceline.types import Blame, Close, Draft, OpenDraft, Role, Source, Verdict
from tests.coordinator.test_request import asks, info, pipeline, spec, verdict
from tests.world import ToyDrafter, World


def tripped(now_s: float = 0.0, times: int = 1) -> Breaker:
    breaker = Breaker()
    for _ in range(times):
        now_s = max(now_s, breaker.rests_until_s)
        for _ in range(MAX_REFUSALS):
            breaker.refused(now_s)
    return breaker


def test_a_drafter_that_refuses_again_and_again_rests_and_then_gets_one_request_to_try() -> None:
    breaker = Breaker()
    for _ in range(MAX_REFUSALS - 1):
        breaker.refused(0.0)
    assert breaker.allows(0.0, 5)
    breaker.refused(0.0)
    assert not breaker.allows(0.0, 0)
    assert not breaker.allows(FIRST_REST_S - 0.01, 0)
    assert breaker.allows(FIRST_REST_S, 0)
    assert not breaker.allows(FIRST_REST_S, 1), "one, not all of them at once"


def test_a_draft_closes_it_and_clears_the_count() -> None:
    breaker = tripped()
    breaker.judged()
    assert breaker.allows(FIRST_REST_S, 5)
    for _ in range(MAX_REFUSALS - 1):
        breaker.refused(2.0)
        breaker.judged()
    assert breaker.allows(2.0, 5)


def test_each_rest_in_a_row_is_twice_as_long_up_to_a_bound() -> None:
    now_s, rests = 0.0, []
    breaker = Breaker()
    for _ in range(12):
        for _ in range(MAX_REFUSALS):
            breaker.refused(now_s)
        rests.append(breaker.rests_until_s - now_s)
        now_s = breaker.rests_until_s
    assert rests[:4] == [1, 2, 4, 8]
    assert rests[-1] == LONGEST_REST_S


def test_one_failure_of_the_trial_is_enough() -> None:
    breaker = tripped()
    breaker.refused(FIRST_REST_S)
    assert not breaker.allows(FIRST_REST_S, 0)


def test_requests_that_fail_with_it_are_one_failure() -> None:
    breaker = tripped()
    for _ in range(100):
        breaker.refused(0.1)
    assert breaker.rests_until_s == FIRST_REST_S
    assert breaker.num_trips == 1


def test_being_late_often_within_a_moment_is_a_matter_of_load_or_of_a_long_prompt() -> None:
    breaker = Breaker()
    for i in range(10 * MAX_LATE):
        breaker.late(0.01 * i)
    assert breaker.allows(1.0, 5)
    breaker.late(MIN_SILENCE_S)
    assert not breaker.allows(MIN_SILENCE_S, 0)


def test_who_says_that_there_is_nothing_to_propose_is_not_silent() -> None:
    breaker = Breaker()
    for i in range(10 * MAX_LATE):
        breaker.late(float(i))
        breaker.heard()
    assert breaker.allows(100.0, 5)
    breaker = tripped()
    breaker.heard()
    assert not breaker.allows(FIRST_REST_S, 1), "nor has it proved anything"


def test_late_now_and_then_is_no_failure() -> None:
    breaker = Breaker()
    for i in range(100):
        breaker.late(float(i))
        if i % (MAX_LATE - 1) == 0:
            breaker.judged()
    assert breaker.allows(100.0, 5)


def test_a_drafter_that_refuses_everything_is_left_alone_for_a_while() -> None:
    it = pipeline(limits=Limits(max_moves=100))
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.1)
    num_opened = 0
    for _ in range(10):
        num_opened += sum(isinstance(ask, OpenDraft) for ask in asks(it.handle(Faulted("d", "r", "no"), 0.2)))
    assert num_opened == MAX_REFUSALS - 1
    assert not [ask for ask in asks(it.handle(verdict(4, 8), 0.3)) if isinstance(ask, OpenDraft)]
    (again,) = [ask for ask in asks(it.handle(verdict(5, 9), 0.2 + FIRST_REST_S)) if isinstance(ask, OpenDraft)]
    assert again.token_ids == (1, 2, 3, 7, 8, 9)


def test_a_request_that_is_wrong_itself_does_not_count_against_the_drafter() -> None:
    it = pipeline(limits=Limits(max_moves=100))
    for i in range(3 * MAX_REFUSALS):
        it.handle(Arrived(spec(f"r{i}")), 0.0)
        it.handle(Faulted("d", f"r{i}", "too long for me", Blame.CALLER), 0.0)
    assert it.pools.pace("d").breaker.allows(0.0, 0)


def test_what_a_resting_drafter_holds_goes_to_another_one() -> None:
    it = pipeline()
    it.handle(Arrived(spec("r")), 0.0)
    it.handle(Arrived(spec("s")), 0.0)
    it.handle(verdict(3, 7), 0.1)
    it.handle(WorkerUp("e", info(Role.DRAFTER)), 0.1)
    for _ in range(MAX_REFUSALS - 1):
        it.pools.pace("d").breaker.refused(0.2)
    commands = it.handle(Faulted("d", "r", "no"), 0.2)
    closed = [c.ask.request_id for c in commands if isinstance(c, Ask) and isinstance(c.ask, Close) and c.worker == "d"]
    opened = [c.ask.request_id for c in commands if isinstance(c, Ask) and isinstance(c.ask, OpenDraft)]
    assert closed == ["r", "s"]
    assert sorted(opened) == ["r", "s"]
    assert all(c.worker == "e" for c in commands if isinstance(c, Ask) and isinstance(c.ask, OpenDraft))


def test_a_draft_counts_for_the_drafter_when_it_is_judged_and_not_when_it_comes() -> None:
    """Else a drafter that sends nonsense in time would never rest."""
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.1)
    it.pools.pace("d").breaker.num_trips = 1
    it.handle(Drafted("d", Draft("r", 2, 4, (8, 9))), 0.15)
    assert it.pools.pace("d").breaker.num_trips == 1
    it.handle(Verified("v", Verdict("r", 2, 4, (8,), (Source.RECOVERED,), num_tested=1, num_drafts=1)), 0.2)
    assert it.pools.pace("d").breaker.num_trips == 0


def test_a_hung_drafter_is_tried_ever_more_rarely_and_used_again_when_it_answers() -> None:
    world = World(1, limits=Limits(max_draft_wait_s=0.1))
    world.verifier(pass_s=0.05)
    hung = world.drafter()
    hung.hung = True
    world.at(60.0, lambda: setattr(hung, "hung", False))
    client = world.request(max_tokens=3000, length=4)
    world.run().check_lossless()
    taken_away = [at_s for at_s, c in world.log if isinstance(c, Ask) and c.worker == "d0" and isinstance(c.ask, Close)]
    assert 3 <= sum(at_s < 60 for at_s in taken_away) <= 7, "each trial lasts seconds, each rest twice the last"
    assert client.metrics is not None
    assert client.metrics.num_accepted_tokens > 300
    assert isinstance(world.workers["d0"], ToyDrafter)
    assert any(isinstance(event, Tick) for _, event in world.log)
