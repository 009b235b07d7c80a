"""A drafter whose pool is too small for its requests drafts for each what it drafts for it alone."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from drafter.engine import DrafterEngine
from paceline.engine.runner import Runner
from paceline.errors import Unavailable
from paceline.length_policy import LengthPolicy
from paceline.types import Close, Commit, Draft, Fault, OpenDraft, Role, Rule, SamplingParams, WorkerInfo
from tests.tiny import write_model

NUM_TOKENS = 24
PROMPTS = [tuple(random.Random(seed).randrange(250) for _ in range(20 + 3 * seed)) for seed in range(6)]
LONGEST = len(PROMPTS[-1]) + NUM_TOKENS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "drafter", seed=1)


def engine(folder: Path, max_num_tokens: int) -> DrafterEngine:
    runner = Runner.load(str(folder), max_num_tokens=max_num_tokens, block_size=4)
    known = runner.info
    hashes = (known.model_hash, known.tokenizer_hash, known.vocab_size, known.max_model_len)
    info = WorkerInfo(Role.DRAFTER, "", 1, "tiny", *hashes, 64, known.eos_token_ids, known.dtype, known.device)
    return DrafterEngine(runner, info, max_num_batched_tokens=16)


def ask(index: int, end: int | None = None, policy_text: str = "fixed:length=3") -> OpenDraft:
    policy, sampling = LengthPolicy.parse(policy_text), SamplingParams(temperature=1.0)
    end = len(PROMPTS[index]) + NUM_TOKENS if end is None else end
    return OpenDraft(f"r{index}", 0, PROMPTS[index], sampling, Rule.TOKEN, index, policy, 64, end)


def run(it: DrafterEngine, asks: list[OpenDraft]) -> dict[str, list[Draft]]:
    drafts: dict[str, list[Draft]] = {ask.request_id: [] for ask in asks}
    ends = {ask.request_id: ask.end for ask in asks}
    for ask in asks:
        it.handle(1, ask)
    while it._entries:
        assert it.has_work(), "everything waits, and no ask is due"
        for _, reply in it.step():
            assert isinstance(reply, Draft)
            drafts[reply.request_id].append(reply)
            if reply.end == ends[reply.request_id]:
                it.handle(1, Close(reply.request_id))
        it.runner.check_integrity()
    return drafts


def contents(drafts: dict[str, list[Draft]]) -> dict[str, list[tuple[int, tuple[int, ...]]]]:
    return {name: [(draft.start, draft.token_ids) for draft in given] for name, given in drafts.items()}


@pytest.mark.parametrize("policy_text", ["fixed:length=3", "adaedl:threshold=0.1,max_length=5"])
def test_six_requests_in_room_for_one_and_a_half_draft_what_each_drafts_alone(folder: Path, policy_text: str) -> None:
    large = engine(folder, 2048)
    alone: dict[str, list[Draft]] = {}
    for index in range(len(PROMPTS)):
        alone |= run(large, [ask(index, policy_text=policy_text)])
    small = engine(folder, 3 * LONGEST // 2)
    asks = [ask(index, policy_text=policy_text) for index in range(len(PROMPTS))]
    assert contents(run(small, asks)) == contents(alone)
    assert small.num_preemptions > 0
    assert large.num_preemptions == 0


def test_a_request_that_outgrows_the_pool_alone_costs_only_itself(folder: Path) -> None:
    small, faults = engine(folder, 40), []
    small.handle(1, ask(0, end=400))
    while small.has_work():
        faults += [reply for _, reply in small.step() if isinstance(reply, Fault)]
    assert [("40 tokens" in fault.message) for fault in faults] == [True]
    small.runner.check_integrity()
    assert run(small, [ask(0, end=30)])["r0"]


def test_a_token_beyond_the_drafters_vocabulary_is_refused_before_it_is_forwarded(folder: Path) -> None:
    """Forwarding it would fail the step, and with it every request."""
    it = engine(folder, 256)
    wide = it.runner.info.vocab_size
    with pytest.raises(Unavailable, match=str(wide)):
        it.handle(1, replace(ask(0), token_ids=(1, wide)))
    it.handle(1, ask(0))
    with pytest.raises(Unavailable, match=str(wide)):
        it.handle(1, Commit("r0", 1, len(PROMPTS[0]), (wide,)))
