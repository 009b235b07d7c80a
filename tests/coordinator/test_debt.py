"""What a verifier owes, how long it is waited for, and what is forgiven."""

from __future__ import annotations

import pytest

from coordinator.core.commands import Fail, Finish
from coordinator.core.debt import RUN, Debt
from coordinator.core.events import Arrived, Drafted, Faulted, Tick, Verified, WorkerDown, WorkerUp
from coordinator.core.limits import Limits
from coordinator.core.pipeline import Pipeline
from coordinator.core.window import Window
from paceline.types import Close, Decode, Draft, OpenDraft, OpenVerify, Role, Rule, Source, Verdict, Verify
from tests.coordinator.test_request import asks, info, pipeline, spec, verdict
from tests.world import Network, World


def test_all_drafts_in_flight_share_one_flag() -> None:
    """With two, a token would be believed to be owed that the verifier does not decode."""
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.1)
    pace, flags = it.pools.pace("d"), []
    for turnaround_s, draft in ((0.001, (4, 8, 9)), (0.05, (6, 10, 11)), (0.05, (8, 12, 13))):
        pace.verify_s, pace.turnaround_s = 0.03, turnaround_s
        for ask in asks(it.handle(Drafted("d", Draft("r", 2, draft[0], draft[1:], is_open=True)), 0.15)):
            assert isinstance(ask, Verify)
            flags.append(ask.preverify)
    assert flags == [False, False, False]
    sources = (Source.ACCEPTED, Source.RECOVERED)
    it.handle(Verified("v", Verdict("r", 2, 4, (8, 5), sources, 2, 1)), 0.2)
    (verify,) = asks(it.handle(Drafted("d", Draft("r", 3, 6, (21, 22), is_open=True)), 0.25))
    assert isinstance(verify, Verify)
    assert verify.preverify, "nothing is in flight any more: the choice is free again"


@pytest.mark.parametrize(("rule", "num_decode"), [(Rule.TOKEN, 1), (Rule.BLOCK, 1), (Rule.MATCH, 0)])
def test_an_open_that_was_lost_asks_for_the_first_token_again_where_rows_are_needed(
    rule: Rule, num_decode: int
) -> None:
    """Else the draft would be judged for it, or not, by when it came."""
    debt = Debt(spec(), rule, Limits(), [1, 2, 3], window := Window())
    debt.open(RUN)
    draft = window.admit(Draft("r", window.restart(), 3, (8, 9)), [1, 2, 3])
    assert draft
    debt.verify(draft, 0.0, preverify=False)
    opened, verify = debt.retry()
    assert isinstance(opened, OpenVerify)
    assert opened.num_decode == num_decode
    assert verify == Verify(draft, False)


def test_a_verdict_that_leaves_a_gap_is_asked_for_at_once_and_once() -> None:
    it = pipeline()
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.1)
    it.handle(Drafted("d", Draft("r", 2, 4, (8, 9))), 0.15)
    assert asks(it.handle(verdict(5, 9, 10), 0.2)) == [Decode("r", 2, 4, 1)]
    assert asks(it.handle(verdict(7, 11), 0.21)) == []
    it.handle(verdict(4, 8, 9, 10, 11), 0.22)
    assert asks(it.handle(verdict(9, 13), 0.23)) == [Decode("r", 3, 8, 1)], "another gap"


def test_messages_that_overtake_one_another_cost_no_retry() -> None:
    """Nothing is lost, so nothing needs to wait until patience runs out."""
    seconds = []
    for jitter_s in (0.0, 0.008):
        world = World(2, network=Network(delay_s=0.002, jitter_s=jitter_s))
        world.verifier(pass_s=0.004)
        world.drafter(token_s=0.0005, agreement=0.9)
        world.request(length=2, window=8, max_tokens=300)
        world.run().check_lossless()
        seconds.append(world.now_s)
    assert seconds[1] < seconds[0] + 0.9 * Limits().retry_s


def gives_up_after_s(it: Pipeline, began_s: float) -> float:
    """When the verifier, of which nothing more is heard, is rid of the request."""
    now_s = began_s
    for _ in range(20):
        now_s = it.next_deadline_s()
        if any(isinstance(ask, Close) for ask in asks(it.handle(Tick(), now_s))):
            return now_s - began_s
    raise AssertionError("never")


def test_a_verifier_that_falls_silent_is_given_up_after_a_minute() -> None:
    it = pipeline(drafter=False)
    it.handle(Arrived(spec()), 0.0)
    it.handle(verdict(3, 7), 0.1)
    assert 45 < gives_up_after_s(it, 0.1) < 75


def test_a_prompt_may_take_longer_than_that() -> None:
    it = pipeline(drafter=False)
    it.handle(Arrived(spec()), 0.0)
    assert gives_up_after_s(it, 0.0) > 300


def test_verifiers_that_are_lost_one_after_the_other_fail_no_request_that_goes_on() -> None:
    it = pipeline(drafter=False, limits=Limits(max_moves=2))
    it.handle(Arrived(spec()), 0.0)
    for at in range(10):
        it.handle(Verified(f"v{at}" if at else "v", Verdict("r", 0, 3 + at, (7,), (Source.SELF_DECODED,))), 0.1 + at)
        assert not any(isinstance(c, Fail) for c in it.handle(WorkerDown(f"v{at}" if at else "v"), 0.2 + at))
        (opened,) = asks(it.handle(WorkerUp(f"v{at + 1}", info(Role.VERIFIER)), 0.3 + at))
        assert isinstance(opened, OpenVerify)
    metrics = it.metrics("r")
    assert metrics is not None
    assert metrics.queue_ms == 0, "the first one took it at once"


def test_verifiers_that_are_lost_before_a_token_came_fail_it() -> None:
    it = pipeline(drafter=False, limits=Limits(max_moves=2))
    it.handle(Arrived(spec()), 0.0)
    failed = []
    for at in range(3):
        failed += [c for c in it.handle(WorkerDown(f"v{at}" if at else "v"), 0.2 + at) if isinstance(c, Fail)]
        it.handle(WorkerUp(f"v{at + 1}", info(Role.VERIFIER)), 0.3 + at)
    assert len(failed) == 1


@pytest.mark.parametrize(("num_tokens", "is_asked"), [(200, False), (300, True)])
def test_refusals_are_forgiven_when_the_request_has_gone_on(num_tokens: int, *, is_asked: bool) -> None:
    it = pipeline(limits=Limits(max_moves=1))
    it.handle(Arrived(spec(max_tokens=500)), 0.0)
    for _ in range(2):
        it.handle(Faulted("d", "r", "no"), 0.1)
    opened = []
    for at in range(num_tokens):
        commands = it.handle(verdict(3 + at, 7), 100 + at)
        assert not any(isinstance(c, Finish) for c in commands)
        opened += [ask for ask in asks(commands) if isinstance(ask, OpenDraft)]
    assert bool(opened) is is_asked
