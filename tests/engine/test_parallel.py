"""Two ranks on this machine, over gloo."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from paceline.engine.executor import Options
from paceline.engine.parallel import _BUFFER_BYTES, Leader, _Follower
from paceline.engine.runner import Chunk, Runner
from paceline.errors import EngineLost, InvalidInput, Unsupported
from tests.engine.conftest import VOCAB_SIZE, make_config, save_model

Folders = Callable[[str], Path]
TOLERANCE = 1e-5
TIMEOUT_S = 3.0

needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="tensor parallelism needs the accelerate package"
)


def start_pair(folder: Path, *, timeout_s: float) -> Runner:
    return Runner.load(
        str(folder),
        max_num_tokens=6000,
        block_size=1,
        tensor_parallel_size=2,
        tensor_parallel_timeout_s=timeout_s,
    )


def process_of(pair: Runner) -> subprocess.Popen[bytes]:
    """Rank 1's."""
    assert isinstance(pair._executor, Leader)
    (follower,) = pair._executor._followers
    assert isinstance(follower, _Follower)
    return follower._process


@pytest.fixture(scope="module")
def alone(model_folder: Folders) -> Runner:
    return Runner.load(str(model_folder("Llama")), max_num_tokens=6000, block_size=1)


@pytest.fixture(scope="module")
def groups(model_folder: Folders) -> Iterator[list[Runner]]:
    """The running group, or none: a process can lead one at a time, and starting it takes seconds."""
    running: list[Runner] = []
    yield running
    for runner in running:
        runner.shutdown()


@pytest.fixture
def pair(model_folder: Folders, groups: list[Runner]) -> Runner:
    if not groups:
        groups.append(start_pair(model_folder("Llama"), timeout_s=TIMEOUT_S))
    return groups[0]


def greedy(runner: Runner, prompt: list[int], num_tokens: int) -> tuple[list[int], torch.Tensor]:
    """Tokens and logits of greedy decoding in which every step also forwards, and takes back, two wrong tokens."""
    runner.open("greedy")
    tokens, rows = list(prompt), []
    logits = runner.forward([Chunk("greedy", 0, prompt, 1)])
    for _ in range(num_tokens):
        rows.append(logits[0])
        tokens.append(int(logits[0].argmax()))
        wrong = [(tokens[-1] + 1) % VOCAB_SIZE, 0]
        logits = runner.forward([Chunk("greedy", len(tokens) - 1, [tokens[-1], *wrong], 3)])
    runner.close("greedy")
    return tokens, torch.stack(rows)


@needs_accelerate
def test_two_ranks_give_the_tokens_of_one(alone: Runner, pair: Runner) -> None:
    assert pair.info == alone.info
    tokens, logits = greedy(pair, [3, 1, 4, 1, 5], num_tokens=12)
    expected_tokens, expected = greedy(alone, [3, 1, 4, 1, 5], num_tokens=12)
    assert tokens == expected_tokens
    assert float((logits - expected).abs().max()) <= TOLERANCE
    pair.check_integrity()


@needs_accelerate
def test_two_ranks_give_the_whole_hidden_states_of_one(alone: Runner, pair: Runner) -> None:
    found = []
    for runner in (alone, pair):
        runner.open("hidden")
        found.append(runner.forward_with_hidden([Chunk("hidden", 0, [3, 1, 4, 1, 5], 2)]).hidden)
        runner.close("hidden")
    assert found[0].shape == found[1].shape
    assert float((found[0] - found[1]).abs().max()) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["Gemma2", "Phi3", "Mixtral"])
def test_other_families_split_too(model_folder: Folders, groups: list[Runner], architecture: str) -> None:
    """Windows and caps, fused projections, experts; the leader compares with transformers' own code on all ranks."""
    while groups:  # one at a time
        groups.pop().shutdown()
    folder = model_folder(architecture)
    groups.append(start_pair(folder, timeout_s=20.0))
    tokens, logits = greedy(groups[0], [3, 1, 4, 1, 5], num_tokens=8)
    alone = Runner.load(str(folder), max_num_tokens=640, block_size=1)
    expected_tokens, expected = greedy(alone, [3, 1, 4, 1, 5], num_tokens=8)
    assert tokens == expected_tokens
    assert float((logits - expected).abs().max()) <= TOLERANCE
    groups.pop().shutdown()


@needs_accelerate
def test_a_plan_larger_than_the_buffer_reaches_the_followers(alone: Runner, pair: Runner) -> None:
    chunks = []
    for number in range(20):
        text = [(number + 7 * index) % VOCAB_SIZE for index in range(240)]
        chunks.append(Chunk(f"long{number}", 0, text, 1))
    assert sum(len(chunk.token_ids) for chunk in chunks) * 4 > _BUFFER_BYTES
    found = []
    for runner in (alone, pair):
        for chunk in chunks:
            runner.open(chunk.sequence)
        found.append(runner.forward(chunks))
        for chunk in chunks:
            runner.close(chunk.sequence)
    assert float((found[0] - found[1]).abs().max()) <= TOLERANCE


@needs_accelerate
def test_an_idle_group_outlives_its_timeout(pair: Runner) -> None:
    """gloo's timeout counts for a follower that waits for work; without heartbeats it would leave."""
    time.sleep(TIMEOUT_S + 1)
    pair.open("idle")
    assert pair.forward([Chunk("idle", 0, [1, 2], 1)]).shape == (1, VOCAB_SIZE)
    pair.close("idle")


@needs_accelerate
def test_a_step_that_the_pool_refuses_leaves_the_ranks_in_step(alone: Runner, pair: Runner) -> None:
    pair.open("bad")
    with pytest.raises(ValueError, match="token id"):
        pair.forward([Chunk("bad", 0, [VOCAB_SIZE], 1)])
    pair.close("bad")
    assert greedy(pair, [9], num_tokens=2)[0] == greedy(alone, [9], num_tokens=2)[0]


@needs_accelerate
@pytest.mark.parametrize(
    ("sent", "said"),
    [(signal.SIGKILL, "lost rank 1"), pytest.param(signal.SIGSTOP, "silent", marks=pytest.mark.slow)],
)
def test_a_lost_rank_ends_the_group_within_seconds(
    pair: Runner, groups: list[Runner], sent: signal.Signals, said: str
) -> None:
    groups.clear()
    assert isinstance(pair._executor, Leader)
    process = process_of(pair)
    pair.open("a")
    pair.forward([Chunk("a", 0, [1, 2, 3], 0)])
    os.kill(process.pid, sent)
    began_s = time.monotonic()
    with pytest.raises(EngineLost, match=said):
        pair.forward([Chunk("a", 3, [4], 1)])
    assert time.monotonic() - began_s < TIMEOUT_S + 5
    assert process.returncode is not None
    assert pair.length("a") == 3
    with pytest.raises(EngineLost, match="has ended"):
        pair.forward([Chunk("a", 3, [4], 1)])
    pair.shutdown()
    assert said in str(pair.lost), "whoever owns the process must start another group"


@needs_accelerate
@pytest.mark.parametrize(
    ("sent", "said"),
    [(signal.SIGKILL, "lost rank 1"), pytest.param(signal.SIGSTOP, "silent", marks=pytest.mark.slow)],
)
def test_a_rank_that_is_lost_while_nothing_is_asked_is_noticed(
    pair: Runner, groups: list[Runner], sent: signal.Signals, said: str
) -> None:
    """A broadcast to a hung rank fits into the connection's buffers; only a meeting shows that nobody comes."""
    groups.clear()
    assert isinstance(pair._executor, Leader)
    process = process_of(pair)
    assert pair.lost is None
    os.kill(process.pid, sent)
    deadline_s = time.monotonic() + 2 * TIMEOUT_S + 10
    while pair.lost is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert said in pair.lost
    assert process.wait(timeout=10) is not None
    pair.shutdown()


@needs_accelerate
def test_shutdown_ends_the_followers_and_may_be_repeated(model_folder: Folders, pair: Runner) -> None:
    assert isinstance(pair._executor, Leader)
    process = process_of(pair)
    pair.shutdown()
    pair.shutdown()
    assert process.returncode == 0
    pair.open("late")
    with pytest.raises(EngineLost, match="shut down"):
        pair.forward([Chunk("late", 0, [1], 1)])


def test_a_follower_dies_when_the_leaders_end_of_its_pipe_closes(model_folder: Folders, tmp_path: Path) -> None:
    """However the leader dies, the system closes its pipes; this follower waits for a leader that never joins."""
    options = Options(
        folder=str(model_folder("Llama")),
        dtype="float32",
        device="cpu",
        max_num_tokens=64,
        kv_cache_bytes=1,
        block_size=16,
        max_model_len=None,
        tensor_parallel_size=2,
    )
    meeting = str(tmp_path / "store")
    follower = _Follower(1, {"options": asdict(options), "meeting": meeting, "timeout_s": 60.0})
    follower.wait_until_ready()
    assert follower.is_alive()
    assert follower._process.stdin is not None
    follower._process.stdin.close()
    assert follower._process.wait(timeout=10) == 1
    follower.end(0)


@needs_accelerate
def test_a_family_without_a_plan_or_with_experts_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    gpt2 = save_model(tmp_path / "gpt2", make_config("GPT2"))
    with pytest.raises(Unsupported, match="no plan for splitting gpt2 models"):
        Runner.load(str(gpt2), max_num_tokens=64, tensor_parallel_size=2)
    odd = save_model(tmp_path / "odd", make_config("Mixtral", intermediate_size=97))
    with pytest.raises(InvalidInput, match="97 values inside an expert"):
        Runner.load(str(odd), max_num_tokens=64, tensor_parallel_size=2)


@needs_accelerate
@pytest.mark.parametrize(("size", "heads"), [(3, "4 attention heads"), (4, "2 key-value heads")])
def test_heads_that_cannot_be_split_are_refused_before_any_process_starts(
    model_folder: Folders, size: int, heads: str
) -> None:
    with pytest.raises(InvalidInput, match=heads):
        Runner.load(str(model_folder("Llama")), tensor_parallel_size=size)
