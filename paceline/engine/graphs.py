"""CUDA graphs for decode-shaped steps: one token for each of several sequences.

Such a step keeps a GPU busy for less time than the CPU takes to launch its kernels. A graph launches them all at once,
but always over the same memory. So a step is padded to one of a few shapes, its integers are copied into the tensors
that the shape was captured with, and the graph is replayed. Padding is sequences of one token in a *scratch* block
that the pool does not know of. One of them reaches to the end of the shape's context, which gives every step of that
shape as many keys.

A model that cannot be captured, since its code asks the GPU what to do next as some mixtures of experts do, runs
without graphs from then on. So does a step of any other shape.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from paceline.engine.plan import Span, StepPlan
from paceline.engine.step import Attends, Batch, KVStore, Outputs
from paceline.engine.transfer import upload

log = logging.getLogger(__name__)

NUM_SEQS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # padding included; between two of them a third is wasted
MAX_GRAPHS = 64  # shapes: each keeps some memory of its own
_NUM_WARM_UPS = 2  # libraries allocate and choose their kernels in the first passes, which a graph must not contain

Forward = Callable[[torch.Tensor, torch.Tensor, Attends], Outputs]  # token_ids [B], positions [B]
Pass = Callable[[], Outputs]
Capture = Callable[[Pass], Pass]


class Shape(NamedTuple):
    """What a graph was captured for: sequences, padding included, and blocks of context of each."""

    num_seqs: int
    num_blocks: int


def shape_of(plan: StepPlan) -> Shape | None:
    """The smallest shape that holds the plan and one sequence more; None if it is not decode-shaped, or too large."""
    if any(span.num_tokens != 1 for span in plan.spans) or len(plan.spans) >= NUM_SEQS[-1]:
        return None
    num_blocks = max(len(span.blocks) for span in plan.spans)
    return Shape(NUM_SEQS[bisect_left(NUM_SEQS, len(plan.spans) + 1)], 1 << (num_blocks - 1).bit_length())


def pad(plan: StepPlan, shape: Shape, scratch: int, block_size: int) -> StepPlan:
    """`plan` with padding in block `scratch`, up to `shape`; its own tokens stay the first."""
    num_more = shape.num_seqs - len(plan.spans)
    reach = Span(shape.num_blocks * block_size - 1, 1, (scratch,) * shape.num_blocks)
    spans = [*plan.spans, reach, *[Span(0, 1, (scratch,))] * (num_more - 1)]
    return StepPlan([*plan.token_ids, *[0] * num_more], plan.rows, spans)


@dataclass(slots=True)
class _Graph:
    """A captured pass, and the tensors that it reads."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    batch: Batch
    replay: Pass


class DecodeGraphs:
    """Replays decode-shaped steps, and captures each shape when it first comes."""

    def __init__(self, forward: Forward, store: KVStore, heads_per_kv: int, scratch: int, capture: Capture) -> None:
        """`scratch`: a block of `store` that nothing else uses."""
        self._forward, self._store, self._heads_per_kv = forward, store, heads_per_kv
        self._scratch, self._capture = scratch, capture
        self._graphs: dict[Shape, _Graph] = {}
        self._is_off = False

    def run(self, plan: StepPlan) -> Outputs | None:
        """The plan's rows; None if the step must be run without a graph."""
        shape = None if self._is_off or not plan.rows else shape_of(plan)
        if shape is None or (shape not in self._graphs and len(self._graphs) >= MAX_GRAPHS):
            return None
        padded = pad(plan, shape, self._scratch, self._store.block_size)
        device = self._store.keys.device
        token_ids = upload(padded.token_ids, device)
        positions = upload([span.start for span in padded.spans], device)
        batch = Batch(padded.spans, self._store, self._heads_per_kv)
        graph = self._graphs.get(shape)
        if graph is None:
            graph = self._add(shape, token_ids, positions, batch)
            if graph is None:
                return None
        else:
            graph.token_ids.copy_(token_ids)
            graph.positions.copy_(positions)
            graph.batch.load(batch)
        rows = upload(plan.rows, device)
        return Outputs(
            *(output.index_select(0, rows) for output in graph.replay())
        )  # the next replay writes there again

    def _add(self, shape: Shape, token_ids: torch.Tensor, positions: torch.Tensor, batch: Batch) -> _Graph | None:
        def once() -> Outputs:
            batch.renew()  # masks are computed within the graph, from what was copied in
            return self._forward(token_ids, positions, batch)

        try:
            replay = self._capture(once)
        except RuntimeError as error:
            log.warning("this model runs without CUDA graphs: %s", error)
            self._is_off = True
            return None
        self._graphs[shape] = _Graph(token_ids, positions, batch, replay)
        return self._graphs[shape]


def cuda_capture() -> Capture:
    """Captures for the GPU; all graphs share one pool of memory, since one at a time is replayed."""
    memory = torch.cuda.graph_pool_handle()

    def capture(once: Pass) -> Pass:
        stream: Any = torch.cuda.Stream
        side = stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_NUM_WARM_UPS):
                once()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory):
            output = once()

        def replay() -> Outputs:
            graph.replay()
            return output

        return replay

    return capture
