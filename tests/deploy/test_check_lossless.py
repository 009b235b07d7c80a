"""The command that any user can run against a live endpoint: it passes an honest server and catches a lying one."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.check_lossless import Equality
from deploy.same_law import SameLaw, p_value
from paceline.length_policy import LengthPolicy
from paceline.noise import Domain, gumbel
from paceline.types import Role, Rule, Source
from tests.deploy.conftest import Served, paceline
from tests.system.cluster import cluster
from tests.tiny import write_model
from verifier.rules import RULES, Judgement


def completion(tokens: tuple[int, ...], logprobs: tuple[float, ...]) -> Any:
    return SimpleNamespace(token_ids=tokens, logprobs=logprobs, metrics={"num_prompt_tokens": 5})


def test_an_honest_server_passes(served: Served) -> None:
    done = paceline(
        "check-lossless",
        "--server",
        served.address,
        "--num-samples",
        "160",
        "--max-tokens",
        "12",
        "--json",
        timeout_s=120,
    )
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["lossless"] is True
    assert report["greedy"] == {"num_compared": 6, "num_near_ties": 0, "num_violations": 0}
    assert report["coupled"]["num_violations"] == 0
    assert {mode: found["rules"] for mode, found in report["sampled"].items()} == {
        "sequential": ["block"],
        "pearl": ["block"],
        "branch": ["block"],
    }


def test_a_difference_is_a_violation_unless_bfloat16_could_have_made_it() -> None:
    plain, near, far = (
        completion((1, 2), (-0.5, -1.0)),
        completion((1, 3), (-0.5, -1.01)),
        completion((1, 4), (-0.5, -9)),
    )
    for other, may_tie, expected in (
        (near, True, (1, 0)),
        (near, False, (0, 1)),
        (far, True, (0, 1)),
        (plain, True, (0, 0)),
    ):
        counts = Equality()
        counts.count(plain, other, may_tie=may_tie)
        assert (counts.num_near_ties, counts.num_violations) == expected


def test_output_that_only_ends_earlier_is_a_violation() -> None:
    counts = Equality()
    counts.count(completion((1, 2), (-1, -1)), completion((1,), (-1,)), may_tie=True)
    assert counts.num_violations == 1


def test_under_a_seed_a_near_tie_is_one_of_what_was_compared() -> None:
    """The noise belongs to it: two tokens of very different log-probabilities may tie, and of equal ones may not."""
    noise = gumbel(3, Domain.COUPLED, [6], 4)[0].tolist()
    plain = completion((1, 2), (-0.5, -1.0))
    tied = completion((1, 3), (-0.5, -1.0 + noise[2] - noise[3] + 0.01))
    alike = completion((1, 3), (-0.5, -1.01))
    assert abs(noise[2] - noise[3]) > 0.1
    for other, expected in ((tied, (1, 0)), (alike, (0, 1))):
        counts = Equality()
        counts.count(plain, other, may_tie=True, seed=3)
        assert (counts.num_near_ties, counts.num_violations) == expected


def _accept_all(target_logits: Any, draft_ids: Any, *rest: Any, **more: Any) -> Judgement:
    """As a server would that believes its drafter."""
    own = int(target_logits[-1].argmax())
    return Judgement(len(draft_ids), own, Source.BONUS if draft_ids else Source.SELF_DECODED)


def _accept_all_ids(draft_ids: Any, own_ids: Any) -> Judgement:
    return Judgement(len(draft_ids), own_ids[-1], Source.BONUS if draft_ids else Source.SELF_DECODED)


@pytest.mark.parametrize(("rule", "seen"), [("match", "greedy"), ("coupled", "coupled"), ("token", "sampled")])
async def test_a_broken_server_is_found_out(
    rule: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_model(tmp_path / "target", seed=1)
    drafter = write_model(tmp_path / "drafter", seed=2, tokenizer_of=target)
    monkeypatch.setattr("verifier.rules.RULES", {**RULES, Rule(rule): _accept_all})
    if rule == "match":  # at temperature 0 it is decided without the rest of the rows
        monkeypatch.setattr("verifier.judging.compare", _accept_all_ids)
    async with cluster(target, policy=LengthPolicy.parse("fixed:length=3")) as it:
        await it.add("v", Role.VERIFIER, target)
        await it.add("d", Role.DRAFTER, drafter)
        options = ("--num-samples", "240", "--max-tokens", "6", "--alpha", "0.001", "--rule", rule, "--json")
        done = await asyncio.to_thread(paceline, "check-lossless", "--server", it.address, *options, timeout_s=120)
    assert done.code == 1, done.err
    report = json.loads(done.out)
    assert report["lossless"] is False
    differs = {name: report[name]["num_violations"] > 0 for name in ("greedy", "coupled")}
    differs["sampled"] = any(found["differs"] for found in report["sampled"].values())
    assert differs[seen]
    assert "NOT LOSSLESS" in done.err


def draws(weights: list[float], count: int, seed: int) -> Counter[Any]:
    return Counter(random.Random(seed).choices(range(len(weights)), weights, k=count))


def test_one_law_is_called_different_no_more_often_than_the_error_level_says() -> None:
    weights = [0.4, 0.3, 0.2, 0.06, 0.03, 0.01]
    wrong = sum(p_value(draws(weights, 800, 2 * i), draws(weights, 800, 2 * i + 1)) < 0.05 for i in range(300))
    assert 3 <= wrong <= 30, wrong


def test_a_small_bias_is_found() -> None:
    """What a wrong residual does: some hundredths of mass move."""
    test = SameLaw(alpha=0.001, num_looks=8)
    for look in range(8):
        test.one.update(draws([0.4, 0.3, 0.2, 0.1], 500, 2 * look))
        test.other.update(draws([0.34, 0.3, 0.2, 0.16], 500, 2 * look + 1))
        test.look()
    assert test.differs


def test_too_little_to_compare_is_not_called_different() -> None:
    assert p_value(Counter([1]), Counter([2])) == 1.0
