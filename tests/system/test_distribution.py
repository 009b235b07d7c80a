"""Rejection sampling through real processes: the joint law of three tokens is the target's own.

Top-k 3 keeps the support small enough (27 outcomes) for a chi-square test that could fail.
"""

from __future__ import annotations

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from paceline.client import Client
from paceline.sampling import target_probs
from paceline.types import Role, SamplingParams
from tests.system import processes
from tests.tiny import write_pair

PROMPT = tuple(range(40, 52))
SAMPLING = SamplingParams(temperature=1.0, top_k=3)
NUM_SAMPLES = 1500
NUM_TOKENS = 3
# One run in a thousand fails by chance; the draws are random on purpose, as a client's are.
LEAST_P_VALUE = 1e-3


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
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("mode", ["sequential", "pearl"])
def test_the_joint_law_of_three_tokens_is_the_targets(mode: str, rule: str, pair: tuple[Path, Path]) -> None:
    target, drafter = pair
    it = processes.coordinator(target, "--length-policy", "fixed:length=2")
    verifier = processes.worker(Role.VERIFIER, target, it.address)
    draft = processes.worker(Role.DRAFTER, drafter, it.address, "--row-width", "8")
    with processes.running(it, verifier, draft), Client(it.address) as client, ThreadPoolExecutor(8) as threads:

        def sample(_: int) -> tuple[tuple[int, ...], int, int]:
            answer = client.complete(
                PROMPT, max_tokens=NUM_TOKENS, temperature=1.0, top_k=3, mode=mode, rule=rule, ignore_eos=True
            )
            return answer.token_ids, answer.metrics["num_accepted_tokens"], answer.metrics["num_recovered_tokens"]

        samples = list(threads.map(sample, range(NUM_SAMPLES)))
    law = joint_law(target)
    seen = Counter(tokens for tokens, _, _ in samples)
    assert set(seen) <= set(law), "a token outside the target's support"
    assert sum(accepted for _, accepted, _ in samples) > NUM_SAMPLES / 10, "nothing was speculated"
    assert sum(recovered for _, _, recovered in samples) > NUM_SAMPLES / 20, "nothing was rejected"
    likely = [outcome for outcome in law if law[outcome] * NUM_SAMPLES >= 5]
    observed = [seen[outcome] for outcome in likely]
    expected = [law[outcome] * NUM_SAMPLES for outcome in likely]
    observed.append(NUM_SAMPLES - sum(observed))
    expected.append(max(NUM_SAMPLES - sum(expected), 1e-9))
    if expected[-1] < 5:  # too few to test by themselves: with the least likely of the others
        observed[-2:], expected[-2:] = [sum(observed[-2:])], [sum(expected[-2:])]
    p_value = stats.chisquare(observed, expected).pvalue
    print(f"{mode} {rule}: p={p_value:.3f} over {len(observed)} cells")
    assert p_value > LEAST_P_VALUE, list(itertools.zip_longest(observed, expected))
