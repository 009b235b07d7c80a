"""Drafters without a model as real processes: they start at once, fit any target, and change nothing but the speed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from paceline.client import Client
from paceline.tokenizer import Tokenizer
from paceline.types import Role
from tests.system import processes

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "models/demo-target"
NUM_TOKENS = 40
MODES = ("sequential", "pearl")


def prompts() -> list[str]:
    """Questions that stand there twice, so that there is something to look up."""
    lines = (ROOT / "tests/data/gsm8k_dev_12.jsonl").read_text().splitlines()[:3]
    questions = [json.loads(line)["question"] for line in lines]
    return [f"Question: {question}\nAnswer: {question}\nQuestion: {question}\nAnswer:" for question in questions]


@pytest.fixture(scope="module")
def greedy() -> list[tuple[int, ...]]:
    """transformers' own greedy continuation of every prompt."""
    model: Any = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32)
    tokenizer = Tokenizer.load(TARGET)
    expected = []
    for prompt in prompts():
        tensor = torch.tensor([tokenizer.encode(prompt)])
        out = model.generate(
            tensor,
            attention_mask=torch.ones_like(tensor),
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            do_sample=False,
        )
        expected.append(tuple(out[0, tensor.shape[1] :].tolist()))
    return expected


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """A coordinator with a verifier; no drafter."""
    it = processes.coordinator(TARGET)
    with processes.running(it), processes.running(processes.worker(Role.VERIFIER, TARGET, it.address)):
        yield it.address


def complete_all(client: Client, **settings: Any) -> tuple[list[tuple[int, ...]], int]:
    """The tokens, and how many of them were drafted and kept."""
    answers = [client.complete(prompt, max_tokens=NUM_TOKENS, **settings) for prompt in prompts()]
    return [answer.token_ids for answer in answers], sum(a.metrics["num_accepted_tokens"] for a in answers)


@pytest.mark.parametrize(
    ("drafter", "options"), [("prompt-lookup", ()), ("suffix", ("--share-between-requests", "--suffix-tokens", "2000"))]
)
def test_output_is_the_targets_own_in_every_mode_and_rule(
    drafter: str, options: tuple[str, ...], served: str, greedy: list[tuple[int, ...]]
) -> None:
    sampled: Any = {"temperature": 1.0, "top_p": 0.95, "seed": 11, "ignore_eos": True}
    # min_tokens is what min_new_tokens is; with top_k 1 sampling is greedy decoding, under rejection sampling too.
    certain: Any = {"temperature": 0.8, "top_k": 1, "min_tokens": NUM_TOKENS}
    with Client(served) as client:
        plain, _ = complete_all(client, mode="off", **sampled)
        process = processes.worker(Role.DRAFTER, Path(drafter), served, *options)
        with processes.running(process):
            for mode in MODES:
                tokens, accepted = complete_all(client, mode=mode, temperature=0, min_tokens=NUM_TOKENS)
                assert tokens == greedy, mode
                assert accepted > 0, mode
                tokens, _ = complete_all(client, mode=mode, **sampled)
                assert tokens == plain, mode
                for rule in ("token", "block"):
                    tokens, accepted = complete_all(client, mode=mode, rule=rule, **certain)
                    assert tokens == greedy, (mode, rule)
                    assert accepted > 0, (mode, rule)
        assert process.stop() == 0
