"""A drafter that is passes away: the verifier decodes while it redrafts, and what still fits of a draft is judged."""

from __future__ import annotations

import pytest

from coordinator.core.events import Arrived, Branched, Drafted, Verified
from coordinator.core.limits import Limits
from coordinator.core.pipeline import Pipeline
from paceline.types import Branch, Commit, Decode, Draft, Mode, Rule, Source, Verdict, Verify
from tests.coordinator.test_request import asks, pipeline, spec
from tests.world import Network, World

PASS_S = 0.016


def seconds(mode: Mode, *, rtt_s: float, agreement: float = 0.8, length: int = 6) -> float:
    """How long the second of two requests takes, when all has been measured."""
    world, began_s = World(1, network=Network(delay_s=0.0001)), 0.0
    world.verifier(pass_s=PASS_S)
    world.drafter(agreement=agreement, network=Network(delay_s=rtt_s / 2))
    for name in ("r0", "r1"):
        began_s = world.now_s
        world.request(name, mode=mode, length=length, window=3, max_tokens=240)
        world.run().check_lossless()
    return world.now_s - began_s


@pytest.mark.parametrize("mode", [Mode.PEARL, Mode.BRANCH])
@pytest.mark.parametrize("rtt_s", [0.04, 0.1, 0.2])
def test_distance_never_makes_drafting_slower_than_plain_decoding(mode: Mode, rtt_s: float) -> None:
    assert seconds(mode, rtt_s=rtt_s) < 1.03 * 240 * PASS_S


def test_drafts_from_four_passes_away_still_help() -> None:
    assert seconds(Mode.PEARL, rtt_s=0.06) < 0.85 * 240 * PASS_S


@pytest.mark.parametrize("mode", [Mode.PEARL, Mode.BRANCH])
def test_a_far_drafter_that_is_never_right_costs_no_more_than_a_pass_here_and_there(mode: Mode) -> None:
    assert seconds(mode, rtt_s=0.06, agreement=0.0) < 1.05 * 240 * PASS_S


def far(rule: Rule, mode: Mode = Mode.PEARL) -> Pipeline:
    """A request whose drafter was measured to be six passes away, and whose first draft is being judged."""
    it = pipeline()
    it.handle(Arrived(spec(max_tokens=200, rule=rule, mode=mode)), 0.0)
    pace = it.pools.pace("d")
    pace.verify_s, pace.turnaround_s = 0.01, 0.06
    it.handle(Verified("v", Verdict("r", 0, 3, (7,), (Source.SELF_DECODED,))), 0.1)
    (verify,) = asks(it.handle(Drafted("d", Draft("r", 2, 4, (8, 9))), 0.15))
    assert isinstance(verify, Verify)
    assert verify.preverify is (mode is Mode.PEARL or rule.needs_rows)
    return it


def rejected(it: Pipeline, now_s: float = 0.17) -> list[object]:
    pace = it.pools.pace("d")
    pace.verify_s, pace.turnaround_s = 0.01, 0.06
    sources = (Source.ACCEPTED, Source.RECOVERED)
    return asks(it.handle(Verified("v", Verdict("r", 2, 4, (8, 5), sources, 2, 1)), now_s))


@pytest.mark.parametrize("rule", [Rule.MATCH, Rule.COUPLED])
def test_after_a_rejection_the_verifier_decodes_on(rule: Rule) -> None:
    it = far(rule)
    commit, decode = rejected(it)
    assert isinstance(commit, Commit)
    assert isinstance(decode, Decode)
    assert (decode.start, decode.num_tokens > 6) == (6, True)


def test_in_mode_sequential_the_redraft_is_waited_for() -> None:
    it = far(Rule.MATCH, Mode.SEQUENTIAL)
    assert [type(ask) for ask in rejected(it)] == [Commit]


@pytest.mark.parametrize("rule", [Rule.TOKEN, Rule.BLOCK])
def test_where_rows_are_needed_the_redraft_is_waited_for(rule: Rule) -> None:
    """A draft that came before the verifier's own token would be tested in another way than one that came after it."""
    it = far(rule)
    assert [type(ask) for ask in rejected(it)] == [Commit]
    assert it.next_deadline_s() < 0.17 + Limits().retry_s / 2


def test_a_draft_that_comes_meanwhile_ends_the_run_and_is_judged_as_far_as_it_fits() -> None:
    it = far(Rule.MATCH)
    rejected(it)
    it.handle(Verified("v", Verdict("r", 3, 6, (11,), (Source.SELF_DECODED,))), 0.18)
    (verify,) = asks(it.handle(Drafted("d", Draft("r", 3, 6, (11, 12, 13))), 0.2))
    assert isinstance(verify, Verify)
    assert (verify.draft.start, verify.draft.token_ids) == (7, (12, 13))


def test_a_far_drafter_that_falls_silent_is_noticed_though_nobody_waits_for_it() -> None:
    it = far(Rule.MATCH)
    rejected(it)
    pace = it.pools.pace("d")
    for at in range(30):
        it.handle(Verified("v", Verdict("r", 3, 6 + at, (11,), (Source.SELF_DECODED,))), 0.18 + 0.01 * at)
        if at == 8:
            assert not pace.is_silent, "that is not long for this one"
    assert pace.is_silent


def test_a_far_drafter_that_hangs_costs_nothing() -> None:
    world = World(1, limits=Limits(max_draft_wait_s=0.25))
    world.verifier(pass_s=PASS_S)
    drafter = world.drafter(network=Network(delay_s=0.03))
    world.request("r0", max_tokens=200)
    world.run().check_lossless()
    drafter.hung = True
    began_s = world.now_s
    world.request("r1", max_tokens=200)
    world.run().check_lossless()
    assert world.now_s - began_s < 1.02 * 200 * PASS_S + 0.05


def test_a_miss_in_mode_branch_forwards_the_recovered_token_at_once() -> None:
    """It is not left to the verifier, which would do so although a branch is there."""
    it = far(Rule.MATCH, Mode.BRANCH)
    pace = it.pools.pace("d")
    pace.verify_s, pace.turnaround_s = 0.01, 0.015
    sources = (Source.ACCEPTED, Source.RECOVERED)
    commands = it.handle(Verified("v", Verdict("r", 2, 4, (8, 5), sources, 2, 1)), 0.17)
    assert [ask for ask in asks(commands) if isinstance(ask, Decode)] == [Decode("r", 3, 6, 1)]


def test_a_hit_in_mode_branch_forwards_no_token_beside_it() -> None:
    it = far(Rule.MATCH, Mode.BRANCH)
    it.handle(Branched("d", Branch(5, Draft("r", 2, 6, (21, 22)))), 0.16)
    assert [type(ask) for ask in rejected(it)] == [Verify, Commit]
