"""The drafter's engine with a toy model: what is sent is what was sampled from, and noise is new in every run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import drafter.engine
from drafter.engine import DrafterEngine
from paceline import noise, rows, sampling
from paceline.length_policy import LengthPolicy
from paceline.noise import Domain
from paceline.types import (
    Branch,
    Commit,
    Draft,
    Fault,
    OpenDraft,
    Role,
    Rule,
    SamplingParams,
    StepCost,
    Tokens,
    WorkerInfo,
)
from tests.verifier.test_engine import VOCAB, ToyRunner
from tests.verifier.test_rules import chain

PROMPT = (1, 2)
PENALISED = SamplingParams(frequency_penalty=1.5, repetition_penalty=1.3)


def engine(width: int = 3, **more: Any) -> DrafterEngine:
    info = WorkerInfo(Role.DRAFTER, "h:1", 1, "m", "0" * 64, "0" * 64, VOCAB, 1000, 8, (), "float32", "cpu")
    runner: Any = ToyRunner(info)
    return DrafterEngine(runner, info, row_width=width, **more)


def opened(rule: Rule, seed: int, given: SamplingParams) -> OpenDraft:
    policy = LengthPolicy.parse("fixed:length=3")
    return OpenDraft("r", 0, PROMPT, given, rule, seed, policy, window=2, end=100, num_prompt_tokens=len(PROMPT))


def drafted(it: DrafterEngine) -> list[Draft]:
    """Everything that fits into the window."""
    found = []
    while it.has_work():
        found += [reply for _, reply in it.step() if isinstance(reply, Draft)]
    return found


def law_after(prefix: Tokens, given: SamplingParams, temperature: float | None = None) -> Any:
    row = chain(prefix, VOCAB)[None]
    row = sampling.adjusted_logits(row, given, prefix, num_prompt_tokens=len(PROMPT))
    return sampling.target_probs(row, replace(given, temperature=temperature or given.temperature))


def check(
    draft: Draft, prefix: Tokens, seed: int, given: SamplingParams, bits: int, temperature: float | None = None
) -> None:
    assert draft.rows is not None
    assert draft.rows.bits == bits
    assert len(draft.token_ids) == 3, "nothing that was drawn is dropped"
    sent = rows.unpack(draft.rows, VOCAB, token_ids=draft.token_ids)
    for at, x in enumerate(draft.token_ids):
        before = prefix + draft.token_ids[:at]
        kept = rows.truncate(law_after(before, given, temperature), 3, bits)
        assert sent.ids[at].tolist() == kept.ids[0].tolist()
        assert (sent.probs[at] * rows.total(bits)).round().long().tolist() == kept.counts[0].tolist()
        coin = noise.uniform(seed, Domain.DRAFT, len(before), epoch=draft.epoch)
        assert x == rows.sample_row(kept.ids[0], kept.counts[0], coin), "not drawn from the row that was sent"


@pytest.mark.parametrize("rule", [Rule.TOKEN, Rule.BLOCK])
@pytest.mark.parametrize("given", [SamplingParams(), PENALISED], ids=["plain", "penalised"])
@pytest.mark.parametrize(("bits", "temperature"), [(8, None), (12, 0.5), (16, 2.0)])
def test_a_token_is_drawn_from_the_row_that_is_sent_by_the_noise_of_its_run(
    rule: Rule, given: SamplingParams, bits: int, temperature: float | None
) -> None:
    for seed in range(12):
        it = engine(row_bits=bits, draft_temperature=temperature)
        it.handle(0, opened(rule, seed, given))
        first, second = drafted(it)
        check(first, PROMPT, seed, given, bits, temperature)
        check(second, PROMPT + first.token_ids, seed, given, bits, temperature)
        other = (first.token_ids[0] + 1) % VOCAB
        it.handle(0, Commit("r", 1, len(PROMPT), (other,)))
        again = drafted(it)
        assert {draft.epoch for draft in again} == {1}
        check(again[0], (*PROMPT, other), seed, given, bits, temperature)


@pytest.mark.parametrize("given", [SamplingParams(0), SamplingParams(0, frequency_penalty=2, repetition_penalty=2)])
def test_a_greedy_draft_is_the_likeliest_token_of_the_adjusted_row(given: SamplingParams) -> None:
    it = engine(draft_temperature=2.0)
    it.handle(0, opened(Rule.MATCH, 1, given))
    prefix: Tokens = PROMPT
    for draft in drafted(it):
        assert draft.rows is None
        for x in draft.token_ids:
            assert x == int(law_after(prefix, given).argmax())
            prefix += (x,)


@pytest.mark.parametrize("rule", [Rule.TOKEN, Rule.BLOCK])
def test_a_branch_is_drawn_from_the_rows_that_are_sent_by_noise_of_its_own(rule: Rule) -> None:
    it = engine()
    it.handle(0, replace(opened(rule, 5, SamplingParams()), branches=4))
    replies = [reply for _ in range(40) if it.has_work() for _, reply in it.step()]
    first = next(reply for reply in replies if isinstance(reply, Draft))
    branches = [reply for reply in replies if isinstance(reply, Branch)]
    assert len(branches) == 4
    tokens = PROMPT + sum((reply.token_ids for reply in replies if isinstance(reply, Draft)), ())
    for number, branch in enumerate(sorted(branches, key=replies.index), start=1):
        assert branch.token_id != tokens[branch.position]
        assert branch.draft.rows is not None
        prefix = (*tokens[: branch.position], branch.token_id)
        sent = rows.unpack(branch.draft.rows, VOCAB, token_ids=branch.draft.token_ids)
        for at, x in enumerate(branch.draft.token_ids):
            before = prefix + branch.draft.token_ids[:at]
            kept = rows.truncate(law_after(before, SamplingParams()), 3, 12)
            assert sent.ids[at].tolist() == kept.ids[0].tolist()
            coin = noise.uniform(5, Domain.DRAFT, len(before), epoch=first.epoch, branch=number)
            assert x == rows.sample_row(kept.ids[0], kept.counts[0], coin), "not by its own coin"
    runner: Any = it.runner
    assert list(runner.held) == ["0/r"], "complete branches hold nothing"


def test_a_commit_frees_what_it_rules_out() -> None:
    it = engine()
    it.handle(0, replace(opened(Rule.MATCH, 5, SamplingParams(0)), branches=4))
    runner: Any = it.runner
    while len(runner.held) == 1:
        it.step()
    it.handle(0, Commit("r", 1, len(PROMPT), (5, 5, 5)))
    assert list(runner.held) == ["0/r"]


def test_a_request_that_is_refused_while_branches_grow_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    it = engine()
    it.cost.observe(1, 1, 0, 1.0)
    it.info = replace(it.info, cost=StepCost(1.0, 0.0, 0.0, 0.0))  # a batch is free: branches ride along
    it.handle(0, replace(opened(Rule.MATCH, 5, SamplingParams(0)), branches=4, window=9))
    runner: Any = it.runner
    while len(runner.held) == 1:
        it.step()

    def fail(*_: object) -> bool:
        raise ValueError("spoilt")

    monkeypatch.setattr(drafter.engine, "keep", fail)
    ((_, reply),) = it.step()
    assert isinstance(reply, Fault)
    assert not runner.held
    assert not it.has_work()
