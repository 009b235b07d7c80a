"""From a trace to a profile: a simulated world is traced as a real coordinator is, so its truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.simulator.network import Network
from bench.simulator.recorded import measure
from bench.simulator.replay import main as replay_main
from bench.simulator.replay import replay
from bench.simulator.scenario import Load, Pool, Scenario, Simulation
from coordinator.core.commands import Command
from coordinator.core.events import Event
from coordinator.core.limits import Limits
from paceline.errors import InvalidInput
from paceline.plain import to_plain
from paceline.trace import Step, Writer, read
from paceline.types import Mode, StepCost

TRUTH = Scenario(
    mode=Mode.SEQUENTIAL,
    length=5,
    acceptance=0.7,
    verifiers=Pool(1, StepCost(20, 0.5, 0, 0), network=Network(0.001, is_ordered=True)),
    drafters=Pool(1, StepCost(2, 0, 0, 0), network=Network(0.01, is_ordered=True)),
    load=Load(12, prompt_tokens=9, max_tokens=60),
)


def traced(scenario: Scenario, path: Path) -> Simulation:
    """Run it, and write down what its core does."""
    simulation = Simulation(scenario)
    settings = {"limits": to_plain(scenario.limits)}
    writer = Writer(str(path), unix_s=0.0, clock_s=0.0, settings=settings)
    handle = simulation.world.pipeline.handle

    def note(event: Event, now_s: float) -> list[Command]:
        commands = handle(event, now_s)
        writer.observe(event, commands, now_s)
        return commands

    simulation.world.pipeline.handle = note  # type: ignore[method-assign]
    simulation.run()
    writer.close()
    return simulation


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "run.trace"
    traced(TRUTH, path)
    return path


def test_a_profile_finds_what_the_world_was_made_of(trace: Path) -> None:
    profile = measure(read(str(trace)))
    assert len(profile.requests) == 12
    assert {(r.num_prompt_tokens, r.num_generated_tokens) for r in profile.requests} == {(9, 60)}
    assert profile.verify.base_ms == pytest.approx(20, abs=0.5)
    assert profile.verify.per_token_ms == pytest.approx(0.5, abs=0.1)
    assert profile.draft.ms(1, 1, 0) == pytest.approx(2, abs=0.01)
    assert profile.verifier_hop_s == pytest.approx(0.001, abs=1e-4)
    assert profile.drafter_hop_s == pytest.approx(0.01, abs=1e-4)
    assert profile.acceptance == pytest.approx(0.7, abs=0.1)
    assert (profile.num_verifiers, profile.num_drafters) == (1, 1)
    assert (profile.draft_length, profile.window) == (TRUTH.length, TRUTH.window)


def test_workers_that_came_back_are_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "churn.trace"
    dying = replace(TRUTH, drafters=replace(TRUTH.drafters, num_workers=2, mean_life_s=1.0, restart_s=0.1))
    assert traced(dying, path).outcome.num_deaths > 2
    profile = measure(read(str(path)))
    assert (profile.num_verifiers, profile.num_drafters) == (1, 2)


def test_a_simulated_trace_takes_as_long_as_the_run_it_was_taken_from(trace: Path, tmp_path: Path) -> None:
    truth = traced(TRUTH, tmp_path / "again.trace").outcome
    nothing = StepCost(0, 0, 0, 0)
    still = Network(0.0, is_ordered=True)
    bare = replace(TRUTH, verifiers=Pool(1, nothing, network=still), drafters=Pool(1, nothing, network=still))
    profile = measure(read(str(trace)))
    for mode in (Mode.SEQUENTIAL, Mode.PEARL, Mode.OFF):
        expected = Simulation(replace(TRUTH, mode=mode)).run()
        found = Simulation(replace(profile.apply(bare), mode=mode)).run()
        assert found.tokens_per_s == pytest.approx(expected.tokens_per_s, rel=0.1)
    assert truth.num_tokens == 720


def test_branches_hit_in_the_simulation_as_they_did_in_the_run(tmp_path: Path) -> None:
    """With chance alone, 47 % of the rejections are answered by the first branch; the run had another luck."""
    truth = replace(TRUTH, mode=Mode.BRANCH, acceptance=0.75)
    path = tmp_path / "branches.trace"
    found = traced(truth, path).outcome
    profile = measure(read(str(path)))
    nothing, still = StepCost(0, 0, 0, 0), Network(0.0, is_ordered=True)
    bare = replace(truth, seed=truth.seed + 1, verifiers=Pool(1, nothing, network=still))
    again = Simulation(profile.apply(replace(bare, drafters=Pool(1, nothing, network=still)))).run()
    ranks = [rank for request in profile.requests for rank in request.ranks if rank is not None]
    assert len(ranks) > 20
    assert again.num_hits / (again.num_hits + again.num_misses) == pytest.approx(
        found.num_hits / (found.num_hits + found.num_misses), abs=0.05
    )


def test_only_wanted_requests_make_the_profile(trace: Path) -> None:
    profile = measure(read(str(trace)), lambda spec: spec["request_id"] == "r3")
    assert len(profile.requests) == 1


def test_a_trace_without_requests_is_refused_with_the_reason(trace: Path) -> None:
    with pytest.raises(InvalidInput, match="no request that ended well"):
        measure(read(str(trace)), lambda spec: False)


def test_the_core_does_again_what_the_trace_says_it_did(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay_main([str(trace)]) == 0
    assert ", 0 of them different" in capsys.readouterr().out


def test_a_step_that_differs_is_shown(trace: Path) -> None:
    records: list[Any] = list(read(str(trace)))
    at = next(i for i, record in enumerate(records) if isinstance(record, Step) and record.event["is"] == "Verified")
    records[at] = replace(records[at], commands=records[at].commands[1:])
    different = [one for one in replay(records) if one]
    assert len(different) == 1
    assert different[0].event["is"] == "Verified"


def test_limits_are_those_of_the_trace(tmp_path: Path) -> None:
    """With the default limits the core would wait longer than it did, and do something else."""
    path = tmp_path / "hasty.trace"
    hasty = replace(TRUTH, limits=Limits(retry_s=0.021, max_retries=100, queue_timeout_s=1e6))
    traced(hasty, path)
    assert not any(replay(read(str(path))))
    assert _num_retries(list(read(str(path)))) > 0


def _num_retries(records: Sequence[Any]) -> int:
    return sum(isinstance(r, Step) and r.event["is"] == "Tick" and bool(r.commands) for r in records)


def test_what_the_prefix_cache_held_of_a_prompt_is_not_read_again(trace: Path) -> None:
    """A prompt that was measured in every mode is read once; simulated in full each time it would count too much."""
    records: list[Any] = list(read(str(trace)))
    for i, record in enumerate(records):
        if isinstance(record, Step) and record.event["is"] == "Verified":
            verdict = record.event["verdict"]
            if verdict["request_id"] == "r3" and verdict["start"] == 9:
                records[i] = replace(record, event={**record.event, "verdict": {**verdict, "batch_tokens": 2}})
    assert [request.num_prompt_tokens for request in measure(records).requests].count(2) == 1
