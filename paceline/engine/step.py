"""One step on one device: a plan as tensors, and the attention over the paged KV that every layer runs.

Shapes: B sequences, T queries each, L keys each, H heads, G = H / KV queries per kv head, D head size.
`KVStore.keys` is [num_layers, KV, num_slots, D]: slots of a head are neighbours, which makes the scores of a
long sequence a quarter faster on a CPU than slots-first does.

Two forms of the same attention, each chosen by what the spans look like:

- `_Run`: one sequence whose blocks are consecutive. Keys are a *view* of the pool, nothing is gathered.
- `Batch`: any sequences, padded to [B, T] queries and [B, L] keys; one gather and one call a layer.

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
from paceline.engine.transfer import upload


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


class Site(NamedTuple):
    """How one layer calls its attention. window: keys a query sees, itself included; None for all."""

    scaling: float | None
    window: int | None
    softcap: float | None


class Outputs(NamedTuple):
    """What a pass gives of each wanted row, float32."""

    logits: torch.Tensor  # [num_rows, vocab_size]
    hidden: torch.Tensor  # [num_rows, hidden size]: the inputs of the output embedding


class Attends(Protocol):
    """What the layers of a model need of a step: `Step`, or something that stands in for it."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        site: Site,
    ) -> torch.Tensor: ...


class _Group(Attends, Protocol):
    num_tokens: int


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
        site: Site,
    ) -> torch.Tensor:
        """Stores this step's key and value, then attends. query: [1, H, tokens, D] -> [1, tokens, H, D]."""
        if self._only is not None:
            return self._only.attend(layer, query, key, value, site)
        outputs, first = [], 0
        for group in self._groups:
            own = slice(first, first + group.num_tokens)
            outputs.append(group.attend(layer, query[:, :, own], key[:, :, own], value[:, :, own], site))
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
        groups.append(Batch(spans[:num_batched], store, heads_per_kv))
    for span in spans[num_batched:]:
        is_run = _is_consecutive(span.blocks)
        groups.append(_Run(span, store, heads_per_kv) if is_run else Batch([span], store, heads_per_kv))
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
        self._is_folded = _is_folded(span.num_tokens, store)
        self._reads: dict[int | None, _Reads] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        site: Site,
    ) -> torch.Tensor:
        self._new_keys[layer].copy_(key[0])
        self._new_values[layer].copy_(value[0])
        reads = self._reads.get(site.window)
        if reads is None:
            reads = self._reads[site.window] = self._read(site.window, query.dtype)
        return _attend(query, layer, reads, self._heads_per_kv, site)

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
        shape, device = (end - start, end - first), self._store.keys.device
        hidden = torch.full(shape, float("-inf"), dtype=dtype, device=device)
        mask = hidden.triu(start - first + 1)  # later than the query
        if window is not None:
            mask += hidden.tril_(start - first - window)  # earlier than its window
        if self._is_folded:
            mask = mask.repeat(self._heads_per_kv, 1)
        return _Reads(keys, values, mask, False)


class Batch:
    """Sequences in any blocks, padded to a common number of queries and keys."""

    def __init__(self, spans: Sequence[Span], store: KVStore, heads_per_kv: int) -> None:
        device, size = store.keys.device, store.block_size
        self.num_tokens = sum(span.num_tokens for span in spans)
        self._num_spans = len(spans)
        self._max_queries = max(span.num_tokens for span in spans)
        self._heads_per_kv = heads_per_kv
        self._store = store
        starts = upload([[span.start] for span in spans], device)
        self._positions = starts + torch.arange(self._max_queries, device=device)  # [B, T]
        self._slots = _read_slots(spans, size, device)
        written = [_slot(span, size, offset) for span in spans for offset in range(span.num_tokens)]
        self._write_slots = upload(written, device)
        self._padded: torch.Tensor | None = None
        self._kept: torch.Tensor | None = None
        if self.num_tokens != len(spans) * self._max_queries:
            self._pad_queries(spans, device)
        self._is_folded = _is_folded(self._max_queries, store)
        self._masks: dict[int | None, torch.Tensor] = {}

    def _pad_queries(self, spans: Sequence[Span], device: torch.device) -> None:
        """Padding repeats a span's first query; what it yields is dropped."""
        padded: list[int] = []
        kept: list[int] = []
        first = 0
        for index, span in enumerate(spans):
            padded.extend(range(first, first + span.num_tokens))
            padded.extend([first] * (self._max_queries - span.num_tokens))
            kept.extend(range(index * self._max_queries, index * self._max_queries + span.num_tokens))
            first += span.num_tokens
        self._padded = upload(padded, device)
        self._kept = upload(kept, device)

    def renew(self) -> None:
        """Forgets what was derived from positions and slots, which may be others now."""
        self._masks.clear()

    def load(self, other: Batch) -> None:
        """Takes over the positions and slots of a batch of the same shape, into the memory that this one has."""
        self._positions.copy_(other._positions)
        self._slots.copy_(other._slots)
        self._write_slots.copy_(other._write_slots)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        site: Site,
    ) -> torch.Tensor:
        keys, values = self._store.keys[layer], self._store.values[layer]
        keys.index_copy_(1, self._write_slots, key[0])
        values.index_copy_(1, self._write_slots, value[0])
        mask = self._masks.get(site.window)
        if mask is None:
            mask = self._masks[site.window] = self._mask(site.window, query.dtype)
        reads = _Reads((self._gather(keys),), (self._gather(values),), mask, False)
        output = _attend(self._pad(query), 0, reads, self._heads_per_kv, site)
        output = output.reshape(1, -1, *output.shape[2:])  # [1, B*T, H, D]
        return output if self._kept is None else output.index_select(1, self._kept)

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """0 where a query sees a key, else -inf: [B, 1, T, L], repeated for folded heads."""
        distance = self._positions[..., None] - torch.arange(self._slots.shape[1], device=self._slots.device)
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        mask = mask.masked_fill_(hidden, float("-inf"))[:, None]
        return mask.repeat(1, 1, self._heads_per_kv, 1) if self._is_folded else mask

    def _gather(self, store: torch.Tensor) -> torch.Tensor:
        """[KV, num_slots, D] -> [B, KV, L, D]."""
        rows = store.index_select(1, self._slots.view(-1))
        return rows.view(rows.shape[0], self._num_spans, -1, rows.shape[2]).transpose(0, 1)

    def _pad(self, query: torch.Tensor) -> torch.Tensor:
        """[1, H, tokens, D] -> [B, H, T, D]."""
        rows = query[0]
        if self._padded is not None:
            rows = rows.index_select(1, self._padded)
        return rows.reshape(rows.shape[0], self._num_spans, self._max_queries, -1).transpose(0, 1)


def _is_folded(num_queries: int, store: KVStore) -> bool:
    """Whether masks are repeated for folded heads. A prefill chunk's are large already, and a CPU's kernel shares
    keys among heads by itself; a GPU's does not when there is a mask."""
    return num_queries <= MAX_BATCHED_TOKENS or store.keys.is_cuda


def _slot(span: Span, block_size: int, offset: int) -> int:
    position = span.start + offset
    return span.blocks[position // block_size] * block_size + position % block_size


def _read_slots(spans: Sequence[Span], block_size: int, device: torch.device) -> torch.Tensor:
    """Slots of positions 0 to L-1 of each span, [B, L]; from its end on, the span's last slot again.

    Padding never reads another sequence's slots, or ones nobody owns: masked or not, a NaN there would spread.
    """
    width = max(len(span.blocks) for span in spans)
    padded = [[*span.blocks, *[0] * (width - len(span.blocks))] for span in spans]
    ends = [span.start + span.num_tokens for span in spans]
    places = torch.arange(max(ends), device=device)
    places = places.minimum(upload(ends, device)[:, None] - 1)
    return upload(padded, device).gather(1, places // block_size) * block_size + places % block_size


def _attend(
    query: torch.Tensor,
    layer: int,
    reads: _Reads,
    heads_per_kv: int,
    site: Site,
) -> torch.Tensor:
    """[B, H, T, D] -> [B, T, H, D]."""
    num_sequences, num_heads, num_queries, size = query.shape
    keys, values = reads.keys[layer], reads.values[layer]
    is_folded = reads.mask is None or reads.mask.shape[-2] != num_queries
    if site.softcap is None and (reads.is_causal or not is_folded):
        output = scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=reads.mask,
            is_causal=reads.is_causal,
            scale=site.scaling,
            enable_gqa=heads_per_kv > 1,
        )
        return output.transpose(1, 2)
    folded = query.reshape(num_sequences, num_heads // heads_per_kv, heads_per_kv * num_queries, size)
    if site.softcap is None:
        output = scaled_dot_product_attention(folded, keys, values, attn_mask=reads.mask, scale=site.scaling)
    else:
        scale = size**-0.5 if site.scaling is None else site.scaling
        output = _softcapped(folded, keys, values, reads, num_queries, scale, site.softcap)
    return output.view(num_sequences, num_heads, num_queries, -1).transpose(1, 2)


def _softcapped(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    reads: _Reads,
    num_queries: int,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """Attention whose scores pass through softcap * tanh(score / softcap) before the mask (Gemma 2)."""
    scores = torch.matmul(query, keys.transpose(-1, -2)).mul_(scale / softcap).tanh_().mul_(softcap)
    mask = reads.mask
    if reads.is_causal:
        mask = torch.full((num_queries, num_queries), float("-inf"), dtype=query.dtype, device=query.device)
        mask.triu_(1)
    if mask is not None:
        scores += mask.repeat(*[1] * (mask.ndim - 2), scores.shape[-2] // mask.shape[-2], 1)
    return torch.matmul(scores.softmax(-1, dtype=torch.float32).to(values.dtype), values)
