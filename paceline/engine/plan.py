"""The plain integers of one step: what every rank of a tensor parallel group needs to know, and nothing else.

A plan is built by the rank that serves, from the caller's chunks and the pool's block tables, and is the one
thing that is sent to the other ranks (`pack`/`unpack`, msgpack). Whatever can be derived from it (positions,
write slots, masks) is derived where it is used, in `step.py`.

Tokens are not in the chunks' order: short chunks come first, and among them those with the fewest keys, so that
those worth batching are neighbours and their queries a slice. `rows` puts the logits back into the caller's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgpack

from paceline.errors import PeerFault

# A draft under test is a handful of tokens; padding such chunks to a common length costs little. A longer
# chunk is a prefill and is attended to alone.
MAX_BATCHED_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens to forward for one sequence.

    sequence: id of an open sequence, at most once in a step.
    start: cached tokens to keep; anything beyond is cut first, so rollback is naming a smaller start.
    token_ids: forwarded at positions start, start + 1, ...
    num_rows: logits wanted for the last `num_rows` of these tokens (0: a prefill chunk, none).
    """

    sequence: str
    start: int
    token_ids: Sequence[int]
    num_rows: int


class Span(NamedTuple):
    """One chunk's place in the step: `num_tokens` queries at positions from `start`, and the sequence's block
    table.

    `blocks` covers positions 0 to start + num_tokens - 1. The queries of span i+1 follow those of span i.
    """

    start: int
    num_tokens: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """token_ids: [num_tokens] of all spans; rows: [num_rows] indices into them whose logits are wanted."""

    token_ids: list[int]
    rows: list[int]
    spans: list[Span]

    def pack(self) -> bytes:
        """The plan as msgpack."""
        packed: bytes = msgpack.packb((self.token_ids, self.rows, self.spans))
        return packed

    @classmethod
    def unpack(cls, payload: bytes) -> StepPlan:
        """The inverse of `pack`. Raises PeerFault for what is no plan; its numbers are the leader's and believed."""
        try:
            token_ids, rows, spans = msgpack.unpackb(payload)
            tables = [Span(start, count, tuple(blocks)) for start, count, blocks in spans]
        except (TypeError, ValueError, msgpack.UnpackException) as error:
            raise PeerFault(f"a step plan is malformed: {error or type(error).__name__}") from None
        return cls(token_ids, rows, tables)


def build(chunks: Sequence[Chunk], tables: Sequence[Sequence[int]]) -> StepPlan:
    """The plan of non-empty `chunks`, whose sequences have the block `tables` after the step."""
    order: Sequence[int] = range(len(chunks))
    if len(chunks) > 1:
        order = sorted(order, key=lambda index: _place(chunks[index]))
    token_ids: list[int] = []
    spans: list[Span] = []
    ends = [0] * len(chunks)
    for index in order:
        chunk = chunks[index]
        token_ids.extend(chunk.token_ids)
        ends[index] = len(token_ids)
        spans.append(Span(chunk.start, len(chunk.token_ids), tuple(tables[index])))
    rows: list[int] = []
    for chunk, end in zip(chunks, ends, strict=True):
        rows.extend(range(end - chunk.num_rows, end))
    return StepPlan(token_ids, rows, spans)


def _place(chunk: Chunk) -> tuple[bool, int]:
    count = len(chunk.token_ids)
    return count > MAX_BATCHED_TOKENS, chunk.start + count
