"""One step on one device: a plan as tensors, and the attention over the paged KV that every layer runs.

Shapes: B sequences, T queries each, L keys each, H heads, G = H / KV queries per kv head, D head size.
`KVStore.keys` is [num_layers, KV, num_slots, D]: slots of a head are neighbours, which makes the scores of a
long sequence a quarter faster on a CPU than slots-first does.

Two forms of the same attention, each chosen by what the spans look like:

- `_Run`: one sequence whose blocks are consecutive. Keys are a *view* of the pool, nothing is gathered.
- `_Batch`: any sequences, padded to [B, T] queries and [B, L] keys; one gather and one call a layer.

Both fold the G query heads of a kv head into the query axis, so keys are never repeated and one [G*T, L] mask
serves all heads; a lone decode token needs no mask at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from paceline.engine.plan import MAX_BATCHED_TOKENS, Span, StepPlan


@dataclass(frozen=True, slots=True)
class KVStore:
    """The pool's memory on one rank. keys: [num_layers, KV, num_slots, D]; values alike, D may differ."""

    keys: torch.Tensor
    values: torch.Tensor
    block_size: int
    max_batched_bytes: float
    """Keys and values of a sequence in one layer up to which it is batched with others: few kernels for many
    sequences against a copy of their keys. Infinite where kernels are dear."""

    @property
    def block_bytes(self) -> int:
        """Keys and values of one block in one layer."""
        row_size = self.keys.shape[1] * (self.keys.shape[3] + self.values.shape[3])
        return row_size * self.block_size * self.keys.element_size()


class _Reads(NamedTuple):
    """What a group's queries attend to under one window. keys, values: [B, KV, L, D] for each layer."""

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    mask: torch.Tensor | None
    is_causal: bool


class _Group(Protocol):
    num_tokens: int

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor: ...


class Step:
    """The tensors of a step. One instance serves one forward pass, all layers."""

    def __init__(self, plan: StepPlan, store: KVStore, heads_per_kv: int) -> None:
        """`heads_per_kv`: G on this rank."""
        self._groups = _group(plan.spans, store, heads_per_kv)
        self._only = self._groups[0] if len(self._groups) == 1 else None

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Stores this step's key and value, then attends. query: [1, H, tokens, D] -> [1, tokens, H, D]."""
        if self._only is not None:
            return self._only.attend(layer, query, key, value, scaling, window, softcap)
        outputs, first = [], 0
        for group in self._groups:
            own = slice(first, first + group.num_tokens)
            outputs.append(
                group.attend(layer, query[:, :, own], key[:, :, own], value[:, :, own], scaling, window, softcap)
            )
            first += group.num_tokens
        return torch.cat(outputs, dim=1)


def _group(spans: Sequence[Span], store: KVStore, heads_per_kv: int) -> list[_Group]:
    """Groups in the order of the spans, because a group's queries are a slice of the step's tokens."""
    num_batched = 0
    if len(spans) > 1:
        max_blocks = store.max_batched_bytes / store.block_bytes
        while num_batched < len(spans) and _is_batched(spans[num_batched], max_blocks):
            num_batched += 1
    if num_batched == 1:
        num_batched = 0
    groups: list[_Group] = []
    if num_batched:
        groups.append(_Batch(spans[:num_batched], store, heads_per_kv))
    for span in spans[num_batched:]:
        is_run = _is_consecutive(span.blocks)
        groups.append(_Run(span, store, heads_per_kv) if is_run else _Batch([span], store, heads_per_kv))
    return groups


def _is_batched(span: Span, max_blocks: float) -> bool:
    return span.num_tokens <= MAX_BATCHED_TOKENS and len(span.blocks) <= max_blocks


def _is_consecutive(blocks: Sequence[int]) -> bool:
    first, count = blocks[0], len(blocks)
    return blocks[-1] == first + count - 1 and tuple(blocks) == tuple(range(first, first + count))


class _Run:
    """One sequence in consecutive slots."""

    def __init__(self, span: Span, store: KVStore, heads_per_kv: int) -> None:
        self.num_tokens = span.num_tokens
        self._start = span.start
        self._end = span.start + span.num_tokens
        self._heads_per_kv = heads_per_kv
        self._store = store
        self._first_slot = span.blocks[0] * store.block_size
        new = slice(self._first_slot + self._start, self._first_slot + self._end)
        # Views of all layers at once: making one costs about as much as copying a token's key.
        self._new_keys = store.keys[:, :, new].unbind()
        self._new_values = store.values[:, :, new].unbind()
        self._reads: dict[int | None, _Reads] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        self._new_keys[layer].copy_(key[0])
        self._new_values[layer].copy_(value[0])
        reads = self._reads.get(window)
        if reads is None:
            reads = self._reads[window] = self._read(window, query.dtype)
        return _attend(query, layer, reads, self._heads_per_kv, scaling, softcap)

    def _read(self, window: int | None, dtype: torch.dtype) -> _Reads:
        """Views of the keys that some query of this span can see, and the mask among them if needed."""
        start, end = self._start, self._end
        first = 0 if window is None else max(0, start - window + 1)
        slots = slice(self._first_slot + first, self._first_slot + end)
        keys = self._store.keys[:, None, :, slots].unbind()
        values = self._store.values[:, None, :, slots].unbind()
        if self.num_tokens == 1:
            return _Reads(keys, values, None, False)
        if start == 0 and (window is None or window >= end):
            return _Reads(keys, values, None, True)
        device = self._store.keys.device
        queries = torch.arange(start, end, device=device)
        visible = torch.arange(first, end, device=device)
        return _Reads(keys, values, _mask(queries, visible, window, self._heads_per_kv, dtype), False)


class _Batch:
    """Sequences in any blocks, padded to a common number of queries and keys."""

    def __init__(self, spans: Sequence[Span], store: KVStore, heads_per_kv: int) -> None:
        device, size = store.keys.device, store.block_size
        self.num_tokens = sum(span.num_tokens for span in spans)
        self._num_spans = len(spans)
        self._heads_per_kv = heads_per_kv
        self._store = store
        width = max(len(span.blocks) for span in spans)
        padded = [[*span.blocks, *[0] * (width - len(span.blocks))] for span in spans]
        blocks = torch.tensor(padded, device=device)
        offsets = torch.arange(size, device=device)
        self._slots = (blocks[:, :, None] * size + offsets).view(len(spans), -1)  # [B, L], L in whole blocks
        self._max_queries = max(span.num_tokens for span in spans)
        starts = torch.tensor([span.start for span in spans], device=device)
        counts = torch.tensor([span.num_tokens for span in spans], device=device)
        columns = torch.arange(self._max_queries, device=device)
        self._positions = starts[:, None] + columns  # [B, T]
        is_query = columns < counts[:, None]
        self._is_ragged = self.num_tokens != len(spans) * self._max_queries
        firsts = counts.cumsum(0) - counts
        # Padding queries read some real token's query; their outputs are dropped.
        self._padded = torch.where(is_query, firsts[:, None] + columns, 0).view(-1)
        self._kept = is_query.view(-1).nonzero().view(-1) if self._is_ragged else None
        written = torch.where(is_query, self._positions, 0)
        self._write_slots = self._slots.gather(1, written)[is_query]
        self._masks: dict[int | None, torch.Tensor] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        keys, values = self._store.keys[layer], self._store.values[layer]
        keys.index_copy_(1, self._write_slots, key[0])
        values.index_copy_(1, self._write_slots, value[0])
        mask = self._masks.get(window)
        if mask is None:
            visible = torch.arange(self._slots.shape[1], device=query.device)
            mask = _mask(self._positions, visible, window, self._heads_per_kv, query.dtype)[:, None]
            self._masks[window] = mask
        reads = _Reads((self._gather(keys),), (self._gather(values),), mask, False)
        output = _attend(self._pad(query), 0, reads, self._heads_per_kv, scaling, softcap)
        output = output.reshape(1, -1, *output.shape[2:])  # [1, B*T, H, D]
        return output if self._kept is None else output.index_select(1, self._kept)

    def _gather(self, store: torch.Tensor) -> torch.Tensor:
        """[KV, num_slots, D] -> [B, KV, L, D]."""
        rows = store.index_select(1, self._slots.view(-1))
        return rows.view(rows.shape[0], self._num_spans, -1, rows.shape[2]).transpose(0, 1)

    def _pad(self, query: torch.Tensor) -> torch.Tensor:
        """[1, H, tokens, D] -> [B, H, T, D]."""
        rows = query[0]
        if self._is_ragged:
            rows = rows.index_select(1, self._padded)
        return rows.reshape(rows.shape[0], self._num_spans, self._max_queries, -1).transpose(0, 1)


def _mask(
    queries: torch.Tensor, keys: torch.Tensor, window: int | None, heads_per_kv: int, dtype: torch.dtype
) -> torch.Tensor:
    """0 where a query sees a key, else -inf, once for each folded head: [..., T], [L] -> [..., G*T, L]."""
    distance = queries[..., None] - keys
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
    return mask.repeat(*[1] * (mask.ndim - 2), heads_per_kv, 1)


def _attend(
    query: torch.Tensor,
    layer: int,
    reads: _Reads,
    heads_per_kv: int,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """[B, H, T, D] -> [B, T, H, D]."""
    num_sequences, num_heads, num_queries, size = query.shape
    keys, values = reads.keys[layer], reads.values[layer]
    if reads.is_causal and softcap is None:
        output = scaled_dot_product_attention(
            query, keys, values, is_causal=True, scale=scaling, enable_gqa=heads_per_kv > 1
        )
        return output.transpose(1, 2)
    folded = query.reshape(num_sequences, num_heads // heads_per_kv, heads_per_kv * num_queries, size)
    if softcap is None:
        output = scaled_dot_product_attention(folded, keys, values, attn_mask=reads.mask, scale=scaling)
    else:
        output = _softcapped(folded, keys, values, reads, num_queries, scaling, softcap)
    return output.view(num_sequences, num_heads, num_queries, -1).transpose(1, 2)


def _softcapped(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    reads: _Reads,
    num_queries: int,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Attention whose scores pass through softcap * tanh(score / softcap) before the mask (Gemma 2)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, keys.transpose(-1, -2)).mul_(scale / softcap).tanh_().mul_(softcap)
    if reads.mask is not None:
        scores += reads.mask
    elif reads.is_causal:
        places = torch.arange(num_queries, device=query.device)
        scores += _mask(places, places, None, query.shape[-2] // num_queries, query.dtype)
    return torch.matmul(scores.softmax(-1, dtype=torch.float32).to(values.dtype), values)
