"""What is done to logits before the temperature: transformers' processors as an oracle, and history row by row."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from paceline import sampling
from paceline.errors import InvalidInput
from paceline.types import SamplingParams, Tokens

VOCAB = 60


def of_transformers(logits: Tensor, given: SamplingParams, tokens: Tokens, num_prompt_tokens: int) -> Tensor:
    """The law [1, vocab] after `tokens`, by the processors of `generate` in the order in which it applies them."""
    ids = torch.tensor([tokens])
    processors: list[Any] = []
    if given.logit_bias:
        processors.append(SequenceBiasLogitsProcessor([[[token_id], bias] for token_id, bias in given.logit_bias]))
    processors.append(RepetitionPenaltyLogitsProcessor(given.repetition_penalty))
    stops = list(given.stop_token_ids)
    processors.append(MinNewTokensLengthLogitsProcessor(num_prompt_tokens, given.min_tokens, stops))
    processors.append(TemperatureLogitsWarper(given.temperature))
    processors += [TopKLogitsWarper(given.top_k)] if given.top_k else []
    processors += [TopPLogitsWarper(given.top_p)] if given.top_p < 1 else []
    processors += [MinPLogitsWarper(given.min_p)] if given.min_p else []
    scores = logits
    for processor in processors:
        scores = processor(ids, scores)
    law: Tensor = scores.softmax(-1)
    return law


def random_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice((0.5, 1.0, 1.4)),
        top_k=rng.choice((0, 7, 30)),
        top_p=rng.choice((1.0, 0.9)),
        min_p=rng.choice((0.0, 0.05, 0.3)),
        repetition_penalty=rng.choice((1.0, 1.3, 0.7)),
        logit_bias=rng.choice(((), ((3, 4.0), (5, -2.5)))),
        min_tokens=rng.choice((0, 3, 6)),
        stop_token_ids=(1, 2),
    )


@pytest.mark.parametrize("seed", range(60))
def test_each_row_of_a_draft_has_the_law_of_transformers_after_its_own_prefix(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    given = random_params(rng)
    num_prompt_tokens = rng.randint(1, 6)
    prefix = tuple(rng.choices(range(VOCAB), k=num_prompt_tokens + rng.randint(0, 4)))
    draft_ids = tuple(rng.choices(range(VOCAB), k=rng.randint(0, 5)))
    logits = torch.randn(len(draft_ids) + 1, VOCAB) * 3
    rows = sampling.adjusted_logits(logits, given, prefix, draft_ids, num_prompt_tokens=num_prompt_tokens)
    got = sampling.target_probs(rows, given)
    for at in range(len(logits)):
        want = of_transformers(logits[at : at + 1], given, prefix + draft_ids[:at], num_prompt_tokens)
        assert torch.equal(got[at] > 0, want[0] > 0), given
        torch.testing.assert_close(got[at], want[0], rtol=1e-5, atol=1e-8)


ALONE: list[dict[str, Any]] = [
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"repetition_penalty": 1.4},
    {"logit_bias": ((3, 4.0), (5, -2.5))},
    {"min_tokens": 9, "stop_token_ids": (1, 2)},
]


@pytest.mark.parametrize("given", ALONE, ids=lambda given: next(iter(given)))
def test_each_parameter_alone_is_that_of_transformers_at_every_place_of_a_draft(given: dict[str, Any]) -> None:
    params = SamplingParams(**given)
    torch.manual_seed(5)
    prefix, draft_ids = (7, 7, 9, 11, 3), (9, 20, 9, 31)
    logits = torch.randn(5, VOCAB) * 3
    rows = sampling.adjusted_logits(logits, params, prefix, draft_ids, num_prompt_tokens=2)
    got = sampling.target_probs(rows, params)
    plain = sampling.target_probs(logits, SamplingParams())
    assert not torch.equal(got, plain), "the parameter does something here"
    for at in range(5):
        want = of_transformers(logits[at : at + 1], params, prefix + draft_ids[:at], 2)
        torch.testing.assert_close(got[at], want[0], rtol=1e-5, atol=1e-8)


def in_vllms_order(logits: Tensor, given: SamplingParams) -> Tensor:
    """The law [vocab] of a row by vLLM's order: temperature, min-p, top-k, top-p, each written out anew."""
    probs = (logits.double() / given.temperature).softmax(-1)
    kept = probs >= given.min_p * probs.max()
    kth = probs[kept].sort(descending=True).values[: given.top_k or None][-1]
    kept &= probs >= kth
    probs = torch.where(kept, probs, 0.0) / probs[kept].sum()
    order = probs.argsort(descending=True, stable=True)
    before = probs[order].cumsum(-1) - probs[order]  # the mass of all that is likelier
    kept = torch.zeros_like(kept).scatter(0, order, before < given.top_p) & kept
    return torch.where(kept, probs, 0.0) / probs[kept].sum()


@pytest.mark.parametrize("seed", range(20))
def test_vllms_order_gives_the_same_law_but_for_min_p_with_top_p(seed: int) -> None:
    """Where both are given, vLLM counts top-p's mass among what min-p has left, and may keep fewer; we follow
    transformers."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    given = random_params(rng)
    logits = torch.randn(VOCAB) * 3
    ours = sampling.target_probs(logits[None], given)[0].double()
    theirs = in_vllms_order(logits, given)
    if given.min_p and given.top_p < 1:
        assert ((theirs == 0) | (ours > 0)).all()
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_with_min_p_and_top_p_vllm_keeps_fewer() -> None:
    """Of 0.5, 0.3, 0.15, 0.05 top-p 0.6 keeps two; of the two that min-p 0.5 leaves, now 5/8 and 3/8, one."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    given = SamplingParams(top_p=0.6, min_p=0.5)
    assert (sampling.target_probs(logits[None], given)[0] > 0).tolist() == [True, True, False, False]
    assert (in_vllms_order(logits, given) > 0).tolist() == [True, False, False, False]


def test_frequency_and_presence_count_the_output_only() -> None:
    """As OpenAI and vLLM have it: score - frequency * count - presence * (count > 0)."""
    given = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    prefix, draft_ids = (0, 0, 1, 2, 2), (3, 2)  # of which (0, 0, 1) are the prompt
    rows = sampling.adjusted_logits(torch.zeros(3, 5), given, prefix, draft_ids, num_prompt_tokens=3)
    assert rows.tolist() == [
        [0.0, 0.0, -1.0, 0.0, 0.0],
        [0.0, 0.0, -1.0, -0.75, 0.0],
        [0.0, 0.0, -1.25, -0.75, 0.0],
    ]


def test_penalties_come_after_the_bias_and_repetition_first() -> None:
    given = SamplingParams(repetition_penalty=2, presence_penalty=1, logit_bias=((0, 3.0),))
    rows = sampling.adjusted_logits(torch.tensor([[1.0, -1.0, 5.0]]), given, (9 % 3, 0, 1), num_prompt_tokens=1)
    assert rows.tolist() == [[(1 + 3) / 2 - 1, -1 * 2 - 1, 5.0]]


def test_rows_without_the_last_one_are_the_same_rows() -> None:
    """An open draft is judged without the row after it."""
    given = SamplingParams(frequency_penalty=1)
    logits = torch.randn(3, 9)
    whole = sampling.adjusted_logits(logits, given, (1, 2), (3, 4), num_prompt_tokens=1)
    assert torch.equal(
        sampling.adjusted_logits(logits[:2], given, (1, 2), (3, 4), num_prompt_tokens=1),
        whole[:2],
    )


def test_what_is_unused_costs_nothing_and_inputs_stay_as_they_were() -> None:
    logits = torch.randn(2, 9)
    before = logits.clone()
    assert sampling.adjusted_logits(logits, SamplingParams(0.7, 3, 0.9, min_p=0.1), (1,), num_prompt_tokens=1) is logits
    given = SamplingParams(repetition_penalty=1.5, logit_bias=((2, 1.0),), min_tokens=5, stop_token_ids=(1, 99))
    sampling.adjusted_logits(logits, given, (1, 4), (3,), num_prompt_tokens=1)
    assert torch.equal(logits, before)


def test_masked_tokens_stay_masked() -> None:
    given = SamplingParams(repetition_penalty=0.5, frequency_penalty=-2, logit_bias=((1, 100.0),))
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    rows = sampling.adjusted_logits(logits, given, (1, 1), num_prompt_tokens=1)
    assert rows[0, 1] == -torch.inf
    assert not rows.isnan().any()


@pytest.mark.parametrize(
    "given",
    [
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": 3},
        {"logit_bias": ((1, float("inf")),)},
        {"logit_bias": ((1, 1.0), (1, 2.0))},
        {"min_tokens": -1},
        {"stop_token_ids": (-1,)},
    ],
    ids=str,
)
def test_a_parameter_out_of_range_is_refused_by_name(given: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(given))):
        SamplingParams(**given)  # type: ignore[arg-type]
