"""Which worker has lately been given a prompt that begins alike, and so has its beginning in its cache.

Pure, and no more than a hint: what the worker still holds is its own business. A prompt's head is named block by
block, each name standing for all tokens up to the block's end, as in the workers' own prefix caches. Names are
Python's hashes of integers: two heads with the same name cost a detour, nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BLOCK = 32  # tokens; a beginning that is shorter is not worth a detour
MAX_BLOCKS = 64  # of a prompt: its first 2,048 tokens
MAX_HEADS = 16_384  # remembered a role, the longest unused one forgotten first; about two megabytes

Head = tuple[int, ...]


def head_of(token_ids: Sequence[int]) -> Head:
    """The names of a prompt's first full blocks, shortest beginning first."""
    names: list[int] = []
    for start in range(0, min(len(token_ids) // BLOCK, MAX_BLOCKS) * BLOCK, BLOCK):
        names.append(hash((names[-1] if names else 0, *token_ids[start : start + BLOCK])))
    return tuple(names)


class Affinity:
    """One role's."""

    def __init__(self, max_heads: int = MAX_HEADS) -> None:
        self._max_heads = max_heads
        self._worker_of: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._worker_of)

    def find(self, head: Head) -> str | None:
        """Who was given the longest known beginning of `head` last; that worker may have left since."""
        for name in reversed(head):
            if worker := self._worker_of.get(name):
                return worker
        return None

    def note(self, head: Head, worker: str) -> None:
        """`worker` is given a prompt that begins so."""
        for name in head:
            self._worker_of[name] = worker
            self._worker_of.move_to_end(name)
        while len(self._worker_of) > self._max_heads:
            self._worker_of.popitem(last=False)
