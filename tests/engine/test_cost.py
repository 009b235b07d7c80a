"""The cost model on timings that were made up, and once on real ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from paceline.engine.cost import SHAPES, CostModel, measure
from paceline.engine.runner import Runner
from paceline.types import StepCost

TRUE = StepCost(base_ms=8.0, per_token_ms=0.6, per_seq_ms=0.2, per_context_token_ms=0.002)
SHAPES_SEEN = [(num_seqs * new, num_seqs, context) for num_seqs, context, new in SHAPES]


def trained(true: StepCost, noise: float = 0.0, seed: int = 0) -> CostModel:
    model, rng = CostModel(), random.Random(seed)
    for shape in SHAPES_SEEN * 2:
        model.observe(*shape, true.ms(*shape) * (1 + noise * rng.uniform(-1, 1)), at_start=True)
    return model


def error(model: CostModel, true: StepCost, shape: tuple[int, int, int]) -> float:
    assert model.cost is not None
    return abs(model.cost.ms(*shape) / true.ms(*shape) - 1)


def test_nothing_seen_is_nothing_known() -> None:
    assert CostModel().cost is None


def test_exact_timings_give_the_cost_back_even_for_shapes_not_seen() -> None:
    model = trained(TRUE)
    for shape in [(1, 1, 100), (40, 8, 500), (2048, 3, 0), (64, 64, 1000)]:
        assert error(model, TRUE, shape) < 1e-3, shape


@pytest.mark.parametrize("seed", range(5))
def test_noisy_timings_give_it_roughly_and_no_part_is_negative(seed: int) -> None:
    model = trained(TRUE, noise=0.3, seed=seed)
    assert model.cost is not None
    parts = (model.cost.base_ms, model.cost.per_token_ms, model.cost.per_seq_ms, model.cost.per_context_token_ms)
    assert min(parts) >= 0
    for shape in SHAPES_SEEN:
        assert error(model, TRUE, shape) < 0.35, shape


def test_it_follows_a_machine_that_becomes_slower_and_recovers() -> None:
    model = trained(TRUE)
    slow = StepCost(16.0, 1.2, 0.4, 0.004)
    for true in (slow, TRUE):
        for number in range(400):
            shape = SHAPES_SEEN[number % len(SHAPES_SEEN)]
            model.observe(*shape, true.ms(*shape))
        assert all(error(model, true, shape) < 0.1 for shape in SHAPES_SEEN)


def test_what_traffic_does_not_show_keeps_its_first_estimate() -> None:
    model = trained(TRUE)
    for _ in range(2000):
        model.observe(4, 4, 100, TRUE.ms(4, 4, 100))
    assert error(model, TRUE, (2048, 1, 0)) < 0.05


def test_one_pass_that_was_held_up_hardly_matters() -> None:
    model = trained(TRUE)
    model.observe(4, 4, 16, 1000 * TRUE.ms(4, 4, 16))
    assert error(model, TRUE, (4, 4, 16)) < 0.5


def test_nonsense_is_ignored() -> None:
    model = trained(TRUE)
    before = model.num_seen
    for shape, ms in (((0, 1, 0), 1.0), ((1, 0, 0), 1.0), ((1, 1, 0), 0.0), ((1, 1, 0), float("inf"))):
        model.observe(*shape, ms)
    assert model.num_seen == before


def test_measuring_a_runner_leaves_it_as_it_was(model_folder: Callable[[str], Path]) -> None:
    runner = Runner.load(str(model_folder("Llama")), max_num_tokens=512)
    model = measure(runner, within_s=1.0)
    assert model.num_seen > 2
    assert model.cost is not None
    assert model.cost.ms(1, 1, 0) > 0
    runner.check_integrity()
    assert runner.room() == 512
    assert runner.open("a", [1] * 100) == 0, "nothing was left in the prefix cache"
