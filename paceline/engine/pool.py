"""Who owns which block of the paged KV pool: integers only, no tensor and no model.

Rules.
1. A block has at most one owner. `length` of a sequence never exceeds `len(blocks) * block_size`, and between
   two steps a sequence owns exactly the blocks that its length needs, so rollback is lowering an integer.
2. Every change passes through `open`, `extend`, `cut` or `close`.
3. `extend` takes all that a whole step needs or nothing.

Blocks are handed out so that a sequence stays **one consecutive run** for as long as possible: attention then
reads it as a view, without copying. A new sequence starts in the middle of the longest free run (at its
beginning if nobody grows into it), and a sequence grows into the block behind its last one. This is a
preference only; when the pool is nearly full any free block will do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from paceline.errors import InvalidInput, PacelineError, UnknownRequest

_FREE_RUN = re.compile(rb"\x01+")


class PoolFull(PacelineError):
    """The step needs more KV blocks than are free; nothing was changed."""

    def __init__(self, num_missing_tokens: int, max_num_tokens: int) -> None:
        super().__init__(f"kv pool of {max_num_tokens} tokens: {num_missing_tokens} too few are free; close a sequence")
        self.num_missing_tokens = num_missing_tokens


class Extension(NamedTuple):
    """One sequence's wish for a step: keep `start` cached tokens, then hold `end` (`start <= end`)."""

    sequence: str
    start: int
    end: int


@dataclass(slots=True)
class _Held:
    length: int = 0
    blocks: list[int] = field(default_factory=list)


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens, and the block table of every open sequence."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_size} tokens; both must be at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = bytearray(b"\x01" * num_blocks)  # 1 = free; bytes, so that a run is found at C speed
        self._num_free = num_blocks
        self._held: dict[str, _Held] = {}

    @property
    def num_free_blocks(self) -> int:
        return self._num_free

    @property
    def sequences(self) -> tuple[str, ...]:
        return tuple(self._held)

    def length(self, sequence: str) -> int:
        """Cached tokens of an open sequence."""
        return self._get(sequence).length

    def blocks(self, sequence: str) -> tuple[int, ...]:
        """The block table: token i lives in slot `blocks[i // block_size] * block_size + i % block_size`."""
        return tuple(self._get(sequence).blocks)

    def open(self, sequence: str) -> None:
        """Adds an empty sequence; it owns no block yet."""
        if sequence in self._held:
            raise InvalidInput("sequence", sequence, "is open already; close it first or choose another id")
        self._held[sequence] = _Held()

    def close(self, sequence: str) -> None:
        """Frees the sequence's blocks. Unknown ids are a no-op, because a close may be repeated."""
        held = self._held.pop(sequence, None)
        if held is not None:
            self._release(held.blocks)

    def cut(self, sequence: str, length: int) -> None:
        """Forgets everything cached beyond `length` tokens."""
        held = self._get(sequence)
        if not 0 <= length <= held.length:
            raise ValueError(f"cut of {sequence!r} to {length} tokens, but {held.length} are cached")
        held.length = length
        num_kept = self._blocks_for(length)
        self._release(held.blocks[num_kept:])
        del held.blocks[num_kept:]

    def extend(self, wishes: Sequence[Extension]) -> list[list[int]]:
        """Cuts and extends every sequence named, each at most once; their block tables in the wishes' order.

        Raises PoolFull, UnknownRequest or ValueError before anything has changed.
        """
        tables = [self._check(wish) for wish in wishes]
        num_missing = sum(
            self._blocks_for(wish.end) - len(held.blocks) for wish, held in zip(wishes, tables, strict=True)
        )
        if num_missing > self._num_free:
            raise PoolFull((num_missing - self._num_free) * self.block_size, self.num_blocks * self.block_size)
        for wish, held in zip(wishes, tables, strict=True):
            if held.length > wish.start:  # every cut first: their blocks may be what the others need
                self.cut(wish.sequence, wish.start)
        for wish, held in zip(wishes, tables, strict=True):
            for _ in range(self._blocks_for(wish.end) - len(held.blocks)):
                held.blocks.append(self._take(held.blocks[-1] if held.blocks else None))
            held.length = wish.end
        return [held.blocks for held in tables]

    def check_integrity(self) -> None:
        """Raises AssertionError if a block is leaked, owned twice, or owned without need."""
        owned: list[int] = []
        for sequence, held in self._held.items():
            num_needed = self._blocks_for(held.length)
            assert len(held.blocks) == num_needed, f"{sequence!r} owns {len(held.blocks)} blocks"
            owned += held.blocks
        assert len(owned) == len(set(owned)), "a block is owned twice"
        assert all(not self._free[block] for block in owned), "a block is owned and free"
        assert self._num_free == sum(self._free), "the count of free blocks is wrong"
        assert len(owned) + self._num_free == self.num_blocks, "a block is leaked"

    def _check(self, wish: Extension) -> _Held:
        held = self._get(wish.sequence)
        if not 0 <= wish.start <= held.length:
            raise ValueError(f"{wish.sequence!r} starts at {wish.start}, but only {held.length} tokens are cached")
        if wish.end < wish.start:
            raise ValueError(f"{wish.sequence!r} ends at {wish.end}, before its start {wish.start}")
        return held

    def _get(self, sequence: str) -> _Held:
        held = self._held.get(sequence)
        if held is None:
            raise UnknownRequest(sequence)
        return held

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _release(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._free[block] = 1
        self._num_free += len(blocks)

    def _take(self, last: int | None) -> int:
        """A free block: the one behind `last` if possible. The caller has checked that one is free."""
        block = None if last is None else last + 1
        if block is None or block >= self.num_blocks or not self._free[block]:
            block = self._new_run()
        self._free[block] = 0
        self._num_free -= 1
        return block

    def _new_run(self) -> int:
        """Where a sequence without a successor block goes on: see the head of the file."""
        longest = max(_FREE_RUN.finditer(self._free), key=lambda run: run.end() - run.start())
        if longest.start() == 0:
            return 0
        return longest.start() + (longest.end() - longest.start()) // 2
