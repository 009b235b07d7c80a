"""What goes wrong with one request costs that request, at the drafter too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from drafter.engine import DrafterEngine
from drafter.policies import Policy, Seen
from paceline import noise
from paceline.engine.runner import Chunk
from paceline.errors import EngineLost
from paceline.length_policy import LengthPolicy
from paceline.types import Draft, Fault, OpenDraft, Rule, SamplingParams, Tokens
from tests.drafter.test_engine import PENALISED, PROMPT, engine

POLICY = LengthPolicy.parse("svip:threshold_nats=20,max_length=3")


def opened(rule: Rule, given: SamplingParams, bad: SamplingParams | None = None) -> DrafterEngine:
    it = engine()
    for seed, name in enumerate(("before", "bad", "after")):
        sampling = bad if bad and name == "bad" else given
        it.handle(0, OpenDraft(name, 0, PROMPT, sampling, rule, seed, POLICY, 2, 100, num_prompt_tokens=len(PROMPT)))
    return it


def drafted(it: DrafterEngine) -> tuple[dict[str, list[Tokens]], list[Fault]]:
    found: dict[str, list[Tokens]] = {}
    faults = []
    while it.has_work():
        for _, reply in it.step():
            if isinstance(reply, Fault):
                faults.append(reply)
            else:
                assert isinstance(reply, Draft)
                found.setdefault(reply.request_id, []).append(reply.token_ids)
    return found, faults


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize(
    "given", [SamplingParams(0), SamplingParams(), PENALISED], ids=["greedy", "plain", "penalised"]
)
def test_a_row_that_is_no_numbers_costs_its_request_alone(rule: Rule, given: SamplingParams) -> None:
    expected, none = drafted(opened(rule, given))
    assert none == []
    it = opened(rule, given)
    forward = it.runner.forward

    def spoilt(chunks: Sequence[Chunk]) -> Tensor:
        logits = forward(chunks)
        for at, chunk in enumerate(chunks):
            if chunk.sequence == "0/bad" and chunk.start > len(PROMPT):
                logits[at, 1] = float("nan")
        return logits

    runner: Any = it.runner
    runner.forward = spoilt
    found, (fault,) = drafted(it)
    assert found == {name: expected[name] for name in ("before", "after")}
    assert fault.request_id == "bad"
    assert f"position {len(PROMPT) + 2} are not finite" in fault.message
    assert list(it._entries) == ["0/before", "0/after"]


@pytest.mark.parametrize("is_shared", [True, False], ids=["in one group", "in a group of its own"])
def test_a_draw_that_fails_costs_its_request_alone(is_shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of one law are drawn together; where that fails each is drawn alone."""
    given = SamplingParams(temperature=0.9)
    expected, _ = drafted(opened(Rule.TOKEN, given))
    it = opened(Rule.TOKEN, given, given if is_shared else replace(given, top_k=2))
    uniform = noise.uniform

    def planted(seed: int, *arguments: Any, **options: Any) -> float:
        if seed == 1:  # that of "bad"
            raise ZeroDivisionError("planted")
        return uniform(seed, *arguments, **options)

    monkeypatch.setattr(noise, "uniform", planted)
    found, (fault,) = drafted(it)
    assert found == {name: expected[name] for name in ("before", "after")}
    assert (fault.request_id, "ZeroDivisionError" in fault.message) == ("bad", True)


def test_a_policy_that_fails_costs_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    it = opened(Rule.MATCH, SamplingParams(0))

    class Broken(Policy):
        def stops_after(self, seen: Seen) -> bool:
            raise KeyError("planted")

    it._entries["0/bad"].policy = Broken()
    found, (fault,) = drafted(it)
    assert sorted(found) == ["after", "before"]
    assert fault.request_id == "bad"


def test_a_lost_runner_is_work_that_raises_even_when_nothing_is_asked() -> None:
    it = engine()
    runner: Any = it.runner
    runner.lost = "rank 1 is gone"
    assert it.has_work()
    with pytest.raises(EngineLost, match="rank 1 is gone"):
        it.step()
