"""Every sampling parameter through the whole system: transformers' own output, whatever drafts and overlaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from paceline.errors import InvalidInput
from paceline.sampling import adjusted_logits, target_log_probs
from paceline.types import Role, SamplingParams
from tests.system.cluster import cluster
from tests.tiny import write_pair

PROMPT = tuple(range(40, 52))
NUM_TOKENS = 40
MODES = ("off", "sequential", "pearl", "branch")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


def of_transformers(target: Path, **settings: Any) -> tuple[int, ...]:
    model: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    tensor = torch.tensor([PROMPT])
    mask = torch.ones_like(tensor)
    out = model.generate(tensor, attention_mask=mask, max_new_tokens=NUM_TOKENS, do_sample=False, **settings)
    return tuple(out[0, len(PROMPT) :].tolist())


async def test_greedy_output_under_penalties_and_biases_is_transformers_own(pair: tuple[Path, Path]) -> None:
    """A history-dependent law, greedily: a row judged by another row's history would show at once."""
    target, drafter = pair
    plain = of_transformers(target)
    settings = {"repetition_penalty": 1.4, "sequence_bias": {(plain[0],): -3.0}}
    want = of_transformers(target, **settings)
    assert want != plain
    given: Any = {"repetition_penalty": 1.4, "logit_bias": {plain[0]: -3.0}, "temperature": 0, "ignore_eos": True}
    async with cluster(target) as it:
        await it.add("v", Role.VERIFIER, target)
        await it.add("d", Role.DRAFTER, drafter)
        async with it.client() as client:
            for mode in MODES:
                answer = await client.complete(PROMPT, max_tokens=NUM_TOKENS, mode=mode, **given)
                assert answer.token_ids[: len(want)] == want, mode


async def test_output_ends_with_a_stop_token_and_not_before_min_tokens(pair: tuple[Path, Path]) -> None:
    target, drafter = pair
    stop = of_transformers(target)[0]
    async with cluster(target) as it:
        await it.add("v", Role.VERIFIER, target)
        await it.add("d", Role.DRAFTER, drafter)
        async with it.client() as client:
            for mode in MODES:
                given: Any = {"max_tokens": NUM_TOKENS, "mode": mode, "temperature": 0, "stop_token_ids": [stop]}
                answer = await client.complete(PROMPT, **given)
                assert (answer.token_ids, answer.finish_reason) == ((stop,), "stop")
                answer = await client.complete(PROMPT, min_tokens=12, **given)
                assert len(answer.token_ids) >= 12
                assert stop not in answer.token_ids[:12]


@pytest.mark.parametrize("rule", ["match", "coupled", "token", "block"])
async def test_a_seed_and_a_law_that_depends_on_history_agree_in_every_rule(rule: str, pair: tuple[Path, Path]) -> None:
    """With top_k 1 sampling is greedy decoding of the penalised law, under rejection sampling too."""
    target, drafter = pair
    want = of_transformers(target, repetition_penalty=1.4)
    given: Any = {"repetition_penalty": 1.4, "temperature": 0.8, "top_k": 1, "seed": 4, "rule": rule}
    async with cluster(target) as it:
        await it.add("v", Role.VERIFIER, target)
        await it.add("d", Role.DRAFTER, drafter)
        async with it.client() as client:
            for mode in MODES:
                answer = await client.complete(PROMPT, max_tokens=NUM_TOKENS, mode=mode, ignore_eos=True, **given)
                assert answer.token_ids[: len(want)] == want, mode


@pytest.mark.parametrize("rule", ["match", "coupled", "token", "block"])
async def test_stop_strings_end_the_text_wherever_they_fall_in_drafts(rule: str, pair: tuple[Path, Path]) -> None:
    """Inside a draft, across two of them, ended by a bonus: a byte is a token here, drafts have four of them."""
    target, drafter = pair
    given: Any = {"temperature": 0.8, "top_k": 1, "seed": 4, "rule": rule, "ignore_eos": True, "max_tokens": NUM_TOKENS}
    given |= {"length_policy": "fixed:length=4", "repetition_penalty": 1.4}
    async with cluster(target) as it:
        await it.add("v", Role.VERIFIER, target)
        await it.add("d", Role.DRAFTER, drafter)
        async with it.client() as client:
            whole = await client.complete(PROMPT, mode="off", **given)
            for start in range(2, 12):
                stop = whole.text[start : start + 3]
                for mode in MODES:
                    answer = await client.complete(PROMPT, mode=mode, stop=stop, **given)
                    assert answer.text == whole.text[: whole.text.index(stop)], (start, mode)
                    assert answer.finish_reason == "stop"
                    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]


@pytest.mark.parametrize("rule", ["match", "coupled", "token", "block"])
async def test_logprobs_are_of_the_targets_law_for_accepted_tokens_too(rule: str, pair: tuple[Path, Path]) -> None:
    """Recomputed from one plain pass of the target over prompt and output."""
    target, drafter = pair
    sampling = SamplingParams(temperature=0.7, top_k=9, frequency_penalty=0.5)
    given: Any = {"temperature": 0.7, "top_k": 9, "frequency_penalty": 0.5, "ignore_eos": True, "rule": rule}
    model: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    async with cluster(target) as it:
        await it.add("v", Role.VERIFIER, target)
        await it.add("d", Role.DRAFTER, drafter)
        async with it.client() as client:
            for mode in MODES:
                answer = await client.complete(PROMPT, max_tokens=24, mode=mode, logprobs=True, top_logprobs=4, **given)
                ids = answer.token_ids
                with torch.inference_mode():
                    logits = model(torch.tensor([PROMPT + ids])).logits[0, len(PROMPT) - 1 : -1]
                rows = adjusted_logits(logits, sampling, PROMPT, ids, num_prompt_tokens=len(PROMPT))
                want = target_log_probs(rows, sampling)[range(len(ids)), list(ids)]
                assert answer.logprobs == pytest.approx(want.tolist(), abs=1e-3), mode
                law = target_log_probs(rows, sampling)
                for row, top in zip(law, answer.top_logprobs, strict=True):
                    assert top.logprobs == pytest.approx(row.topk(4).values.tolist(), abs=1e-3), mode
                    assert top.logprobs == pytest.approx(row[list(top.token_ids)].tolist(), abs=1e-3), mode
            assert (await client.complete(PROMPT, max_tokens=4, **given)).logprobs == ()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"min_tokens": 9}, "min_tokens"),
        ({"logit_bias": {2**31: 1.0}}, "logit_bias"),
        ({"stop_token_ids": [2**31]}, "stop_token_ids"),
    ],
)
async def test_what_only_the_server_can_tell_wrong_is_refused_by_name(
    given: Any, field: str, pair: tuple[Path, Path]
) -> None:
    async with cluster(pair[0]) as it, it.client() as client:
        with pytest.raises(InvalidInput, match=field):
            await client.complete(PROMPT, max_tokens=8, **given)
