"""Who holds which block of the paged KV pool: integers only, no tensor and no model.

Rules.
1. A block is free, idle (cached, held by nobody) or held. `length` of a sequence never exceeds
   `len(blocks) * block_size`, and between two steps a sequence holds exactly the blocks that its length needs, so
   rollback is lowering an integer.
2. Every change passes through `open`, `adopt`, `extend`, `record`, `cut` or `close`.
3. `extend` takes all that a whole step needs or nothing.
4. Only full blocks are shared, and a block that two sequences hold is never written. A sequence that was rolled back
   into the middle of one leaves it first (`writable_start`); nothing is ever copied.
5. What a cut frees is free, because it was rejected; what a close frees stays cached as idle (`prefix.py`).

Blocks are handed out so that a sequence stays **one consecutive run** for as long as possible: attention then
reads it as a view, without copying. A new sequence starts in the middle of the longest free run (at its
beginning if nobody grows into it), after enough of the oldest idle blocks are given up to make one; and a sequence
grows into the block behind its last one, idle or free. This is a preference only; when the pool is nearly full any
block will do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from paceline.engine.prefix import PrefixCache, PrefixStats
from paceline.errors import InvalidInput, PacelineError, UnknownRequest

_FREE_RUN = re.compile(rb"\x01+")


class PoolFull(PacelineError):
    """The step needs more KV blocks than are free; nothing was changed."""

    def __init__(self, num_missing_tokens: int, max_num_tokens: int) -> None:
        super().__init__(f"kv pool of {max_num_tokens} tokens: {num_missing_tokens} too few are free; close a sequence")
        self.num_missing_tokens = num_missing_tokens
        self.max_num_tokens = max_num_tokens


class Extension(NamedTuple):
    """One sequence's wish for a step: keep `start` cached tokens, then hold `end` (`start <= end`)."""

    sequence: str
    start: int
    end: int


@dataclass(slots=True)
class _Held:
    length: int = 0
    blocks: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)  # what is cached, as far as `record` was told
    digests: list[bytes] = field(default_factory=list)  # of the full blocks among them
    was_queried: bool = False


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens, and the block table of every open sequence."""

    def __init__(self, num_blocks: int, block_size: int, *, salt: str = "", prefix_caching: bool = True) -> None:
        """`salt`: whatever else the keys depend on; sequences share blocks within one pool only."""
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_size} tokens; both must be at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = bytearray(b"\x01" * num_blocks)  # 1 = free; bytes, so that a run is found at C speed
        self._num_free = num_blocks
        self._num_holders = [0] * num_blocks
        self._held: dict[str, _Held] = {}
        self._prefix = PrefixCache(block_size, salt) if prefix_caching else None
        self._num_queried = 0
        self._num_hits = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that a step may take: the free ones, and the idle ones that would be given up for it."""
        return self._num_free + (self._prefix.num_idle if self._prefix else 0)

    @property
    def prefix_stats(self) -> PrefixStats:
        return PrefixStats(self._num_queried, self._num_hits)

    @property
    def sequences(self) -> tuple[str, ...]:
        return tuple(self._held)

    def length(self, sequence: str) -> int:
        """Cached tokens of an open sequence."""
        return self._get(sequence).length

    def blocks(self, sequence: str) -> tuple[int, ...]:
        """The block table: token i lives in slot `blocks[i // block_size] * block_size + i % block_size`."""
        return tuple(self._get(sequence).blocks)

    def num_owned_blocks(self, sequence: str) -> int:
        """Blocks that only this sequence holds: what closing it makes room for."""
        return sum(self._num_holders[block] == 1 for block in self._get(sequence).blocks)

    def open(self, sequence: str) -> None:
        """Adds an empty sequence; it holds no block yet."""
        if sequence in self._held:
            raise InvalidInput("sequence", sequence, "is open already; close it first or choose another id")
        self._held[sequence] = _Held()

    def adopt(self, sequence: str, token_ids: Sequence[int]) -> int:
        """Takes over the known blocks of the longest prefix of `token_ids`; how many tokens they hold.

        At least one token is left to forward, since somebody wants its row. A sequence that holds something already
        takes over nothing, 0.
        """
        held = self._get(sequence)
        if self._prefix is None or held.length or not token_ids:
            return 0
        if not held.was_queried:
            held.was_queried = True
            self._num_queried += len(token_ids) - 1
        for block, digest in self._prefix.find(token_ids, (len(token_ids) - 1) // self.block_size):
            self._prefix.revive(block)
            self._num_holders[block] += 1
            held.blocks.append(block)
            held.digests.append(digest)
        held.length = len(held.blocks) * self.block_size
        held.token_ids = list(token_ids[: held.length])
        self._num_hits += held.length
        return held.length

    def close(self, sequence: str) -> None:
        """Lets go of the sequence's blocks; unknown ids are a no-op, because a close may be repeated."""
        held = self._held.pop(sequence, None)
        if held is not None:
            # From the end, so that a prefix outlives what needs it.
            self._release(held.blocks[::-1], keep=True)

    def cut(self, sequence: str, length: int) -> None:
        """Forgets everything cached beyond `length` tokens."""
        held = self._get(sequence)
        if not 0 <= length <= held.length:
            raise ValueError(f"cut of {sequence!r} to {length} tokens, but {held.length} are cached")
        held.length = length
        num_kept = self._blocks_for(length)
        self._release(held.blocks[num_kept:], keep=False)
        del held.blocks[num_kept:]
        del held.token_ids[length:]
        del held.digests[length // self.block_size :]

    def writable_start(self, sequence: str, start: int) -> tuple[int, list[int]]:
        """Where writing from `start` on has to begin, and the cached tokens from there to `start`.

        That is `start` itself, unless it lies in the middle of a block that others hold too.
        """
        held, offset = self._get(sequence), start % self.block_size
        if not offset or start > held.length or self._num_holders[held.blocks[start // self.block_size]] == 1:
            return start, []
        return start - offset, held.token_ids[start - offset : start]

    def extend(self, wishes: Sequence[Extension]) -> list[list[int]]:
        """Cuts and extends every sequence named, each at most once; their block tables in the wishes' order.

        Raises PoolFull, UnknownRequest or ValueError before anything has changed.
        """
        tables = [self._check(wish) for wish in wishes]
        num_missing = self._num_missing(wishes, tables)
        if num_missing > 0:
            raise PoolFull(num_missing * self.block_size, self.num_blocks * self.block_size)
        for wish, held in zip(wishes, tables, strict=True):
            if held.length > wish.start:  # every cut first: their blocks may be what the others need
                self.cut(wish.sequence, wish.start)
        for wish, held in zip(wishes, tables, strict=True):
            if self._prefix and wish.end > wish.start and wish.start % self.block_size:
                self._prefix.forget(held.blocks[-1])  # full once, and cut since: what it is known for is overwritten
            self._grow(held, self._blocks_for(wish.end) - len(held.blocks))
            held.length = wish.end
        return [held.blocks for held in tables]

    def record(self, sequence: str, start: int, token_ids: Sequence[int]) -> None:
        """These tokens' keys are in the pool from `start` on: blocks that they fill are known from now on."""
        held = self._get(sequence)
        if self._prefix is None or len(held.token_ids) != start:
            return
        held.token_ids += token_ids
        size = self.block_size
        for index in range(len(held.digests), len(held.token_ids) // size):
            previous = held.digests[-1] if held.digests else None
            digest = self._prefix.digest(previous, held.token_ids[index * size : (index + 1) * size])
            held.digests.append(digest)
            self._prefix.register(held.blocks[index], digest)

    def check_integrity(self) -> None:
        """Raises AssertionError if a block is leaked, miscounted, shared unlawfully, or held without need."""
        holders: Counter[int] = Counter()
        for sequence, held in self._held.items():
            num_needed = self._blocks_for(held.length)
            assert len(held.blocks) == num_needed == len(set(held.blocks)), f"{sequence!r} holds {held.blocks}"
            assert len(held.token_ids) <= held.length, f"{sequence!r} records more than it caches"
            assert len(held.digests) == len(held.token_ids) // self.block_size, f"{sequence!r} lacks digests"
            holders.update(held.blocks)
        assert self._num_holders == [holders[block] for block in range(self.num_blocks)], "holders are miscounted"
        idle = {block for block in range(self.num_blocks) if self._prefix and self._prefix.is_idle(block)}
        free = {block for block in range(self.num_blocks) if self._free[block]}
        assert not free & holders.keys(), "a block is held and free"
        assert not idle & holders.keys(), "a block is held and idle"
        assert not free & idle, "a block is free and idle"
        assert self._num_free == len(free), "the count of free blocks is wrong"
        assert len(free) + len(idle) + len(holders) == self.num_blocks, "a block is leaked"
        if self._prefix:
            self._prefix.check_integrity()
            shared = [block for block, count in holders.items() if count > 1]
            assert all(self._prefix.knows(block) for block in shared), "a block is shared that nobody knows"
            assert not any(self._prefix.knows(block) for block in free), "a free block is known"
        else:
            assert not any(count > 1 for count in holders.values()), "a block is held twice"

    def _check(self, wish: Extension) -> _Held:
        held = self._get(wish.sequence)
        if not 0 <= wish.start <= held.length:
            raise ValueError(f"{wish.sequence!r} starts at {wish.start}, but only {held.length} tokens are cached")
        if wish.end < wish.start:
            raise ValueError(f"{wish.sequence!r} ends at {wish.end}, before its start {wish.start}")
        if wish.end > wish.start and self.writable_start(wish.sequence, wish.start)[0] < wish.start:
            raise ValueError(f"{wish.sequence!r} starts at {wish.start}, in the middle of a block that others hold")
        return held

    def _num_missing(self, wishes: Sequence[Extension], tables: Sequence[_Held]) -> int:
        """Blocks that the wishes take beyond those that are there or that their own cuts free."""
        num_taken = 0
        dropped: list[int] = []
        for wish, held in zip(wishes, tables, strict=True):
            num_kept = self._blocks_for(wish.start)
            num_taken += self._blocks_for(wish.end) - num_kept
            dropped += held.blocks[num_kept:]
        num_freed = sum(self._num_holders[block] == count for block, count in Counter(dropped).items())
        return num_taken - num_freed - self.num_free_blocks

    def _get(self, sequence: str) -> _Held:
        held = self._held.get(sequence)
        if held is None:
            raise UnknownRequest(sequence)
        return held

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _release(self, blocks: Sequence[int], *, keep: bool) -> None:
        """One holder fewer. Blocks without any are idle if `keep` and they are known, else free."""
        for block in blocks:
            self._num_holders[block] -= 1
            if self._num_holders[block]:
                continue
            if self._prefix and keep and self._prefix.leave(block):
                continue
            self._set_free(block)

    def _set_free(self, block: int) -> None:
        if self._prefix:
            self._prefix.forget(block)
        self._free[block] = 1
        self._num_free += 1

    def _grow(self, held: _Held, num_blocks: int) -> None:
        for number in range(num_blocks):
            self._make_room(held.blocks[-1] if held.blocks else None, num_blocks - number)
            block = self._take(held.blocks[-1] if held.blocks else None, num_blocks - number)
            self._num_holders[block] = 1
            held.blocks.append(block)

    def _make_room(self, last: int | None, num_wanted: int) -> None:
        """Gives idle blocks up where that keeps a sequence in one run of `num_wanted` more blocks.

        The block behind the last one is worth more than what it caches. Elsewhere the oldest go, until a run is long
        enough or four times as many blocks are free as are wanted: more would empty the cache for little.
        """
        if self._prefix is None or not self._prefix.num_idle:
            return
        following = None if last is None else last + 1
        if following is not None and following < self.num_blocks:
            if self._prefix.is_idle(following):
                self._set_free(following)
            if self._free[following]:
                return
        while self._prefix.num_idle and self._num_free < 4 * num_wanted:
            num_short = num_wanted - self._longest_run()[1]
            if num_short <= 0:
                return
            for _ in range(min(num_short, self._prefix.num_idle)):
                self._set_free(self._prefix.oldest_idle())

    def _take(self, last: int | None, num_wanted: int) -> int:
        """A free block: the one behind `last` if possible, else one where `num_wanted` fit if possible.

        The caller has checked that one is free.
        """
        block = None if last is None else last + 1
        if block is None or block >= self.num_blocks or not self._free[block]:
            block = self._new_run(num_wanted)
        self._free[block] = 0
        self._num_free -= 1
        return block

    def _new_run(self, num_wanted: int) -> int:
        """Where a sequence without a successor block goes on: see the head of the file."""
        first, length = self._longest_run()
        return first and first + min(length // 2, max(0, length - num_wanted))

    def _longest_run(self) -> tuple[int, int]:
        """(first block, length) of the longest free run; length 0 if no block is free."""
        runs = (run.span() for run in _FREE_RUN.finditer(self._free))
        first, end = max(runs, key=lambda span: span[1] - span[0], default=(0, 0))
        return first, end - first
