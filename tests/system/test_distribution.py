"""Sampling through real processes: the joint law of three tokens is the target's own, under every rule and mode.

Top-k 3 keeps the support small enough (27 outcomes) for a chi-square test that could fail. The drafter keeps two coarse
entries of a row that is hotter than the request's, so that rejections are frequent. Each request has a seed of its own,
one more than the last one's: under `match` and `coupled` that decides all, under the others all but the drafts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from paceline.client import Client
from paceline.sampling import target_probs
from paceline.types import Role, Rule, SamplingParams
from tests.system import processes
from tests.tiny import write_pair

PROMPT = tuple(range(40, 52))
SAMPLING = SamplingParams(temperature=1.0, top_k=3)
NUM_SAMPLES = 1000
FIRST_SEED = 20_260_401
NUM_TOKENS = 3
# How often a law that is right fails by chance, where the drafts are random.
LEAST_P_VALUE = 1e-4


def joint_law(target: Path) -> dict[tuple[int, ...], float]:
    """The target's own law of the next three tokens, by forwarding every prefix."""
    model: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NUM_TOKENS):
        grown: dict[tuple[int, ...], float] = {}
        for prefix, mass in law.items():
            with torch.inference_mode():
                logits = model(torch.tensor([PROMPT + prefix])).logits[0, -1:]
            row = target_probs(logits, SAMPLING)[0]
            grown |= {(*prefix, int(i)): mass * float(row[i]) for i in row.nonzero()}
        law = grown
    return law


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("pair"))[0]


@pytest.fixture(scope="module")
def law(target: Path) -> dict[tuple[int, ...], float]:
    return joint_law(target)


@pytest.fixture(scope="module")
def client(target: Path) -> Iterator[Client]:
    """Of the pair, served by real processes."""
    it = processes.coordinator(target, "--length-policy", "fixed:length=2")
    verifier = processes.worker(Role.VERIFIER, target, it.address)
    rows = ("--row-width", "2", "--row-bits", "8", "--draft-temperature", "1.5")
    draft = processes.worker(Role.DRAFTER, target.parent / "drafter", it.address, *rows)
    with processes.running(it, verifier, draft), Client(it.address) as client:
        yield client


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("mode", ["sequential", "pearl", "branch"])
def test_the_joint_law_of_three_tokens_is_the_targets(
    mode: str, rule: str, client: Client, law: dict[tuple[int, ...], float]
) -> None:
    def sample(seed: int) -> tuple[tuple[int, ...], int, int]:
        given: Any = {"temperature": 1.0, "top_k": 3, "seed": seed, "mode": mode, "rule": rule, "ignore_eos": True}
        answer = client.complete(PROMPT, max_tokens=NUM_TOKENS, **given)
        assert answer.metrics["rule"] == rule
        return answer.token_ids, answer.metrics["num_accepted_tokens"], answer.metrics["num_recovered_tokens"]

    with ThreadPoolExecutor(8) as threads:
        samples = list(threads.map(sample, range(FIRST_SEED, FIRST_SEED + NUM_SAMPLES)))
    seen = Counter(tokens for tokens, _, _ in samples)
    assert set(seen) <= set(law), "a token outside the target's support"
    assert sum(accepted for _, accepted, _ in samples) > NUM_SAMPLES / 10, "nothing was speculated"
    assert sum(recovered for _, _, recovered in samples) > NUM_SAMPLES / 50, "nothing was rejected"
    likely = [outcome for outcome in law if law[outcome] * NUM_SAMPLES >= 5]
    observed = [seen[outcome] for outcome in likely]
    expected = [law[outcome] * NUM_SAMPLES for outcome in likely]
    observed.append(NUM_SAMPLES - sum(observed))
    expected.append(max(NUM_SAMPLES - sum(expected), 1e-9))
    if expected[-1] < 5:  # too few to test by themselves: with the least likely of the others
        observed[-2:], expected[-2:] = [sum(observed[-2:])], [sum(expected[-2:])]
    p_value = stats.chisquare(observed, expected).pvalue
    print(f"{mode} {rule}: p={p_value:.3f} over {len(observed)} cells, seeds from {FIRST_SEED}")
    assert p_value > LEAST_P_VALUE, list(itertools.zip_longest(observed, expected))
