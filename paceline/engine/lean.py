"""A lean forward pass for plain decoders: Llama, Mistral, Qwen2 and Qwen3.

transformers' modelling code spends about 0.14 ms of Python a layer, which is most of what a small drafter costs. This
is the same arithmetic on the same weights with a third of the operations: projections of the same input are
fused, a norm is one call, and a residual is added by the matrix product that feeds it. Any other architecture, and
any option that these do not share, runs on transformers' own forward pass; `executor.py` compares this one
with it before serving.

Shapes: N tokens, H query heads, KV kv heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import embedding, rms_norm, silu

from paceline.engine.projection import Projection, free, keeps_plain
from paceline.engine.step import Attends, Site
from paceline.engine.transfer import upload

_FAMILIES = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
# Ropes whose angles depend on nothing but the position.
_ROPES = frozenset({"default", "linear", "llama3", "yarn"})
# Cosines and sines of all positions are kept if they fit; a longer context would cost more memory than it saves time.
_MAX_TABLE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: torch.Tensor
    qkv: Projection  # hidden to (H + 2 KV) * D
    qk_norm: torch.Tensor | None  # [H + KV, D]
    output: Projection  # H * D to hidden
    mlp_norm: torch.Tensor
    gate_up: Projection  # hidden to 2 * inner
    down: Projection  # inner to hidden
    site: Site


class LeanDecoder:
    """The forward pass of one model, over its weights. Create it with `adopt`."""

    def __init__(self, model: Any, sites: Sequence[Site], max_model_len: int) -> None:
        """Takes the projections' weights from the model, which cannot run by itself any more; memory does not grow."""
        base, config = model.model, model.config
        attention = base.layers[0].self_attn
        self._size: int = attention.head_dim
        self._num_heads: int = config.num_attention_heads
        self._num_kv_heads: int = config.num_key_value_heads
        self._eps: float = config.rms_norm_eps
        self._hidden = (config.hidden_size,)
        self._embedding = base.embed_tokens.weight.detach()
        self._norm = base.norm.weight.detach()
        self._keeps_plain = keeps_plain(model)
        self._head = self._take([model.lm_head])
        self._rotary = base.rotary_emb
        self._layers = [self._make_layer(layer, site) for layer, site in zip(base.layers, sites, strict=True)]
        self._table: tuple[torch.Tensor, torch.Tensor] | None = None
        if max_model_len * self._size * 2 * self._embedding.element_size() <= _MAX_TABLE_BYTES:
            self._table = self._angles(torch.arange(max_model_len, device=self._embedding.device))

    @classmethod
    @torch.no_grad()
    def adopt(cls, model: Any, sites: Sequence[Site], max_model_len: int) -> LeanDecoder | None:
        """A lean decoder over this model's weights, or None if it is not plain enough."""
        config = model.config
        if type(model).__name__ not in _FAMILIES or config.hidden_act != "silu":
            return None
        if (getattr(config, "rope_parameters", None) or {}).get("rope_type") not in _ROPES:
            return None
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            fused = (attention.q_proj, attention.k_proj, attention.v_proj)
            others = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj, model.lm_head)
            if any(type(module) is not torch.nn.Linear for module in (*fused, *others)):
                return None  # quantised, for instance
            if any(module.bias is not None for module in others):
                return None
        return cls(model, sites, max_model_len)

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: Sequence[int] | torch.Tensor,
        step: Attends,
        rows: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """token_ids: [N] -> logits [len(rows), vocab_size] and the hidden states that they come from.

        Of all tokens if `rows` is None. `positions` as a tensor make the pass depend on no integer of the host, as a
        CUDA graph needs it.
        """
        hidden = embedding(token_ids, self._embedding)
        cos, sin = self._rotation(positions)
        for index, layer in enumerate(self._layers):
            inputs = rms_norm(hidden, self._hidden, layer.input_norm, self._eps)
            mixed = self._attend(index, layer, inputs, cos, sin, step)
            hidden = layer.output.onto(hidden, mixed)
            inputs = rms_norm(hidden, self._hidden, layer.mlp_norm, self._eps)
            gate, up = layer.gate_up(inputs).chunk(2, dim=-1)
            hidden = layer.down.onto(hidden, silu(gate).mul_(up))
        if rows is not None:
            hidden = hidden.index_select(0, rows)
        hidden = rms_norm(hidden, self._hidden, self._norm, self._eps)
        return self._head(hidden), hidden

    def _attend(
        self,
        index: int,
        layer: _Layer,
        inputs: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        step: Attends,
    ) -> torch.Tensor:
        """[N, hidden] -> [N, H * D]."""
        heads = layer.qkv(inputs).view(inputs.shape[0], -1, self._size)
        rotated, value = heads.split_with_sizes((self._num_heads + self._num_kv_heads, self._num_kv_heads), 1)
        if layer.qk_norm is not None:
            rotated = rms_norm(rotated, (self._size,), None, self._eps).mul_(layer.qk_norm)
        # Each half of a head is rotated against the other; `sin` carries the sign.
        rotated = torch.addcmul(rotated * cos, rotated.roll(self._size // 2, dims=-1), sin)
        rotated = rotated.transpose(0, 1)[None]
        query, key = rotated.split_with_sizes((self._num_heads, self._num_kv_heads), 1)
        value = value.transpose(0, 1)[None]
        mixed = step.attend(index, query, key, value, layer.site)
        return mixed.reshape(inputs.shape[0], -1)

    def _rotation(self, positions: Sequence[int] | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines, [N, 1, D] each."""
        if self._table is not None and not isinstance(positions, torch.Tensor):
            cos, sin = self._table
            first, count = positions[0], len(positions)
            if positions[-1] == first + count - 1 and (count < 3 or list(positions) == [*range(first, first + count)]):
                return cos[first : first + count], sin[first : first + count]
        if not isinstance(positions, torch.Tensor):
            positions = upload(positions, self._embedding.device)
        if self._table is None:
            return self._angles(positions)
        cos, sin = self._table
        return cos.index_select(0, positions), sin.index_select(0, positions)

    def _angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self._rotary(self._embedding[:1, None], position_ids=positions[None])
        half = self._size // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        return cos[0, :, None], signed[0, :, None]

    def _make_layer(self, layer: Any, site: Site) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        norms = None
        if hasattr(attention, "q_norm"):
            query = attention.q_norm.weight.detach().expand(self._num_heads, -1)
            norms = torch.cat([query, attention.k_norm.weight.detach().expand(self._num_kv_heads, -1)])
        return _Layer(
            input_norm=layer.input_layernorm.weight.detach(),
            qkv=self._take([attention.q_proj, attention.k_proj, attention.v_proj]),
            qk_norm=norms,
            output=self._take([attention.o_proj]),
            mlp_norm=layer.post_attention_layernorm.weight.detach(),
            gate_up=self._take([mlp.gate_proj, mlp.up_proj]),
            down=self._take([mlp.down_proj]),
            site=site,
        )

    def _take(self, modules: Sequence[Any]) -> Projection:
        """One projection for linear layers of the same input, whose own weights are freed."""
        weights = [module.weight.detach() for module in modules]
        biases = [module.bias.detach() for module in modules if module.bias is not None]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        fused = Projection(weight, torch.cat(biases) if biases else None, keeps_plain=self._keeps_plain)
        for module in modules:
            free(module)
        return fused
