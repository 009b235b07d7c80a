"""What the controller promises, chooses, and costs; in virtual time, around the production core."""

from __future__ import annotations

from typing import Any

import pytest

from bench.simulator.law import Iid
from coordinator.core.choice import OFF, Choice
from coordinator.core.commands import Ask
from coordinator.core.controller import PROBE_EVERY, Conditions
from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from paceline.types import Commit, Draft, Mode, StepCost
from tests.world import Client, Network, World

PASS_S = 0.016


def run(
    mode: Mode | None,
    length: int | None,
    *,
    token_s: float,
    delay_s: float,
    agreement: float,
    num_requests: int = 6,
) -> tuple[float, list[Client]]:
    """Tokens a second over requests one after another, so that what one has learned helps the next."""
    world = World(1, network=Network(delay_s=delay_s))
    world.verifier(pass_s=PASS_S)
    world.drafter(token_s=token_s, agreement=agreement)
    for number in range(num_requests):
        world.request(f"r{number}", prompt=(1, 2, number), max_tokens=200, mode=mode, length=length, window=16)
        world.run().check_lossless()
    return num_requests * 200 / world.now_s, list(world.clients.values())


@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("delay_s", [0.0001, 0.005, 0.05])
@pytest.mark.parametrize("token_s", [0.0003, 0.004])
def test_auto_is_near_the_best_choice_and_never_far_below_plain_decoding(
    token_s: float, delay_s: float, agreement: float
) -> None:
    meets: Any = {"token_s": token_s, "delay_s": delay_s, "agreement": agreement}
    plain, _ = run(Mode.OFF, None, **meets)
    best = max(
        run(mode, length, **meets, num_requests=2)[0] for mode in (Mode.SEQUENTIAL, Mode.PEARL) for length in (2, 6, 16)
    )
    auto, clients = run(None, None, **meets)
    assert auto > 0.97 * plain, [client.metrics and client.metrics.tokens_by_mode for client in clients]
    assert auto > 0.75 * max(best, plain)


def conditions(**given: float) -> Conditions:
    passes = PassTimes(StepCost(15.0, 0.3, 0.0, 0.0))
    fields = {"draft_s": 0.0013, "delay_s": 0.0002, "wire_s": 0.0005, "acceptance": 0.8} | given
    return Conditions(passes=passes, **fields)  # type: ignore[arg-type]


def best(mode: Mode, on: Conditions) -> float:
    return max(on.tokens_per_s(Choice(mode, length, on.window(length))) for length in (1, 2, 4, 6, 8, 12, 16))


def test_free_drafts_favour_sequential_and_slow_ones_pearl() -> None:
    free, slow = conditions(draft_s=1e-5), conditions(draft_s=0.003)
    assert best(Mode.SEQUENTIAL, free) > best(Mode.PEARL, free)
    assert best(Mode.PEARL, slow) > best(Mode.SEQUENTIAL, slow)


def test_a_drafter_too_far_away_or_too_wrong_is_worse_than_none() -> None:
    for on in (conditions(delay_s=0.3, wire_s=0.001), conditions(acceptance=0.02, draft_s=0.02)):
        assert on.tokens_per_s(OFF) > max(best(Mode.SEQUENTIAL, on), best(Mode.PEARL, on))


def test_a_full_verifier_favours_shorter_drafts() -> None:
    def favourite(num_seqs: int) -> int:
        on = Conditions(0.0013, 0.0002, 0.0005, 0.8, PassTimes(StepCost(15.0, 0.9, 0.0, 0.0)), num_seqs)
        return max((2, 4, 8, 16), key=lambda length: on.tokens_per_s(Choice(Mode.SEQUENTIAL, length, 1)))

    assert favourite(1) > favourite(64)


def test_the_window_grows_with_the_distance() -> None:
    assert conditions().window(4) < conditions(delay_s=0.03).window(4)


def test_pass_times_are_read_between_what_was_measured_and_follow_the_estimate_beyond_it() -> None:
    passes = PassTimes(StepCost(10.0, 1.0, 0.0, 0.0))
    assert passes.seconds(11) == pytest.approx(0.021)
    passes.seen(1, 0.022)
    assert passes.seconds(1) == pytest.approx(0.022)
    assert passes.seconds(12) == pytest.approx(0.044), "twice the estimate, as for one token"
    passes.seen(9, 0.030)
    assert passes.seconds(5) == pytest.approx(0.026)


def test_a_resting_drafter_is_spared_commits_and_tried_again_in_time() -> None:
    """Its first draft after the rest is as good as those before it: it is told all that it has missed."""
    world = World(1, network=Network(delay_s=0.0001))
    world.verifier(pass_s=PASS_S)
    drafter = world.drafter(token_s=0.0003, agreement=0.0)
    client = world.request(max_tokens=4 * PROBE_EVERY, mode=None, length=None)
    world.at(2.0, lambda: setattr(drafter, "agreement", Iid(1.0)))
    world.run().check_lossless()
    assert client.metrics is not None
    by_mode = client.metrics.tokens_by_mode
    assert by_mode[Mode.OFF] > 64, "it rested while it was always wrong"
    assert by_mode[Mode.PEARL] + by_mode[Mode.SEQUENTIAL] > PROBE_EVERY, "and was taken back when it was right"
    commits = [c.ask for _, c in world.log if isinstance(c, Ask) and isinstance(c.ask, Commit)]
    assert any(len(commit.token_ids) > 16 for commit in commits), "told of all that it has missed at once"


def test_what_came_too_late_to_be_judged_still_tells_of_acceptance() -> None:
    right, wrong = Pace(), Pace()
    committed = list(range(10))
    for _ in range(20):
        right.compared(Draft("r", 1, 4, (4, 5, 6)), committed)
        wrong.compared(Draft("r", 1, 4, (7, 5, 6)), committed)
    assert right.acceptance > 0.9
    assert wrong.acceptance < 0.2
