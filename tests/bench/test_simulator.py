"""Whole worlds by scenario: the same seed the same figures, every promise kept, times as the formulas have them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench.simulator.clock import Clock
from bench.simulator.law import NO_RANK, VOCABULARY, Iid, Recorded, RecordedRequest, greedy
from bench.simulator.network import Network, Path
from bench.simulator.scenario import Load, Pool, Scenario, Simulation, oracle_s, run
from bench.simulator.sweep import Grid, sweep
from bench.simulator.world import Broken
from coordinator.core.limits import Limits
from coordinator.core.placement import Wish
from paceline.length_policy import LengthPolicy
from paceline.types import Commit, Mode, OpenDraft, Rule, SamplingParams, Source, StepCost
from tests.world import World

MODES = (None, Mode.OFF, Mode.SEQUENTIAL, Mode.PEARL, Mode.BRANCH)
STREAM = Network(delay_s=0.005, is_ordered=True)


def scenario(mode: Mode | None = Mode.PEARL, network: Network = STREAM, load: Load | None = None) -> Scenario:
    return Scenario(
        seed=3,
        mode=mode,
        verifiers=Pool(1, StepCost(16, 0.3, 0.1, 0.001), network=Network(0.0002, is_ordered=True)),
        drafters=Pool(1, StepCost(1.3, 0.05, 0, 0), network=network),
        load=load or Load(6, prompt_tokens=20, max_tokens=30),
    )


def rough(seed: int, mode: Mode | None) -> Scenario:
    """Bursts of requests, a network that does everything wrong, and workers that die."""
    network = Network(0.002, 0.01, loss=0.05, duplication=0.05, stall=0.01)
    limits = Limits(retry_s=0.2, max_retries=100, max_moves=100, queue_timeout_s=1e6)
    return replace(
        scenario(mode, network, Load(12, rate_per_s=20, burst=4, prompt_tokens=700, max_tokens=25)),
        seed=seed,
        limits=limits,
        verifiers=Pool(2, StepCost(16, 0.02, 0.1, 0), 3, network, mean_life_s=1.0, restart_s=0.3, seen_after_s=0.1),
        drafters=Pool(2, StepCost(1.3, 0.05, 0, 0), 4, network, mean_life_s=0.5, restart_s=0.2),
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_same_scenario_gives_the_same_figures_byte_for_byte(mode: Mode | None) -> None:
    first, second = (json.dumps(run(rough(7, mode)).figures()) for _ in range(2))
    assert first == second
    assert json.dumps(run(rough(8, mode)).figures()) != first


@pytest.mark.parametrize("mode", MODES)
def test_rough_worlds_lose_no_request_and_keep_every_token(mode: Mode | None) -> None:
    """Every client is checked against the target's own output as it ends, and at the end nothing may be held."""
    for seed in range(5):
        outcome = run(rough(seed, mode))
        assert outcome.num_ended == 12
        assert outcome.num_refused == outcome.num_failed == 0
        assert outcome.num_tokens == 12 * 25


def test_a_drafter_that_is_wrong_shows_and_changes_no_token() -> None:
    good, bad = run(scenario()), run(replace(scenario(), acceptance=0.0))
    assert good.sources[Source.ACCEPTED] > 0.5 * good.num_tokens
    assert bad.sources[Source.ACCEPTED] == 0
    assert bad.num_tokens == good.num_tokens


def test_a_sequential_round_takes_drafting_verifying_and_the_round_trips() -> None:
    """A.1: T = g T_d + T_v + RTT. A perfect drafter gives g + 1 tokens a round, so every round is the same."""
    length, token_s, pass_s = 4, 0.002, 0.016
    far, near = Network(0.01, is_ordered=True), Network(0.001, is_ordered=True)

    def taken_s(num_rounds: int) -> float:
        one = Scenario(
            mode=Mode.SEQUENTIAL,
            length=length,
            acceptance=1.0,
            verifiers=Pool(1, StepCost(1e3 * pass_s, 0, 0, 0), network=near),
            drafters=Pool(1, StepCost(1e3 * token_s, 0, 0, 0), network=far),
            load=Load(1, prompt_tokens=8, max_tokens=1 + num_rounds * (length + 1)),
        )
        return run(one).seconds

    # The first and the last round differ from the others, so twelve of those in between are measured.
    assert (taken_s(24) - taken_s(12)) / 12 == pytest.approx(length * token_s + pass_s + 2 * (0.01 + 0.001))


def test_off_takes_a_pass_a_token_and_the_time_that_a_pass_costs() -> None:
    cost = StepCost(10, 1, 0.5, 0.01)
    near = Network(0.0, is_ordered=True)
    load = Load(1, prompt_tokens=30, max_tokens=20)
    outcome = run(Scenario(mode=Mode.OFF, verifiers=Pool(1, cost, network=near), load=load))
    passes_ms = cost.ms(30, 1, 0) + sum(cost.ms(1, 1, 30 + i) for i in range(19))
    assert outcome.seconds == pytest.approx(passes_ms / 1e3)


def test_an_ask_is_taken_at_the_end_of_the_pass_that_is_under_way() -> None:
    """Passes that are alike are simulated as one event; 50 of 10 ms here, which a commit after 35 ms cuts to four."""
    world = World(1)
    drafter = world.drafter(token_s=0.01)
    ask = OpenDraft("r", 0, (1, 2, 3), SamplingParams(), Rule.MATCH, 1, LengthPolicy.of("fixed", {"length": 50}), 4, 99)
    drafter.receive(ask)
    world.at(0.035, drafter.receive, Commit("r", 1, 3, (VOCABULARY,)))
    world.at(0.0401, lambda: None)
    world.run(lambda: world.now_s > 0.04)
    assert drafter.num_passes == 4
    session = drafter.sessions["r"]
    assert (session.epoch, session.tokens[:4]) == (1, [1, 2, 3, VOCABULARY])
    assert session.computed == 3


def test_a_world_that_spends_its_budget_is_broken_and_says_its_seed() -> None:
    with pytest.raises(Broken, match="seed 3: 100 events spent"):
        run(replace(scenario(), max_events=100))


def test_a_wrong_token_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.simulator.workers.successor", lambda position, tail: 7)
    with pytest.raises(Broken, match="differs from the target's own output"):
        run(scenario(Mode.OFF))


def test_a_request_that_is_not_given_back_is_seen() -> None:
    simulation = Simulation(scenario())
    simulation.run()
    world = simulation.world
    world.pipeline.pools.take(Wish(next(iter(world.pipeline.pools)).info.role), "forgotten", 0.0)
    with pytest.raises(Broken, match="still holds 1 requests or places"):
        world.check_nothing_leaked()


def test_nothing_overtakes_on_a_stream_and_a_stall_holds_up_what_is_behind_it() -> None:
    path = Path(Network(0.01, 0.05, stall=0.2, is_ordered=True), World(5).random)
    arrivals = [path.arrivals_s(0.001 * i)[0] for i in range(300)]
    assert arrivals == sorted(arrivals)
    assert max(arrivals) > 0.2
    loose = Path(Network(0.01, 0.05), World(5).random)
    arrivals = [loose.arrivals_s(0.001 * i)[0] for i in range(300)]
    assert arrivals != sorted(arrivals)


def test_an_open_load_comes_at_its_rate_whatever_becomes_of_it() -> None:
    load = Load(400, rate_per_s=50, burst=4, prompt_tokens=3, max_tokens=1)
    outcome = run(scenario(Mode.OFF, load=load))
    assert outcome.num_ended == 400
    assert 5 < outcome.seconds < 12  # 8 s on average


def test_over_the_bound_clients_are_told_at_once() -> None:
    limits = Limits(max_waiting=2)
    one = replace(scenario(Mode.OFF, load=Load(10, rate_per_s=1e5, max_tokens=5)), limits=limits)
    outcome = run(replace(one, verifiers=replace(one.verifiers, places=1)))
    assert outcome.num_refused >= 7
    assert outcome.num_ended == 10


def test_a_coordinator_that_computes_holds_up_whoever_waits_for_it() -> None:
    load = Load(64, concurrency=32, prompt_tokens=4, max_tokens=20)
    free, slow = (run(replace(scenario(load=load), coordinator_s=s)) for s in (0.0, 0.002))
    assert slow.seconds > 1.5 * free.seconds


def test_recorded_acceptance_is_taken_place_by_place() -> None:
    """Two requests: one in which all was kept, one in which nothing was."""
    always, never = (RecordedRequest(5, (None, *[kept] * 23)) for kept in (True, False))
    outcomes = [run(scenario(load=Load(2, recorded=(one,)))) for one in (always, never)]
    assert outcomes[0].sources[Source.RECOVERED] == 0
    assert outcomes[1].sources[Source.ACCEPTED] == 0
    assert [outcome.num_tokens for outcome in outcomes] == [48, 48]


def test_what_was_not_recorded_falls_to_chance() -> None:
    law = Recorded(Iid(1.0), {"r": RecordedRequest(2, (False, None), (1, None))})
    assert [law.agrees("r", (1,) * n) for n in (2, 3, 9)] == [False, True, True]
    assert law.rank("r", (1, 1)) == 1
    assert [law.rank("r", (1,) * n) for n in (3, 9)] == [Iid(1.0).rank("r", (1,) * n) for n in (3, 9)]


def test_recorded_branches_hit_where_they_did() -> None:
    """Two requests, each rejected in every third place: what came was the likeliest other token, or none of them."""
    kept = (None, *(i % 3 != 0 for i in range(47)))
    always, never = (RecordedRequest(5, kept, (rank,) * 48) for rank in (0, NO_RANK))
    outcomes = [run(scenario(Mode.BRANCH, load=Load(2, recorded=(one,)))) for one in (always, never)]
    assert outcomes[0].num_hits > outcomes[0].num_misses
    assert outcomes[1].num_hits == 0
    assert outcomes[1].num_misses > 0


def test_no_mode_beats_the_oracle_and_a_free_drafter_next_door_comes_near() -> None:
    shares = []
    for token_ms in (0.001, 4.0):
        one = replace(scenario(network=Network(0.0, is_ordered=True)), length=12)
        outcome = run(replace(one, drafters=replace(one.drafters, cost=StepCost(token_ms, 0, 0, 0))))
        assert outcome.oracle_share is not None
        shares.append(outcome.oracle_share)
    assert 0.6 < shares[0] < 1
    assert shares[1] < shares[0]


def test_the_oracle_takes_one_pass_for_each_run_of_agreement() -> None:
    world = World(1)
    world.verifier()
    client = world.request(max_tokens=7, mode=Mode.OFF)
    world.run()
    # Output positions 1, 2 agree, 3 not, 4 to 6 agree: passes for the prompt, for 1 to 3, and for 4 to 6 (the last
    # token of the output needs no draft: it is what the pass gives anyway).
    law = Recorded(Iid(0.0), {"r0": RecordedRequest(3, (None, True, True, False, True, True, True))})
    assert oracle_s(client, StepCost(100, 1, 0, 0), law) == pytest.approx(0.103 + 0.103 + 0.103)


def test_modes_are_compared_on_the_same_requests() -> None:
    rows = sweep(Grid(scenario(), (Mode.OFF, Mode.SEQUENTIAL), (0.0, 40.0), (1, 2)))
    assert len(rows) == 8
    by_place = {(row.point.mode, row.point.rtt_ms, row.point.num_drafters): row for row in rows}
    assert all(row.speed_up == 1 for row in rows if row.point.mode is Mode.OFF)
    near, far = (by_place[Mode.SEQUENTIAL, rtt_ms, 1].speed_up or 0 for rtt_ms in (0.0, 40.0))
    assert near > far
    assert {row.outcome.num_tokens for row in rows} == {180}


def test_ties_of_the_clock_are_in_the_order_of_planning() -> None:
    clock, said = Clock(10), list[str]()
    for name in "abc":
        clock.at(1.0, said.append, name)
    clock.at(0.5, said.append, "first")
    while clock.advance():
        pass
    assert said == ["first", "a", "b", "c"]


def test_the_toy_target_is_the_same_in_every_process() -> None:
    """A world is named by its seed, so nothing in it may hang on this process's hash of strings."""
    assert greedy((1, 2, 3), 8) == GREEDY
    assert max(GREEDY) < VOCABULARY


GREEDY = (38, 20, 18, 24, 5, 6, 8, 21)


def test_branches_spare_the_round_trip_where_they_hit() -> None:
    """The same luck in both modes; without branches every rejection costs a round trip to the drafter."""
    far = Network(0.015, is_ordered=True)
    pearl, branch = (
        run(
            replace(scenario(mode, load=Load(6, max_tokens=120)), drafters=Pool(1, StepCost(1.3, 0, 0, 0), network=far))
        )
        for mode in (Mode.PEARL, Mode.BRANCH)
    )
    assert pearl.num_hits == pearl.num_branch_tokens == 0
    assert branch.num_hits > branch.num_misses
    assert branch.seconds < 0.95 * pearl.seconds
    assert branch.figures()["wasted_per_branch_token"] < 1
