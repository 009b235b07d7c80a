"""Prompts that begin alike."""

from __future__ import annotations

from coordinator.core.affinity import BLOCK, MAX_BLOCKS, Affinity, head_of

SYSTEM = tuple(range(100, 100 + 2 * BLOCK))


def test_a_head_names_full_blocks_by_all_that_stands_before_their_end() -> None:
    assert head_of(SYSTEM[: BLOCK - 1]) == ()
    assert len(head_of((*SYSTEM, 1))) == 2
    assert head_of(SYSTEM)[0] == head_of(SYSTEM[:BLOCK] + (7,) * BLOCK)[0]
    assert head_of(SYSTEM)[1] != head_of((7,) * BLOCK + SYSTEM[BLOCK:])[1]
    assert len(head_of((1,) * (BLOCK * (MAX_BLOCKS + 9)))) == MAX_BLOCKS


def test_the_longest_known_beginning_decides() -> None:
    affinity = Affinity()
    affinity.note(head_of(SYSTEM + (1,) * BLOCK), "one")
    affinity.note(head_of(SYSTEM + (2,) * BLOCK), "two")
    assert affinity.find(head_of(SYSTEM + (1,) * 2 * BLOCK)) == "one"
    assert affinity.find(head_of(SYSTEM + (3,) * BLOCK)) == "two", "what both share was given to this one last"
    assert affinity.find(head_of((9,) * BLOCK)) is None
    assert affinity.find(()) is None


def test_what_was_not_used_for_longest_is_forgotten() -> None:
    affinity = Affinity(max_heads=2)
    heads = [head_of((token,) * BLOCK) for token in range(3)]
    affinity.note(heads[0], "a")
    affinity.note(heads[1], "b")
    affinity.note(heads[0], "a")
    affinity.note(heads[2], "c")
    assert [affinity.find(head) for head in heads] == ["a", None, "c"]
    assert len(affinity) == 2
