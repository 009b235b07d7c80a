"""The figures, on outcomes written out by hand."""

from __future__ import annotations

import pytest

from bench.serving.call import Outcome
from bench.serving.figures import figures, parse_goodput, percentile, read_counters, spec_decode
from paceline.errors import InvalidInput


def outcome(started_s: float, *arrivals: tuple[float, int], num_prompt: int = 10) -> Outcome:
    """`arrivals`: when, and how many tokens by then."""
    return Outcome(started_s, list(arrivals), num_prompt, arrivals[-1][1] if arrivals else 0)


def test_tokens_that_come_together_share_the_time_since_the_last() -> None:
    it = outcome(0.0, (1.0, 1), (1.3, 4), (1.4, 5))
    assert it.itls_s == pytest.approx([0.1] * 4)
    assert (it.ttft_s, it.e2el_s) == pytest.approx((1.0, 1.4))
    assert it.tpot_s == pytest.approx(0.1)


def test_tokens_that_come_with_the_first_take_no_time_of_their_own_and_the_gaps_add_up() -> None:
    it = outcome(0.0, (1.0, 3), (1.5, 5))
    assert it.itls_s == pytest.approx([0, 0, 0.25, 0.25])
    assert sum(it.itls_s) == pytest.approx(it.e2el_s - it.ttft_s)
    assert outcome(0.0, (1.0, 1)).tpot_s is None


def test_a_runs_figures_have_vllms_names_and_failures_count_only_as_such() -> None:
    failed = Outcome(0.0, error="503")
    found = figures(
        [outcome(0.0, (0.1, 1), (0.5, 5)), outcome(0.2, (0.4, 1), (1.4, 11)), failed],
        2.0,
        goodput_ms={"ttft": 150},
        percentiles=(50, 99),
    )
    assert (found["completed"], found["failed"], found["total_output_tokens"]) == (2, 1, 16)
    assert (found["output_throughput"], found["total_token_throughput"]) == (8, 18)
    assert (found["request_throughput"], found["request_goodput"]) == (1.0, 0.5)
    assert (found["mean_ttft_ms"], found["median_tpot_ms"]) == pytest.approx((150, 100))
    assert (found["mean_itl_ms"], found["p99_e2el_ms"]) == pytest.approx((100, 1193))
    assert (found["max_output_tokens_per_s"], found["max_concurrent_requests"]) == (10, 2)


def test_nothing_measured_is_no_crash() -> None:
    found = figures([Outcome(0.0, error="x")], 1.0, goodput_ms={}, percentiles=(99,))
    assert (found["completed"], found["p99_itl_ms"], found["request_goodput"]) == (0, 0.0, None)


def test_percentiles_are_interpolated() -> None:
    assert percentile([4.0, 1.0, 2.0], 50) == 2
    assert percentile([0.0, 10.0], 75) == 7.5
    assert percentile([3.0], 99) == 3


def test_goodput_bounds_are_checked_before_anything_runs() -> None:
    assert parse_goodput(["ttft:200", "e2el:1500.5"]) == {"ttft": 200, "e2el": 1500.5}
    for wrong in ("ttft", "itl:3", "ttft:fast"):
        with pytest.raises(InvalidInput, match="ttft:200"):
            parse_goodput([wrong])


PAGE = """\
# HELP vllm:spec_decode_num_drafts_total Drafts judged.
vllm:spec_decode_num_drafts_total{model_name="m"} %d
vllm:spec_decode_num_draft_tokens_total{model_name="m"} %d
vllm:spec_decode_num_accepted_tokens_total{model_name="m"} %d
vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="m",position="0"} %d
vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="m",position="1"} %d
vllm:num_requests_running{model_name="m"} 0
"""


def test_speculation_is_what_the_counters_grew_by() -> None:
    before, after = (read_counters(PAGE % values) for values in ((5, 20, 8, 5, 3), (15, 60, 28, 14, 9)))
    found = spec_decode(before, after)
    assert found["spec_decode_acceptance_rate"] == 50
    assert found["spec_decode_acceptance_length"] == 3
    assert found["spec_decode_per_position_acceptance_rates"] == [0.9, 0.6]
    assert (found["spec_decode_num_drafts"], found["spec_decode_draft_tokens"]) == (10, 40)
    assert spec_decode(after, after) == spec_decode({}, {}) == {}
