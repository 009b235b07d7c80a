"""What goes wrong with one request costs that request: planted failures, and neighbours that must not notice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from paceline import rows
from paceline.engine.runner import Chunk
from paceline.errors import EngineLost
from paceline.types import Blame, Decode, Fault, OpenVerify, Rule, SamplingParams, Tokens, Verdict, Verify
from tests.verifier.test_engine import PENALISED, draft_of, engine
from verifier.engine import VerifierEngine
from verifier.rules import judge, judge_blocks

NEIGHBOURS = ("before", "after")
GREEDY = SamplingParams(temperature=0)


def outputs(it: VerifierEngine, num_steps: int = 40) -> tuple[dict[str, Tokens], list[Fault]]:
    """What every request yields, and who is refused."""
    found: dict[str, Tokens] = {}
    faults = []
    for _ in range(num_steps):
        for _, reply in it.step() if it.has_work() else ():
            if isinstance(reply, Fault):
                faults.append(reply)
            else:
                assert isinstance(reply, Verdict)
                found[reply.request_id] = found.get(reply.request_id, ()) + reply.token_ids
    return found, faults


def opened(rule: Rule, given: SamplingParams, num_decode: int = 4) -> VerifierEngine:
    it = engine()
    for name in ("before", "bad", "after"):
        it.handle(0, OpenVerify(name, (1, 2), given, rule, seed=3, num_decode=num_decode))
    return it


def spoil(it: VerifierEngine, name: str, value: float, from_position: int = 0) -> None:
    """From then on every row of that request holds `value` somewhere."""
    forward = it.runner.forward

    def spoilt(chunks: Sequence[Chunk]) -> Tensor:
        logits, at = forward(chunks), 0
        for chunk in chunks:
            if chunk.sequence == f"0/{name}" and chunk.start + len(chunk.token_ids) > from_position:
                logits[at : at + chunk.num_rows, 3] = value
            at += chunk.num_rows
        return logits

    runner: Any = it.runner
    runner.forward = spoilt


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("given", [GREEDY, SamplingParams(), PENALISED], ids=["greedy", "plain", "penalised"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_cost_their_request_alone(rule: Rule, given: SamplingParams, value: float) -> None:
    expected, none = outputs(opened(rule, given))
    assert none == []
    it = opened(rule, given)
    spoil(it, "bad", value, from_position=2)  # one good token first
    found, (fault,) = outputs(it)
    assert {name: found[name] for name in NEIGHBOURS} == {name: expected[name] for name in NEIGHBOURS}
    assert found["bad"] == expected["bad"][:1], "nothing is made of a spoilt row"
    assert fault.request_id == "bad"
    assert "not finite" in fault.message
    assert "position 3" in fault.message
    assert fault.blame is Blame.WORKER, "another verifier may do better"
    assert list(it._entries) == ["0/before", "0/after"]


def test_a_spoilt_row_is_not_retained() -> None:
    it = engine()
    it.handle(0, OpenVerify("bad", (1, 2), SamplingParams(), Rule.TOKEN, 3, num_decode=0))
    spoil(it, "bad", float("nan"))
    ((_, fault),) = it.step()
    assert isinstance(fault, Fault)
    assert it.handle(0, Decode("bad", 0, 2, 1)) == []
    assert not it.has_work()


def test_minus_infinity_is_a_lawful_logit() -> None:
    """Some models have it for rows of the embedding that no token uses."""
    it = opened(Rule.BLOCK, SamplingParams())
    spoil(it, "bad", float("-inf"))
    found, faults = outputs(it)
    assert not faults
    assert 3 not in found["bad"]


@pytest.mark.parametrize("rule", [Rule.COUPLED, Rule.TOKEN, Rule.BLOCK])
def test_a_rule_that_fails_on_one_request_costs_that_one(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(rules: Any) -> Any:
        def planted(*arguments: Any, **options: Any) -> Any:
            given = next(argument for argument in arguments if isinstance(argument, SamplingParams))
            if given.top_k == 5:
                raise ZeroDivisionError("planted")
            return rules(*arguments, **options)

        return planted

    def three() -> VerifierEngine:
        it = engine()
        for name in ("before", "bad", "after"):
            given = SamplingParams(top_k=5 if name == "bad" else 4)
            it.handle(0, OpenVerify(name, (1, 2), given, rule, seed=3, num_decode=3))
        return it

    expected, _ = outputs(three())
    monkeypatch.setattr("verifier.judging.judge", failing(judge))
    monkeypatch.setattr("verifier.judging.judge_blocks", failing(judge_blocks))
    found, (fault,) = outputs(three())
    assert found == {name: expected[name] for name in NEIGHBOURS}
    assert (fault.request_id, "ZeroDivisionError" in fault.message) == ("bad", True)


def test_a_retained_row_that_fails_costs_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    it = engine()
    for name in ("before", "bad"):
        it.handle(0, OpenVerify(name, (1, 2), SamplingParams(), Rule.TOKEN, 3, num_decode=0))
    it.step()
    it._entries["0/bad"].session.retained = torch.zeros(1, 0)  # no token at all
    for name in ("before", "bad"):
        it.handle(0, Decode(name, 0, 2, 2))
    found, (fault,) = outputs(it)
    assert len(found["before"]) == 2
    assert fault.request_id == "bad"


def test_a_forward_pass_that_fails_is_not_one_requests_fault() -> None:
    it = opened(Rule.MATCH, GREEDY)

    def out_of_memory(chunks: Sequence[Chunk]) -> Tensor:
        raise RuntimeError("out of memory")

    runner: Any = it.runner
    runner.forward = out_of_memory
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        it.step()
    assert {fault.request_id for _, fault in it.fail(caught.value)} == {"before", "bad", "after"}
    assert not it.has_work()


def test_a_lost_runner_is_work_that_raises_even_when_nothing_is_asked() -> None:
    it = engine()
    assert not it.has_work()
    runner: Any = it.runner
    runner.lost = "rank 1 is gone"
    assert it.has_work()
    with pytest.raises(EngineLost, match="rank 1 is gone"):
        it.step()


def test_a_drafts_rows_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading checks and sorts them; it used to be done on arrival and again for every look at them."""
    calls = []
    unpack = rows.unpack

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return unpack(*arguments, **options)

    it = engine()
    it.handle(0, OpenVerify("r", (1, 2), SamplingParams(), Rule.TOKEN, 1, num_decode=0))
    it.step()
    draft = draft_of((1, 2), 3, 0, SamplingParams(), is_open=True)
    monkeypatch.setattr(rows, "unpack", counted)
    it.handle(0, Verify(draft))
    outputs(it)
    assert len(calls) == 1


def test_rows_that_were_read_are_cut_with_their_draft() -> None:
    draft = draft_of((1, 2), 4, 0, SamplingParams(), is_open=True)
    assert draft.rows is not None
    read = replace(draft, rows=rows.read(draft.rows, 6, token_ids=draft.token_ids))
    cut, expected = read.drop(3), draft.drop(3)
    assert isinstance(cut.rows, rows.ReadRows)
    assert expected.rows is not None
    law = rows.unpack(expected.rows, 6, token_ids=expected.token_ids)
    assert torch.equal(cut.rows.law.ids, law.ids)
    assert torch.equal(cut.rows.law.probs, law.probs)
    assert cut.rows.ids == expected.rows.ids
