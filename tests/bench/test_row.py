from __future__ import annotations

import itertools
from typing import Any

import pytest

from bench.row import Row, Sample, Setting, quartiles, ratios, take_turns
from paceline.types import Tokens
from tests.bench.samples import row, sample


def test_figures_are_ratios_of_sums_over_all_prompts() -> None:
    figures = row(sample(), sample(seconds=0.3, num_drafts=4, num_accepted_tokens=3, num_wasted_tokens=9)).figures()
    assert figures["tokens_per_s"] == pytest.approx(16 / 0.4)
    assert figures["accepted_per_draft"] == pytest.approx((6 + 3) / (2 + 4))
    assert figures["accepted_per_tested"] == pytest.approx(9 / 16)
    assert figures["wasted_tokens"] == 15
    assert figures["wasted_per_drafted"] == pytest.approx(15 / 24)
    assert figures["mean_draft_length"] == pytest.approx(24 / 6)
    assert figures["passes_per_token"] == pytest.approx(8 / 16)
    assert figures["fallbacks"] == {"late draft": 2}


def test_what_was_not_drafted_has_no_shares_instead_of_zeros() -> None:
    none: dict[str, Any] = dict.fromkeys(
        ("num_drafts", "num_received_drafts", "num_draft_tokens", "num_tested_tokens"), 0
    )
    figures = row(sample(num_accepted_tokens=0, num_wasted_tokens=0, draft_ms=0.0, **none)).figures()
    shares = ("accepted_per_draft", "accepted_per_tested", "wasted_per_drafted", "mean_draft_length")
    assert all(figures[name] is None for name in (*shares, "draft_ms_per_token"))
    assert figures["passes_per_token"] == 0.5


def test_ratios_are_taken_within_a_prompt() -> None:
    fast, slow = row(sample(0.1), sample(0.4)), row(sample(0.2), sample(0.4))
    assert ratios(fast, slow) == pytest.approx([2, 1])
    with pytest.raises(ValueError, match="zip"):
        ratios(fast, row(sample()))


def test_one_value_is_its_own_quartiles() -> None:
    assert quartiles([2.0]) == (2.0, 2.0, 2.0)
    assert quartiles([1.0, 2.0, 3.0]) == (1.0, 2.0, 3.0)


def test_who_begins_moves_on_and_a_warm_up_is_not_kept() -> None:
    rows = [Row(Setting(name)) for name in "abc"]
    order: list[str] = []

    def one(setting: Setting, prompt: Tokens) -> Sample:
        order.append(setting.name)
        return Sample(len(prompt), 1.0)

    take_turns(rows, (1,), 0, one, keep=False)
    assert not any(row.samples for row in rows)
    take_turns(rows, (1, 2), 4, one)
    assert "".join(order) == "abcbca"
    assert [row.samples[0].num_tokens for row in rows] == [2, 2, 2]


def test_no_setting_always_follows_the_same_other() -> None:
    """A coordinator that has seen short drafts waits too short a time for a long one, at first."""
    rows = [Row(Setting(name)) for name in "abcd"]
    order: list[str] = []

    def one(setting: Setting, prompt: Tokens) -> Sample:
        order.append(setting.name)
        return Sample(1, 1.0)

    for number in range(4):
        take_turns(rows, (1,), number, one)
    followed = {(a, b) for a, b in itertools.pairwise(order) if a != b}
    assert {("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")} <= followed
