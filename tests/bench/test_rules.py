from __future__ import annotations

import pytest

from bench.resample import interval
from bench.row import Sample
from bench.rules import RuleSetting, compare, efficiency, figures, gain
from bench.tuning import Timer
from paceline.types import Tokens
from tests.bench.samples import sample

PROMPTS: tuple[Tokens, ...] = ((1,), (2,), (3,))


def test_efficiency_is_tokens_a_pass_and_gain_its_ratio() -> None:
    assert efficiency([(6, 2), (2, 2)]) == 3
    assert gain([((6, 2), (4, 2))]) == pytest.approx(4 / 3 - 1)


def test_rules_are_compared_on_the_same_prompts_and_seeds() -> None:
    asked: list[tuple[str, int, Tokens, int]] = []

    def judge(setting: RuleSetting, prompt: Tokens, seed: int) -> Sample:
        asked.append((setting.rule, setting.length, prompt, seed))
        return sample(num_accepted_tokens=6 if setting.rule == "block" else 4, num_drafts=2)

    found = compare(("token", "block"), (4, 8), PROMPTS, 2, judge, Timer(lambda: 0.0, 1e9))
    assert len(asked) == 2 * 2 * 3 * 2
    seeds = {
        rule: {(length, prompt, seed) for r, length, prompt, seed in asked if r == rule} for rule in ("token", "block")
    }
    assert seeds["token"] == seeds["block"]
    assert len({seed for _, _, _, seed in asked}) == 6  # a seed of its own for every run of a prompt
    entries = {(entry["rule"], entry["length"]): entry for entry in figures(found)}
    assert entries["block", 8]["accepted_per_draft"] == pytest.approx(3)
    assert entries["block", 8]["over_token"] == pytest.approx(4 / 3 - 1)
    assert entries["block", 8]["over_token_interval"] == pytest.approx((4 / 3 - 1, 4 / 3 - 1))
    assert "over_token" not in entries["token", 8]


def test_a_prompt_that_does_not_fit_into_the_time_is_left_out_for_all_rules() -> None:
    now_s = 0.0

    def judge(setting: RuleSetting, prompt: Tokens, seed: int) -> Sample:
        nonlocal now_s
        now_s += 1
        return sample()

    found = compare(("token", "block"), (4,), PROMPTS, 1, judge, Timer(lambda: now_s, 5.0))
    assert found.num_left_out == 1
    assert {len(samples) for samples in found.samples.values()} == {2}


def test_an_interval_holds_the_mean_and_narrows_with_more_prompts() -> None:
    def mean(values: object) -> float:
        assert isinstance(values, list)
        return float(sum(values) / len(values))

    few, many = [0.0, 1.0] * 4, [0.0, 1.0] * 100
    low, high = interval(few, mean)
    assert low < 0.5 < high
    narrow_low, narrow_high = interval(many, mean)
    assert narrow_high - narrow_low < high - low
    assert interval(few, mean) == (low, high)
