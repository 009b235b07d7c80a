"""Sequences that share blocks: in the pool against a naive memory, and through the runner against plain forwards."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from paceline.engine.pool import BlockPool, Extension, PoolFull
from paceline.engine.runner import Chunk, PrefixStats, Runner
from tests.engine.conftest import VOCAB_SIZE

Folders = Callable[[str], Path]
TOLERANCE = 2e-6


class Memory:
    """A pool with what is written into its slots: each the whole prefix that its keys depend on."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.texts: dict[str, list[int]] = {}
        self._slots: dict[int, tuple[int, ...]] = {}

    def open(self, sequence: str, token_ids: list[int]) -> int:
        self.pool.open(sequence)
        num_cached = self.pool.adopt(sequence, token_ids)
        assert num_cached % self.pool.block_size == 0
        assert num_cached < max(1, len(token_ids))
        self.texts[sequence] = token_ids[:num_cached]
        return num_cached

    def write(self, sequence: str, start: int, token_ids: list[int]) -> None:
        """As the runner does it. Raises PoolFull."""
        if token_ids:
            start, again = self.pool.writable_start(sequence, start)
            token_ids = again + token_ids
        (blocks,) = self.pool.extend([Extension(sequence, start, start + len(token_ids))])
        text = self.texts[sequence] = self.texts[sequence][:start] + token_ids
        for position in range(start, len(text)):
            self._slots[self._slot(blocks, position)] = tuple(text[: position + 1])
        self.pool.record(sequence, start, token_ids)

    def close(self, sequence: str) -> None:
        self.pool.close(sequence)
        del self.texts[sequence]

    def check(self) -> None:
        self.pool.check_integrity()
        for sequence, text in self.texts.items():
            blocks = list(self.pool.blocks(sequence))
            assert self.pool.length(sequence) == len(text)
            for position in range(len(text)):
                found = self._slots[self._slot(blocks, position)]
                assert found == tuple(text[: position + 1]), f"{sequence} at {position}"

    def _slot(self, blocks: list[int], position: int) -> int:
        size = self.pool.block_size
        return blocks[position // size] * size + position % size


def test_a_prompt_seen_before_is_found_but_for_its_last_token() -> None:
    memory = Memory(num_blocks=16, block_size=4)
    text = list(range(12))
    assert memory.open("a", text) == 0
    memory.write("a", 0, text)
    assert memory.open("b", text) == 8, "the third block holds the token that must be forwarded"
    assert memory.open("c", [*text, 99]) == 12
    assert memory.open("d", [0, 1, 2, 3, 9, 9, 9, 9, 8]) == 4
    assert memory.open("e", [9, *text]) == 0
    assert memory.pool.blocks("b") == memory.pool.blocks("a")[:2], "shared, not copied"
    assert memory.pool.prefix_stats == PrefixStats(11 + 11 + 12 + 8 + 12, 24)
    memory.check()


def test_blocks_of_a_closed_sequence_stay_until_room_is_wanted() -> None:
    memory = Memory(num_blocks=4, block_size=2)
    for name in ("old", "new"):
        text = [ord(name[0]), 1, 2, 3]
        memory.open(name, text)
        memory.write(name, 0, text)
        memory.close(name)
    assert memory.pool.num_free_blocks == 4
    memory.open("b", [7, 7])
    memory.write("b", 0, [7, 7])
    assert memory.open("again", [ord("n"), 1, 2, 3, 4]) == 4, "the sequence that was left last is still there"
    assert memory.open("too old", [ord("o"), 1, 2, 3, 4]) == 2, "its end went first"
    memory.check()


def test_a_sequence_that_goes_on_alone_stays_one_run() -> None:
    """Turn after turn of one conversation: attention reads it as a view, however much is cached."""
    memory = Memory(num_blocks=32, block_size=2)
    text = [1, 2, 3]
    for turn in range(8):
        start = memory.open(f"turn {turn}", text)
        assert start >= len(text) - 4
        memory.write(f"turn {turn}", start, text[start:])
        blocks = memory.pool.blocks(f"turn {turn}")
        assert blocks == tuple(range(blocks[0], blocks[0] + len(blocks)))
        memory.close(f"turn {turn}")
        text += [turn, 5, 6]
        memory.check()


def test_unrelated_prompts_one_after_another_stay_runs_although_the_cache_is_full() -> None:
    memory = Memory(num_blocks=32, block_size=2)
    for number in range(40):
        text = [number, *range(2 * (number % 9) + 1)]
        memory.write("a", memory.open("a", text), text)
        blocks = memory.pool.blocks("a")
        assert blocks == tuple(range(blocks[0], blocks[0] + len(blocks))), number
        memory.close("a")
        memory.check()


def test_a_rollback_into_a_shared_block_leaves_the_others_alone() -> None:
    memory = Memory(num_blocks=8, block_size=4)
    text = list(range(8))
    memory.open("a", text)
    memory.write("a", 0, text)
    memory.open("b", [*text, 8])
    memory.write("a", 6, [60, 61, 62])
    memory.check()
    assert memory.pool.blocks("a")[0] == memory.pool.blocks("b")[0]
    assert memory.pool.blocks("a")[1] != memory.pool.blocks("b")[1]
    with pytest.raises(ValueError, match="that others hold"):
        memory.pool.extend([Extension("b", 2, 3)])


def test_what_is_overwritten_is_not_found_any_more() -> None:
    memory = Memory(num_blocks=8, block_size=4)
    text = list(range(8))
    memory.open("a", text)
    memory.write("a", 0, text)
    memory.write("a", 6, [60])
    assert memory.open("b", [*text, 8]) == 4
    memory.check()


def test_pools_with_another_salt_have_nothing_in_common() -> None:
    digests = set()
    for salt in ("one", "two"):
        pool = BlockPool(4, 2, salt=salt)
        assert pool._prefix is not None
        digests.add(pool._prefix.digest(None, [1, 2]))
    assert len(digests) == 2


def test_integrity_check_notices_a_miscounted_holder() -> None:
    memory = Memory(num_blocks=4, block_size=2)
    memory.open("a", [1, 2, 3])
    memory.write("a", 0, [1, 2, 3])
    memory.open("b", [1, 2, 3])
    memory.pool._num_holders[memory.pool.blocks("a")[0]] -= 1
    with pytest.raises(AssertionError, match="miscounted"):
        memory.pool.check_integrity()


@pytest.mark.parametrize("seed", range(24))
def test_no_history_of_shared_prefixes_corrupts_a_sequence(seed: int) -> None:
    rng = random.Random(seed)
    memory = Memory(num_blocks=rng.randint(2, 24), block_size=rng.choice([1, 2, 3, 5]))
    size, num_hits = memory.pool.block_size, 0
    for number in range(250):
        try:
            if rng.random() < 0.3 and len(memory.texts) < 5:
                prompt = [0] * rng.randint(0, 6 * size) + [rng.randint(0, 1) for _ in range(rng.randint(1, size))]
                num_hits += memory.open(f"s{number}", prompt)
                memory.write(f"s{number}", len(memory.texts[f"s{number}"]), prompt[len(memory.texts[f"s{number}"]) :])
            elif memory.texts and rng.random() < 0.2:
                memory.close(rng.choice(sorted(memory.texts)))
            elif memory.texts:
                sequence = rng.choice(sorted(memory.texts))
                start = rng.randint(max(0, len(memory.texts[sequence]) - 2 * size), len(memory.texts[sequence]))
                memory.write(sequence, start, [rng.randint(0, 1) for _ in range(rng.randint(0, size))])
        except PoolFull:
            if memory.texts and rng.random() < 0.5:
                memory.close(rng.choice(sorted(memory.texts)))
        memory.check()
    for sequence in list(memory.texts):
        memory.close(sequence)
    memory.check()
    assert memory.pool.num_free_blocks == memory.pool.num_blocks


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2"])
def test_logits_over_shared_blocks_equal_those_without_a_cache(model_folder: Folders, architecture: str) -> None:
    folder = str(model_folder(architecture))
    plain = Runner.load(folder, max_num_tokens=640, block_size=8, prefix_caching=False)
    cached = Runner.load(folder, max_num_tokens=640, block_size=8)
    rng = random.Random(3)
    system = [rng.randrange(VOCAB_SIZE) for _ in range(40)]
    for number in range(4):
        prompt = system + [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 30))]
        assert plain.open(f"s{number}", prompt) == 0
        expected = plain.forward([Chunk(f"s{number}", 0, prompt, 1)])
        start = cached.open(f"s{number}", prompt)
        assert start == (40 if number else 0)
        found = cached.forward([Chunk(f"s{number}", start, prompt[start:], 1)])
        assert float((found - expected).abs().max() / expected.abs().max()) <= TOLERANCE
        cached.check_integrity()
    # Wrong drafts and a rollback into what all of them share, while the others go on.
    chunks = [Chunk("s0", 36, [7, 8, 9], 3), Chunk("s1", cached.length("s1"), [5], 1)]
    expected, found = plain.forward(chunks), cached.forward(chunks)
    assert float((found - expected).abs().max() / expected.abs().max()) <= TOLERANCE
    chunks = [Chunk(f"s{number}", cached.length(f"s{number}"), [3, 4], 2) for number in range(4)]
    expected, found = plain.forward(chunks), cached.forward(chunks)
    assert float((found - expected).abs().max() / expected.abs().max()) <= TOLERANCE
    cached.check_integrity()
    assert cached.prefix_stats.num_hit_tokens == 120
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
