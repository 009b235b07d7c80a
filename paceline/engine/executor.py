"""What every rank does with a plan: one forward pass of the model over its share of the KV pool.

Before it serves, an executor runs the model three times over eight tokens: once to learn the shapes of the
keys and to meet arguments that our attention refuses, once with transformers' own attention, and once in
chunks with a wrong token and a rollback over the paged pool. The last two must agree. So a model with
anything that this engine does not keep (a recurrent state, keys shared between layers, attention sinks) is
refused at start, not served wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from paceline.engine import weights
from paceline.engine.attention import NAME as ATTENTION
from paceline.engine.backend import choose, using
from paceline.engine.graphs import Capture, DecodeGraphs, cuda_capture
from paceline.engine.lean import LeanDecoder
from paceline.engine.plan import Span, StepPlan
from paceline.engine.projection import pack_modules
from paceline.engine.step import Attends, KVStore, Outputs, Site, Step
from paceline.engine.transfer import upload
from paceline.engine.weights import Checkpoint
from paceline.errors import InvalidInput, Unsupported

_NUM_PROBE_TOKENS = 8
_DEFAULT_BYTES = 1 << 30
# Where copying a sequence's keys costs a CPU core about as much as one more call of the attention kernel (measured
# with 8 sequences of 256 tokens and models of 1 to 90 million parameters).
_MAX_BATCHED_BYTES = 512 << 10
# Relative error (Frobenius norm) of the rehearsal: far above rounding, far below a forgotten feature.
_MAX_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.2}


@dataclass(frozen=True, slots=True)
class Options:
    """What every rank must agree on to build its executor. All fields are plain: they travel as JSON.

    The pool holds `max_num_tokens` tokens, or if that is None what fits in `kv_cache_bytes` on each rank. If both are
    None it takes what is left of `gpu_memory_utilization`, a share of the GPU's memory, and 1 GiB on a CPU.
    """

    folder: str
    dtype: str
    device: str
    max_num_tokens: int | None
    kv_cache_bytes: int | None
    block_size: int
    max_model_len: int | None
    tensor_parallel_size: int
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False


def prepare(checkpoint: Checkpoint, options: Options, *, rank: int = 0) -> Executor:
    """A rehearsed executor. All ranks of a group call this at the same time. Raises InvalidInput, Unsupported."""
    size = options.tensor_parallel_size
    device = f"cuda:{rank}" if options.device == "cuda" and size > 1 else options.device
    model = weights.load(checkpoint, dtype=options.dtype, device=device, tensor_parallel_size=size)
    executor = Executor(model, device=device, block_size=options.block_size)
    if size == 1:
        executor.slim(checkpoint.max_model_len)
    num_bytes = pool_bytes(options, torch.device(device))
    num_tokens = options.max_num_tokens or num_bytes // executor.token_bytes
    num_blocks = num_tokens // options.block_size
    if num_blocks * options.block_size < _NUM_PROBE_TOKENS:
        fix = f"the pool would hold {num_blocks} blocks of {options.block_size} tokens, too few to start; raise it"
        if options.max_num_tokens is not None:
            raise InvalidInput("max_num_tokens", options.max_num_tokens, fix)
        raise InvalidInput("kv_cache_bytes", num_bytes, fix)
    executor.allocate(num_blocks)
    if executor.device.type == "cuda":
        executor.tune(cuda_capture() if size == 1 and not options.enforce_eager else None)
    return executor


def pool_bytes(options: Options, device: torch.device) -> int:
    """KV memory on one rank, the model being loaded. Raises InvalidInput if the GPU's share is used up already.

    What a forward pass needs beside it comes out of the rest, so a share of 1 leaves nothing for it.
    """
    if options.kv_cache_bytes is not None:
        return options.kv_cache_bytes
    if device.type != "cuda":
        return _DEFAULT_BYTES
    if not 0 < options.gpu_memory_utilization <= 1:
        raise InvalidInput("gpu_memory_utilization", options.gpu_memory_utilization, "must be over 0 and at most 1")
    num_free, num_bytes = torch.cuda.mem_get_info(device)
    left = int(options.gpu_memory_utilization * num_bytes) - (num_bytes - num_free)
    if left <= 0:
        fix = f"{(num_bytes - num_free) / num_bytes:.0%} of the GPU's memory is in use before the KV pool; raise it"
        raise InvalidInput("gpu_memory_utilization", options.gpu_memory_utilization, fix)
    return left


class Executor:
    """A model, its KV memory, and the forward pass over both."""

    lost: str | None = None  # a single process is not lost without its caller

    def __init__(self, model: Any, *, device: str, block_size: int) -> None:
        """Learns the attention's shapes in a dry run; `allocate` must follow. Raises Unsupported."""
        self.model = model
        self.device = torch.device(device)
        self._block_size = block_size
        self._name = model.config.model_type
        self._lean: LeanDecoder | None = None
        self._store: KVStore | None = None
        self._hidden = torch.empty(1, 0, 0)  # what went into the output embedding last
        if (output := model.get_output_embeddings()) is not None:
            output.register_forward_pre_hook(self._note_hidden)
        self._graphs: DecodeGraphs | None = None
        self._backends: list[SDPBackend] = []  # of attention, in the order to try; empty: torch's own order
        probe = _Probe(self._name)
        with torch.inference_mode():
            logits, _ = self._forward(list(range(_NUM_PROBE_TOKENS)), list(range(_NUM_PROBE_TOKENS)), probe, None)
        self.vocab_size = int(logits.shape[-1])
        self._sites = probe.sites
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._expected = self._own_logits()
        self.num_blocks = 0
        self._shape = probe.shape(model.config.get_text_config())

    @property
    def token_bytes(self) -> int:
        """KV memory of one token, all layers, on this rank."""
        shape = self._shape
        item = torch.empty((), dtype=shape.dtype).element_size()
        return shape.num_layers * shape.num_kv_heads * (shape.key_size + shape.value_size) * item

    def slim(self, max_model_len: int) -> None:
        """Runs on the lean forward pass from now on, if this model has one, and on a CPU with packed weights."""
        self._lean = LeanDecoder.adopt(self.model, self._sites, max_model_len)
        if self._lean is None:
            pack_modules(self.model)

    def allocate(self, num_blocks: int) -> None:
        """Makes the KV memory and rehearses (see the head of the file). Raises Unsupported."""
        shape, num_slots = self._shape, (num_blocks + 1) * self._block_size  # the last block is the graphs' scratch
        lead = (shape.num_layers, shape.num_kv_heads, num_slots)
        self._store = KVStore(
            keys=torch.empty(*lead, shape.key_size, dtype=shape.dtype, device=self.device),
            values=torch.empty(*lead, shape.value_size, dtype=shape.dtype, device=self.device),
            block_size=self._block_size,
            max_batched_bytes=_MAX_BATCHED_BYTES if self.device.type == "cpu" else float("inf"),
        )
        self._store.keys[:, :, -self._block_size :] = 0  # never a NaN, which a mask would not hide
        self._store.values[:, :, -self._block_size :] = 0
        self.num_blocks = num_blocks
        self._rehearse()

    @torch.inference_mode()
    def tune(self, capture: Capture | None) -> None:
        """For a GPU: chooses the attention kernels by timing them, and decodes by graphs from now on if `capture`."""
        assert self._store is not None, "allocate first"
        plans = _typical_plans(self.num_blocks, self._block_size)
        self._backends = choose(lambda: [self.run(plan) for plan in plans])
        self.use_graphs(capture)

    def use_graphs(self, capture: Capture | None) -> None:
        """Decode-shaped steps are captured by `capture` when they first come; None: never."""
        assert self._store is not None, "allocate first"
        self._graphs = None
        if capture is not None:

            def forward(token_ids: torch.Tensor, positions: torch.Tensor, step: Attends) -> Outputs:
                logits, hidden = self._forward(token_ids, positions, step, None)
                return Outputs(logits.float(), hidden.float())

            self._graphs = DecodeGraphs(forward, self._store, self._shape.heads_per_kv, self.num_blocks, capture)

    def shutdown(self) -> None:
        """Nothing to end: a single process has no followers."""

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Outputs:
        """The plan's rows."""
        assert self._store is not None, "allocate first"
        with using(self._backends):
            outputs = self._graphs.run(plan) if self._graphs else None
            return self._run(plan, self._store) if outputs is None else outputs

    def _run(self, plan: StepPlan, store: KVStore) -> Outputs:
        step = Step(plan, store, self._shape.heads_per_kv)
        positions: list[int] = []
        for span in plan.spans:
            positions.extend(range(span.start, span.start + span.num_tokens))
        rows = plan.rows
        if len(rows) == len(positions) and rows == list(range(len(rows))):
            logits, hidden = self._forward(plan.token_ids, positions, step, None)
            return Outputs(logits.float(), hidden.float())
        # A step without rows still asks for one: not every model takes an empty index.
        index = upload(rows or [0], self.device)
        logits, hidden = self._forward(plan.token_ids, positions, step, index)
        return Outputs(logits[: len(rows)].float(), hidden[: len(rows)].float())

    def _forward(
        self,
        token_ids: Sequence[int] | torch.Tensor,
        positions: Sequence[int] | torch.Tensor,
        step: Attends,
        rows: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and hidden states of the tokens that the index `rows` names, all if None."""
        tokens = token_ids if isinstance(token_ids, torch.Tensor) else upload(token_ids, self.device)
        if self._lean is not None:
            return self._lean.forward(tokens, positions, step, rows)
        places = positions if isinstance(positions, torch.Tensor) else upload(positions, self.device)
        logits: torch.Tensor = self.model(
            input_ids=tokens[None],
            position_ids=places[None],
            use_cache=False,
            step=step,
            logits_to_keep=0 if rows is None else rows,
        ).logits
        return logits[0], self._hidden[0]

    def _note_hidden(self, _module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        self._hidden = inputs[0]

    @torch.inference_mode()
    def _own_logits(self) -> torch.Tensor:
        """What transformers' own code makes of the rehearsal's tokens, [_NUM_PROBE_TOKENS, vocab_size]."""
        self.model.set_attn_implementation("eager")
        try:
            inputs = {
                "input_ids": torch.tensor([self._probe_tokens], device=self.device),
                "position_ids": torch.arange(_NUM_PROBE_TOKENS, device=self.device)[None],
            }
            logits: torch.Tensor = self.model(**inputs, use_cache=False).logits[0].float()
        finally:
            self.model.set_attn_implementation(ATTENTION)
        return logits

    @property
    def _probe_tokens(self) -> list[int]:
        return [(7 * index + 1) % self.vocab_size for index in range(_NUM_PROBE_TOKENS)]

    @torch.inference_mode()
    def _rehearse(self) -> None:
        tokens, expected = self._probe_tokens, self._expected
        half = len(tokens) // 2
        blocks = tuple(range(-(-len(tokens) // self._block_size)))
        wrong = [(tokens[half] + 1) % self.vocab_size]
        head = self.run(StepPlan(tokens[:half], list(range(half)), [Span(0, half, blocks)]))
        self.run(StepPlan(wrong, [0], [Span(half, 1, blocks)]))
        rest = tokens[half:]
        tail = self.run(StepPlan(rest, list(range(len(rest))), [Span(half, len(rest), blocks)]))
        error = float((torch.cat([head.logits, tail.logits]) - expected).norm() / expected.norm().clamp_min(1e-6))
        if not error <= _MAX_ERROR[self._shape.dtype]:
            raise Unsupported(
                "model",
                self._name,
                f"the paged engine's logits differ from the model's own by {error:.2g}; use another model",
            )


def _typical_plans(num_blocks: int, block_size: int) -> list[StepPlan]:
    """A chunk of a prompt, and a decode step of eight sequences after as much context as there is room for."""
    num_each = min(max(1, num_blocks // 8), max(1, 512 // block_size))
    tables = [tuple(range(first, first + num_each)) for first in range(0, num_each * min(8, num_blocks), num_each)]
    length = num_each * block_size
    prompt = StepPlan([1] * length, [length - 1], [Span(0, length, tables[0])])
    return [prompt, StepPlan([1] * len(tables), list(range(len(tables))), [Span(length - 1, 1, t) for t in tables])]


class _Shape:
    """Shapes of a layer's keys and values on this rank, the same for all layers."""

    def __init__(self, num_layers: int, num_heads: int, key: torch.Tensor, value: torch.Tensor) -> None:
        self.num_layers = num_layers
        self.num_kv_heads = key.shape[1]
        self.heads_per_kv = num_heads // key.shape[1]
        self.key_size = key.shape[3]
        self.value_size = value.shape[3]
        self.dtype = key.dtype


class _Probe:
    """Stands in for a step during the dry run: attends within the tokens given and notes their shapes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}
        self._sites: dict[int, Site] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        site: Site,
    ) -> torch.Tensor:
        if layer in self._seen:
            self._refuse(f"layer {layer} attends twice in one pass")
        self._seen[layer] = (query.shape[1], key, value)
        self._sites[layer] = site
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=site.scaling, enable_gqa=True)
        return output.transpose(1, 2)

    @property
    def sites(self) -> list[Site]:
        """How each layer calls its attention."""
        return [self._sites[layer] for layer in sorted(self._sites)]

    def shape(self, config: Any) -> _Shape:
        """What all layers have in common. Raises Unsupported if they differ, or if a window got lost."""
        layers = sorted(self._seen)
        if layers != list(range(config.num_hidden_layers)):
            self._refuse(f"only layers {layers} of {config.num_hidden_layers} call the attention function")
        shapes = {(heads, key.shape, value.shape, key.dtype) for heads, key, value in self._seen.values()}
        if len(shapes) > 1:
            self._refuse("its layers differ in the shape of their keys")
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * len(layers)
        expected = getattr(config, "sliding_window", None)
        for layer, kind in zip(layers, kinds, strict=True):
            if kind == "sliding_attention" and expected and self._sites[layer].window is None:
                self._refuse(f"layer {layer} has a sliding window that it does not pass to its attention")
        heads, key, value = self._seen[0]
        return _Shape(len(layers), heads, key, value)

    def _refuse(self, reason: str) -> None:
        raise Unsupported("model", self._name, f"{reason}, which the paged engine cannot serve; use another model")
