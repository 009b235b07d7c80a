"""The target law: transformers' processors as an independent oracle, and the ties by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from paceline import noise, sampling
from paceline.noise import Domain
from paceline.types import SamplingParams


def of_transformers(logits: Tensor, given: SamplingParams) -> Tensor:
    unused = torch.zeros(len(logits), 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(given.temperature)(unused, logits)
    if given.top_k:
        scores = TopKLogitsWarper(given.top_k)(unused, scores)
    if given.top_p < 1:
        scores = TopPLogitsWarper(given.top_p)(unused, scores)
    law: Tensor = scores.softmax(-1)
    return law


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 200, 5000])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 1e-6])
def test_law_equals_that_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    torch.manual_seed(top_k)
    logits = torch.randn(6, 1000) * 3
    given = SamplingParams(temperature, top_k, top_p)
    got, want = sampling.target_probs(logits, given), of_transformers(logits, given)
    assert got.dtype == torch.float32
    assert torch.equal(got > 0, want > 0)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("given", [SamplingParams(), SamplingParams(0.7, 5, 0.8), SamplingParams(0)])
def test_log_probs_are_the_logarithm_of_the_law(given: SamplingParams) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 50)
    logs = sampling.target_log_probs(logits, given)
    torch.testing.assert_close(logs.exp(), sampling.target_probs(logits, given))
    assert torch.equal(logs.isneginf(), sampling.target_probs(logits, given) == 0)


def test_a_row_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    logits, given = torch.randn(9, 777), SamplingParams(0.8, 40, 0.9)
    whole = sampling.target_log_probs(logits, given)
    for at in range(9):
        assert torch.equal(sampling.target_log_probs(logits[at : at + 1], given)[0], whole[at])


def test_greedy_is_one_hot_at_the_lowest_of_equal_ids() -> None:
    logits = torch.tensor([[1.0, 4.0, 4.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    want = [[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    assert sampling.target_probs(logits, SamplingParams(0)).tolist() == want


def test_top_k_keeps_all_that_tie_with_the_kth() -> None:
    law = sampling.target_probs(torch.tensor([[3.0, 1.0, 1.0, 0.0]]), SamplingParams(top_k=2))
    assert (law > 0).tolist() == [[True, True, True, False]]


def test_top_p_drops_the_highest_of_equal_ids() -> None:
    law = sampling.target_probs(torch.zeros(1, 4), SamplingParams(top_p=0.5))
    assert law.tolist() == [[0.5, 0.5, 0.0, 0.0]]


def test_ties_are_broken_alike_whether_little_or_all_is_sorted() -> None:
    torch.manual_seed(0)
    logits = torch.randint(0, 6, (50, 400)).float()
    logits[:, 10:] -= 20  # so that top-k leaves few of a vocabulary
    for top_p in (0.2, 0.5, 0.9):
        little = sampling.target_probs(logits, SamplingParams(top_k=4, top_p=top_p))
        all_of_it = sampling.target_probs(logits[:, :10], SamplingParams(top_k=4, top_p=top_p))
        assert torch.equal(little[:, :10] > 0, all_of_it > 0)
        torch.testing.assert_close(little[:, :10], all_of_it)


def test_top_p_is_the_smallest_set_of_at_least_its_mass() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = [
        (sampling.target_probs(logits, SamplingParams(top_p=top_p)) > 0).sum().item()
        for top_p in (0.01, 0.49, 0.51, 0.79, 0.81, 0.94, 0.96)
    ]
    assert kept == [1, 1, 2, 2, 3, 3, 4]


def test_top_p_counts_mass_after_top_k() -> None:
    logits = torch.tensor([[0.4, 0.2, 0.2001, 0.1999]]).log()
    law = sampling.target_probs(logits, SamplingParams(top_k=2, top_p=0.65))
    assert (law > 0).tolist() == [[True, False, False, False]]  # 0.4 / 0.6001 = 0.667


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-300])
def test_a_tiny_temperature_does_not_overflow(temperature: float) -> None:
    law = sampling.target_probs(torch.tensor([[100.0, 99.0, -80.0]]), SamplingParams(temperature))
    assert law.tolist() == [[1.0, 0.0, 0.0]]


def test_masked_logits_stay_impossible() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 0.0]])
    for given in (SamplingParams(), SamplingParams(0.5, 2, 0.9), SamplingParams(0)):
        assert sampling.target_probs(logits, given)[0, 1] == 0
    assert sampling.entropy_nats(logits).isfinite().all()


def test_half_precision_is_widened_and_double_is_kept() -> None:
    assert sampling.target_probs(torch.zeros(1, 3, dtype=torch.bfloat16), SamplingParams()).dtype == torch.float32
    assert sampling.target_probs(torch.zeros(1, 3, dtype=torch.float64), SamplingParams()).dtype == torch.float64


def test_entropy_is_of_the_unscaled_whole_row() -> None:
    logits = torch.tensor([[0.0] * 8, [50.0] + [0.0] * 7, [0.5, 0.25, 0.25, 0, 0, 0, 0, 0]])
    logits[2] = logits[2].log()
    got = sampling.entropy_nats(logits).tolist()
    assert got == pytest.approx([math.log(8), 0.0, 1.5 * math.log(2)], abs=1e-6)


def test_gumbel_max_never_draws_an_impossible_token() -> None:
    row = torch.tensor([0.0, 1e-30, 0.0])
    assert sampling.sample(row, torch.tensor([36.0, -3.0, 36.0], dtype=torch.float64)) == 1


def test_gumbel_max_has_the_law() -> None:
    seed, n = 11, 20_000
    law = torch.tensor([0.5, 0.3, 0.0, 0.15, 0.05], dtype=torch.float64)
    drawn = sampling.sample_log_probs(law.log().expand(n, 5), noise.gumbel(seed, Domain.SAMPLE, range(n), 5))
    seen = drawn.bincount(minlength=5)
    assert seen[2] == 0
    p_value = stats.chisquare(seen[law > 0], n * law[law > 0]).pvalue
    assert p_value > 1e-3, f"seed {seed}: p = {p_value}"
    one_by_one = [sampling.sample(law, row) for row in noise.gumbel(seed, Domain.SAMPLE, range(50), 5)]
    assert one_by_one == drawn[:50].tolist()


def test_inverse_cdf_cuts_where_the_law_says() -> None:
    row = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    drawn = [sampling.sample_inverse(row, u) for u in (2.0**-53, 0.2499, 0.25, 0.7499, 0.75, 1 - 2.0**-53)]
    assert drawn == [1, 1, 3, 3, 4, 4]
    assert sampling.sample_inverse(row * 1e-3, 0.5) == 3  # a row need not be normalised


def test_the_likeliest_tokens_are_those_of_the_law_in_order_and_what_it_cuts_off_is_left_out() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0, 2.0], [5.0, 0.0, 0.0, 0.0, 0.0]])
    given = SamplingParams(2.0, top_k=3)
    first, second = sampling.top_log_probs(logits, 4, given)
    assert first[0] == (1, 3, 4)  # the lowest id first among equals, and no more than top-k leaves
    law = sampling.target_log_probs(logits, given)
    assert first[1] == pytest.approx(law[0, [1, 3, 4]].tolist())
    assert second[0][0] == 0
    assert [len(ids) for ids, _ in sampling.top_log_probs(logits, 2, SamplingParams())] == [2, 2]
    ((ids, values),) = sampling.top_log_probs(logits[:1], 9, SamplingParams(0))  # greedy: before the likeliest is taken
    assert ids == (1, 3, 4, 2, 0)
    assert values == pytest.approx(logits[0].log_softmax(-1)[list(ids)].tolist())
