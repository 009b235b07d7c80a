"""A pool that is too small for its requests: all of them end with the tokens that each yields alone."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from paceline.engine.runner import Runner
from paceline.types import (
    Decode,
    Draft,
    Fault,
    OpenVerify,
    Role,
    Rows,
    Rule,
    SamplingParams,
    Tokens,
    Verdict,
    Verify,
    WorkerInfo,
)
from tests.tiny import write_model
from verifier.batcher import Budget
from verifier.engine import VerifierEngine

NUM_TOKENS = 24
PROMPTS = [tuple(random.Random(seed).randrange(250) for _ in range(20 + 3 * seed)) for seed in range(6)]
LONGEST = len(PROMPTS[-1]) + NUM_TOKENS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "target", seed=1)


def engine(folder: Path, max_num_tokens: int, max_num_batched_tokens: int = 16) -> VerifierEngine:
    runner = Runner.load(str(folder), max_num_tokens=max_num_tokens, block_size=4)
    known = runner.info
    hashes = (known.model_hash, known.tokenizer_hash, known.vocab_size, known.max_model_len)
    info = WorkerInfo(Role.VERIFIER, "", 1, "tiny", *hashes, 64, known.eos_token_ids, known.dtype, known.device)
    return VerifierEngine(runner, info, Budget(max_num_batched_tokens, 8))


def run(it: VerifierEngine, asks: list[OpenVerify], drafts: dict[str, Tokens] | None = None) -> dict[str, list[int]]:
    """Drives requests to `NUM_TOKENS` tokens each; with `drafts`, three tokens of it at a time are open drafts."""
    logs = {ask.request_id: list(ask.token_ids) for ask in asks}
    ends = {ask.request_id: len(ask.token_ids) + NUM_TOKENS for ask in asks}
    epochs = dict.fromkeys(logs, 0)
    for ask in asks:
        assert it.handle(1, ask) == []
    for _ in range(5000):
        assert it.has_work() or not it._entries, "everything waits, and no ask is due"
        for _, reply in it.step():
            assert isinstance(reply, Verdict), reply
            name, log = reply.request_id, logs[reply.request_id]
            log[reply.start :] = reply.token_ids
            if len(log) >= ends[name]:
                it._close(f"1/{name}")
                it._is_stalled = False
            elif drafts is not None:
                if reply.num_tested > len([s for s in reply.sources if s == "accepted"]):
                    epochs[name] += 1
                ids = drafts[name][len(log) : len(log) + 3]
                if ids:
                    it.handle(1, Verify(Draft(name, epochs[name], len(log), ids, len(log) + 3 < ends[name])))
                else:
                    it.handle(1, Decode(name, epochs[name], len(log), 1))
        it.runner.check_integrity()
        if not it._entries:
            return {name: log[: ends[name]] for name, log in logs.items()}
    raise AssertionError("no end")


def opens(num_decode: int, rule: Rule = Rule.MATCH, temperature: float = 0.0) -> list[OpenVerify]:
    sampling = SamplingParams(temperature=temperature)
    return [OpenVerify(f"r{i}", ids, sampling, rule, 7 + i, num_decode) for i, ids in enumerate(PROMPTS)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_six_requests_in_room_for_one_and_a_half_yield_what_each_yields_alone(folder: Path, temperature: float) -> None:
    large = engine(folder, 2048)
    alone: dict[str, list[int]] = {}
    for ask in opens(NUM_TOKENS, temperature=temperature):
        alone |= run(large, [ask])
    assert large.num_preemptions == 0
    small = engine(folder, 3 * LONGEST // 2)
    assert run(small, opens(NUM_TOKENS, temperature=temperature)) == alone
    assert small.num_preemptions > 0


@pytest.mark.parametrize("rule", [Rule.MATCH, Rule.COUPLED])
def test_drafts_survive_a_preemption(folder: Path, rule: Rule) -> None:
    large = engine(folder, 2048)
    rng = random.Random(5)
    alone: dict[str, list[int]] = {}
    for ask in opens(NUM_TOKENS, rule, 1.0):
        alone |= run(large, [ask])
    drafts = {
        name: tuple(token if rng.random() < 0.8 else 9 for token in log) + (9,) * 8 for name, log in alone.items()
    }
    small = engine(folder, 3 * LONGEST // 2)
    assert run(small, opens(1, rule, 1.0), drafts) == alone
    assert small.num_preemptions > 0


def test_a_retained_row_is_computed_anew(folder: Path) -> None:
    """Under rejection sampling an open draft that was kept leaves a row; without its cache the row must come back."""
    reference = engine(folder, 2048)
    alone = run(reference, opens(NUM_TOKENS)[:1])["r0"]
    it, at = engine(folder, 2048), len(PROMPTS[0])
    it.handle(1, opens(1, Rule.TOKEN)[0])
    while it.has_work():
        it.step()
    ids = tuple(alone[at + 1 : at + 4])
    certain = Rows(1, struct.pack("<3I", *ids), struct.pack("<3H", *[65535] * 3))
    it.handle(1, Verify(Draft("r0", 0, at + 1, ids, True, certain)))
    while it.has_work():
        it.step()
    session = it._entries["1/r0"].session
    assert session.retained is not None
    it._preempt("1/r0")
    assert session.retained is None
    while it.has_work():
        assert it.step() == []
    it.handle(1, Decode("r0", 0, at + 4, 1))
    ((_, verdict),) = it.step()
    assert isinstance(verdict, Verdict)
    assert verdict.token_ids == (alone[at + 4],)
    it.runner.check_integrity()


def test_a_request_that_outgrows_the_pool_alone_is_refused_and_the_others_end(folder: Path) -> None:
    small = engine(folder, 40)
    sampling = SamplingParams(temperature=0)
    small.handle(1, OpenVerify("long", PROMPTS[0], sampling, Rule.MATCH, 1, 200))
    small.handle(1, OpenVerify("short", PROMPTS[0][:5], sampling, Rule.MATCH, 1, 8))
    faults: list[Fault] = []
    tokens: list[int] = []
    for _ in range(200):
        for _, reply in small.step():
            if isinstance(reply, Fault):
                faults.append(reply)
            elif reply.request_id == "short":
                assert isinstance(reply, Verdict)
                tokens += reply.token_ids
        small.runner.check_integrity()
    assert [(fault.request_id, "40 tokens" in fault.message) for fault in faults] == [("long", True)]
    assert len(tokens) == 8


def test_waiting_for_room_is_no_work(folder: Path) -> None:
    """The thread sleeps until an ask makes room; it does not turn."""
    it = engine(folder, 32)
    it.handle(1, opens(1)[0])
    while it.has_work():
        it.step()
    it.handle(1, opens(1)[1])
    while it.has_work():
        assert it.step() == []
    assert len(it._entries) == 2
    it._close("1/r0")
    it.drop(2)
    assert it.has_work()
    assert it.step() or it.step()
