"""Which full blocks hold which tokens: the part of the pool that lets sequences share what they have in common.

A full block is known by a digest over all tokens from the sequence's start to the block's end, chained block by
block, so one look-up a block finds the longest common prefix. The digest is cryptographic and salted with what else
the keys depend on (the model): a match is taken for equality.

A known block is either *held* by one or more sequences, or *idle*: nobody holds it, and it is given up when room is
wanted, the one that was left longest ago first.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """Since the start: tokens that new sequences could at best have found cached, and those that they found."""

    num_queried_tokens: int = 0
    num_hit_tokens: int = 0


class PrefixCache:
    """Digests of full blocks, and the idle blocks in the order in which they were left."""

    def __init__(self, block_size: int, salt: str = "") -> None:
        self._block_size = block_size
        self._root = blake2b(salt.encode(), digest_size=16).digest()
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}  # the inverse
        self._idle: dict[int, None] = {}  # a set that remembers its order; subset of the known blocks

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def digest(self, previous: bytes | None, token_ids: Sequence[int]) -> bytes:
        """The digest of a full block whose predecessor has the digest `previous` (None: it is the first)."""
        return blake2b(array("q", token_ids), digest_size=16, key=previous or self._root).digest()

    def find(self, token_ids: Sequence[int], max_num_blocks: int) -> Iterator[tuple[int, bytes]]:
        """The known blocks (and digests) of the longest prefix of `token_ids`, at most `max_num_blocks`."""
        size, digest = self._block_size, None
        for first in range(0, min(max_num_blocks, len(token_ids) // size) * size, size):
            digest = self.digest(digest, token_ids[first : first + size])
            block = self._block_of.get(digest)
            if block is None:
                return
            yield block, digest

    def register(self, block: int, digest: bytes) -> None:
        """`block` holds these tokens now. Where another block does already, that one stays the known one."""
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def forget(self, block: int) -> None:
        """`block` is about to be written, or given up."""
        digest = self._digest_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
            self._idle.pop(block, None)

    def knows(self, block: int) -> bool:
        return block in self._digest_of

    def is_idle(self, block: int) -> bool:
        return block in self._idle

    def leave(self, block: int) -> bool:
        """Its last holder has gone: True if the block is kept as idle, False if nothing is known about it."""
        if block in self._digest_of:
            self._idle[block] = None
            return True
        return False

    def revive(self, block: int) -> None:
        """An idle block is held again."""
        self._idle.pop(block, None)

    def oldest_idle(self) -> int:
        return next(iter(self._idle))

    def check_integrity(self) -> None:
        """Raises AssertionError if the maps disagree."""
        assert {block: digest for digest, block in self._block_of.items()} == self._digest_of, "digests disagree"
        assert all(block in self._digest_of for block in self._idle), "an idle block is unknown"
