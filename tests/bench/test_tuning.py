"""The search, on settings whose speed is known and a clock that only the requests move."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from bench.grids import candidates
from bench.row import Row, Sample, Setting, take_turns
from bench.tuning import Halves, Outcome, Timer, groups, num_runs, sweep, tune
from paceline.length_policy import LengthPolicy
from paceline.types import Tokens
from tests.bench.samples import sample

PROMPTS: tuple[Tokens, ...] = tuple((i,) for i in range(16))
Speed = Callable[[Setting, Tokens], float]  # tokens/s


class World:
    """Settings with a law of their speed, and a clock."""

    def __init__(self, speed: Speed) -> None:
        self.now_s = 0.0
        self.runs: list[tuple[Setting, Tokens]] = []
        self._speed = speed

    def sample(self, setting: Setting, prompt: Tokens) -> Sample:
        taken = sample(seconds=8 / self._speed(setting, prompt))
        self.runs.append((setting, prompt))
        self.now_s += taken.seconds
        return taken

    def turn(self, rows: Sequence[Row[Setting]], prompt: Tokens, number: int) -> None:
        take_turns(rows, prompt, number, self.sample)

    def timer(self, seconds: float) -> Timer:
        return Timer.lasting(lambda: self.now_s, seconds)


def length_of(setting: Setting) -> float:
    return LengthPolicy.parse(setting.policy)["length"] if setting.policy else 0


def nearer_is_faster(best: float) -> Speed:
    return lambda setting, prompt: 100 - abs(length_of(setting) - best)


def swept(speed: Speed, seconds: float = 1e9, modes: Sequence[str] = ("sequential",)) -> tuple[World, Outcome]:
    world = World(speed)
    rows = groups(candidates(["fixed"]), modes, 4)
    return world, sweep(rows, Setting("long", "sequential"), Halves.of(PROMPTS), world.turn, world.timer(seconds))


def test_the_halves_share_no_prompt_and_miss_none() -> None:
    halves = Halves.of(PROMPTS)
    assert not set(halves.tuning) & set(halves.report)
    assert set(halves.tuning) | set(halves.report) == set(PROMPTS)


def test_the_best_is_chosen_on_one_half_and_reported_on_the_other() -> None:
    """Length 12 would win on the report's half by far; whoever looks there must not choose by it."""

    def speed(setting: Setting, prompt: Tokens) -> float:
        return nearer_is_faster(4 if prompt[0] % 2 == 0 else 12)(setting, prompt)

    world, outcome = swept(speed)
    best = outcome.best["sequential", "fixed"]
    assert length_of(best.setting) == 4
    tuned, reported = (
        [prompt for setting, prompt in world.runs if (setting == best.setting and prompt[0] % 2 == odd)]
        for odd in (0, 1)
    )
    assert len(best.samples) == len(reported) == 8
    assert tuned
    off = [prompt for setting, prompt in world.runs if setting.mode == "off"]
    assert off == reported  # the report's rows are paired
    assert outcome.long is not None
    assert len(outcome.long.samples) == 8
    assert outcome.left_out == []


def test_each_mode_has_a_best_of_its_own() -> None:
    def speed(setting: Setting, prompt: Tokens) -> float:
        return nearer_is_faster(16 if setting.mode == "pearl" else 2)(setting, prompt)

    _, outcome = swept(speed, modes=("sequential", "pearl"))
    assert length_of(outcome.best["sequential", "fixed"].setting) == 2
    assert length_of(outcome.best["pearl", "fixed"].setting) == 16
    assert outcome.best["pearl", "fixed"].setting.window == 4


def test_the_worse_half_drops_out_and_what_is_left_sees_twice_the_prompts() -> None:
    world, outcome = swept(nearer_is_faster(6))
    points = outcome.tuned["sequential", "fixed"]
    assert [len(row.samples) for row in points] == [8, 8, 4, 2, 2, 2]
    assert length_of(points[0].setting) == 6
    assert len(world.runs) == num_runs(groups(candidates(["fixed"]), ("sequential",), 4), Halves.of(PROMPTS))


def test_noise_that_a_prompt_brings_hits_all_points_alike() -> None:
    """Prompts differ tenfold in speed, points by three percent: only comparison on the same prompts finds the best."""
    rng = random.Random(5)
    of_prompt = {prompt: rng.uniform(0.1, 1) for prompt in PROMPTS}
    _, outcome = swept(lambda setting, prompt: of_prompt[prompt] * nearer_is_faster(12)(setting, prompt))
    assert length_of(outcome.best["sequential", "fixed"].setting) == 12


def test_when_time_is_short_everything_has_run_once_and_what_is_missing_is_said() -> None:
    world, outcome = swept(nearer_is_faster(6), seconds=0.01)
    points = outcome.tuned["sequential", "fixed"]
    assert [len(row.samples) for row in points] == [1] * 6
    assert length_of(points[0].setting) == 6
    assert len(outcome.off.samples) == len(outcome.best["sequential", "fixed"].samples) == 1
    tuning, report = outcome.left_out
    assert tuning == "tuning of sequential fixed ended with 6 points undecided after 1 prompts: no time"
    assert report == "the report is on 1 of 8 prompts"
    assert len(world.runs) == 6 + 3


def test_the_time_is_kept_to_within_one_prompt() -> None:
    world, _ = swept(nearer_is_faster(6), seconds=2.0)
    longest_turn_s = 6 * 8 / 90
    assert 1.0 < world.now_s < 2.0 + longest_turn_s


def test_a_policy_with_one_point_runs_once_and_is_not_tuned_on() -> None:
    world = World(nearer_is_faster(6))
    rows = groups({"fixed": [LengthPolicy.parse("fixed:length=3")]}, ("sequential",), 4)
    assert tune(rows, PROMPTS, world.turn, world.timer(1e9)) == []
    assert len(world.runs) == 2
