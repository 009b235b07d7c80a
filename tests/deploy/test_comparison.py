"""Figures of the demo's table, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.comparison import Run, differing, figures
from paceline.client import Completion
from paceline.types import FinishReason, Mode, Tokens


def a_run(seconds: float, token_ids: Tokens = (1, 2, 3, 4), **metrics: Any) -> Run:
    zeros = dict.fromkeys(
        ("num_tested_tokens", "num_accepted_tokens", "num_drafts", "num_target_passes", "draft_ms", "overlap_share"), 0
    )
    known = zeros | {"mode": "pearl", "length_policy": "fixed:length=8", "window": 2} | metrics
    return Run(Completion("", token_ids, (), FinishReason.LENGTH, known, "r"), seconds)


def test_speed_up_is_the_median_of_the_ratios_within_a_prompt() -> None:
    """Means would say 31 / 13: the slow prompt would speak for all."""
    off = [a_run(1.0), a_run(20.0), a_run(10.0)]
    fast = [a_run(1.0), a_run(10.0), a_run(2.0)]
    got = figures(fast, off)
    assert (got.speed_up, got.speed_up_min, got.speed_up_max) == (2.0, 1.0, 5.0)
    assert got.tokens_per_s == pytest.approx(12 / 13)


def test_shares_are_weighed_by_what_they_are_shares_of() -> None:
    runs = [
        a_run(1.0, num_tested_tokens=9, num_accepted_tokens=8, num_drafts=2, draft_ms=30.0, overlap_share=1.0),
        a_run(1.0, num_tested_tokens=1, num_accepted_tokens=0, num_drafts=2, draft_ms=10.0, num_target_passes=4),
    ]
    got = figures(runs, runs)
    assert got.accepted_per_tested == pytest.approx(0.8)
    assert got.mean_accepted_length == pytest.approx(3.0)
    assert got.overlap_share == pytest.approx(0.75)
    assert got.target_passes_per_token == pytest.approx(0.5)


def test_plain_decoding_has_no_acceptance_rather_than_a_bad_one() -> None:
    runs = [a_run(1.0, mode="off")]
    got = figures(runs, runs).to_json()
    assert got["accepted_per_tested"] is None
    assert got["mean_accepted_length"] is None
    assert got["length_policy"] is None
    assert got["speed_up"] == 1.0


def test_a_prompt_differs_if_one_mode_wrote_other_tokens() -> None:
    off = [a_run(1.0, (1, 2)), a_run(1.0, (3, 4))]
    other = [a_run(1.0, (1, 2)), a_run(1.0, (3, 5))]
    assert differing({Mode.OFF: off, Mode.PEARL: off}) == []
    assert differing({Mode.OFF: off, Mode.PEARL: other, Mode.SEQUENTIAL: off}) == [1]
