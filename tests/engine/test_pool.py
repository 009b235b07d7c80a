"""The block pool alone, without a model."""

from __future__ import annotations

import random

import pytest

from paceline.engine.pool import BlockPool, Extension, PoolFull
from paceline.errors import InvalidInput, UnknownRequest


def test_a_lone_sequence_stays_one_consecutive_run() -> None:
    pool = BlockPool(num_blocks=8, block_size=4)
    pool.open("a")
    for end in range(1, 33):
        pool.extend([Extension("a", end - 1, end)])
    assert pool.blocks("a") == tuple(range(8))


def test_a_second_sequence_leaves_the_first_room_to_grow() -> None:
    pool = BlockPool(num_blocks=8, block_size=4)
    pool.open("a")
    pool.open("b")
    pool.extend([Extension("a", 0, 4), Extension("b", 0, 4)])
    pool.extend([Extension("a", 4, 16), Extension("b", 4, 12)])
    assert pool.blocks("a") == (0, 1, 2, 3)
    assert pool.blocks("b") == (4, 5, 6)


def test_a_full_pool_gives_any_block_that_is_left() -> None:
    pool = BlockPool(num_blocks=4, block_size=1)
    for sequence in "abcd":
        pool.open(sequence)
        pool.extend([Extension(sequence, 0, 1)])
    first, *_, last = sorted("abcd", key=lambda sequence: pool.blocks(sequence))
    pool.close(last)
    pool.extend([Extension(first, 1, 2)])
    assert pool.blocks(first) == (0, 3)
    pool.check_integrity()


def test_cutting_frees_whole_blocks_and_keeps_the_one_in_use() -> None:
    pool = BlockPool(num_blocks=4, block_size=4)
    pool.open("a")
    pool.extend([Extension("a", 0, 13)])
    pool.cut("a", 5)
    assert (pool.length("a"), pool.num_free_blocks) == (5, 2)
    pool.cut("a", 0)
    assert pool.num_free_blocks == 4
    pool.check_integrity()


def test_a_step_that_does_not_fit_changes_nothing() -> None:
    pool = BlockPool(num_blocks=4, block_size=4)
    for sequence in "ab":
        pool.open(sequence)
        pool.extend([Extension(sequence, 0, 6)])
    before = (pool.blocks("a"), pool.blocks("b"), pool.length("a"), pool.length("b"))
    with pytest.raises(PoolFull) as caught:
        pool.extend([Extension("a", 2, 3), Extension("b", 6, 17)])
    assert caught.value.num_missing_tokens == 8
    assert before == (pool.blocks("a"), pool.blocks("b"), pool.length("a"), pool.length("b"))
    pool.check_integrity()


def test_blocks_cut_from_one_sequence_serve_another_in_the_same_step() -> None:
    pool = BlockPool(num_blocks=4, block_size=4)
    pool.open("a")
    pool.open("b")
    pool.extend([Extension("a", 0, 16)])
    pool.extend([Extension("b", 0, 8), Extension("a", 4, 5)])
    assert (pool.length("a"), pool.length("b"), pool.num_free_blocks) == (5, 8, 0)
    pool.check_integrity()


def test_wrong_calls_are_named() -> None:
    pool = BlockPool(num_blocks=2, block_size=4)
    pool.open("a")
    with pytest.raises(InvalidInput, match="open already"):
        pool.open("a")
    with pytest.raises(UnknownRequest):
        pool.length("b")
    with pytest.raises(UnknownRequest):
        pool.extend([Extension("b", 0, 1)])
    with pytest.raises(ValueError, match="only 0 tokens are cached"):
        pool.extend([Extension("a", 1, 2)])
    pool.close("b")


def test_integrity_check_notices_a_leak() -> None:
    pool = BlockPool(num_blocks=4, block_size=4)
    pool.open("a")
    pool.extend([Extension("a", 0, 8)])
    pool._held["a"].blocks.pop()
    with pytest.raises(AssertionError):
        pool.check_integrity()


@pytest.mark.parametrize("seed", range(8))
def test_no_history_of_calls_breaks_the_pool(seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(num_blocks=rng.randint(1, 24), block_size=rng.choice([1, 3, 16]))
    lengths: dict[str, int] = {}
    for number in range(400):
        if rng.random() < 0.2:
            lengths[f"s{number}"] = 0
            pool.open(f"s{number}")
        if lengths and rng.random() < 0.15:
            gone = rng.choice(sorted(lengths))
            del lengths[gone]
            pool.close(gone)
        chosen = rng.sample(sorted(lengths), rng.randint(0, min(3, len(lengths))))
        wishes = []
        for sequence in chosen:
            start = rng.randint(0, lengths[sequence])
            wishes.append(Extension(sequence, start, start + rng.randint(0, 3 * pool.block_size)))
        try:
            pool.extend(wishes)
        except PoolFull:
            pass
        else:
            lengths |= {wish.sequence: wish.end for wish in wishes}
        pool.check_integrity()
        assert {sequence: pool.length(sequence) for sequence in pool.sequences} == lengths
    for sequence in list(lengths):
        pool.close(sequence)
    assert pool.num_free_blocks == pool.num_blocks
