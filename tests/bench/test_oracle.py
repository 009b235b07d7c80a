from __future__ import annotations

import pytest

from bench.oracle import LENGTH, Totals, bound, long_drafts
from paceline.length_policy import LengthPolicy
from tests.bench.samples import row, sample

EXAMPLE = Totals(num_tokens=10, num_passes=3, num_drafts=2, num_drafted=16, num_accepted=8, draft_ms=16.0, e2e_ms=100.0)


def test_the_oracle_spares_exactly_what_was_wasted() -> None:
    """8 wasted tokens, 1 ms each to draft and 0.5 ms to verify: 88 ms of 100 are left."""
    found = bound(EXAMPLE, 0.5, hidden=False)
    assert found["tokens_per_s"] == pytest.approx(10 / 0.088)
    assert found["accepted_per_draft"] == found["mean_draft_length"] == 4
    assert found["wasted_tokens"] == 0
    assert found["accepted_per_tested"] == 1
    assert found["passes_per_token"] == pytest.approx(0.3)
    assert found["computed"] is True


def test_with_drafting_hidden_the_accepted_tokens_cost_no_drafting_either() -> None:
    assert bound(EXAMPLE, 0.5, hidden=True)["tokens_per_s"] == pytest.approx(10 / 0.080)


def test_where_nothing_was_wasted_the_oracle_is_the_run_itself() -> None:
    totals = Totals(10, 3, 2, 8, 8, 8.0, 100.0)
    assert bound(totals, 0.5, hidden=False)["tokens_per_s"] == pytest.approx(100)


def test_a_drafter_that_sent_nothing_leaves_the_time_as_it_was() -> None:
    found = bound(Totals(10, 10, 0, 0, 0, 0.0, 100.0), 0.5, hidden=True)
    assert found["tokens_per_s"] == pytest.approx(100)
    assert found["accepted_per_draft"] is None


def test_totals_are_those_of_all_requests() -> None:
    totals = Totals.of(row(sample(), sample()))
    assert totals == Totals(16, 8, 4, 24, 12, 24.0, 200.0)


def test_the_long_drafts_are_a_lawful_setting() -> None:
    assert long_drafts().mode == "sequential"
    assert LengthPolicy.parse(long_drafts().policy)["length"] == LENGTH
