"""The attention function that transformers' models call, and what it refuses.

Rule: **fail closed**. A model hands its attention function whatever it needs beyond query, key and value as
keyword arguments (sinks, biases, a cap). One that we swallowed would give plausible and wrong text, so every
argument that is not on the list below is refused, by name; `executor.py` meets it in a dry run while the
model is loaded.

An attention name that is unknown to transformers' mask registry makes the model build no mask: positions in
the paged KV, and nothing else, decide who sees whom.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from paceline.engine.step import Attends, Site
from paceline.errors import Unsupported

NAME = "paceline_paged"

# Flags that change bookkeeping, not the attention's result.
_HARMLESS = frozenset({"output_attentions", "output_hidden_states", "output_router_logits", "return_dict"})


def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    step: Attends | None = None,
    position_ids: torch.Tensor | None = None,
    use_cache: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query: [1, H, tokens, D] -> ([1, tokens, H, D], no weights). Refuses unknown arguments."""
    if others or attention_mask is not None or dropout:
        _refuse(module, others | {"attention_mask": attention_mask, "dropout": dropout or None})
    assert step is not None, "the model was called without a step"
    return step.attend(module.layer_idx, query, key, value, Site(scaling, sliding_window, softcap)), None


def _refuse(module: Any, others: dict[str, Any]) -> None:
    for name, value in others.items():
        if value is None or name in _HARMLESS or (name == "is_causal" and value is True):
            continue
        model_type = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
        raise Unsupported(
            "model",
            model_type,
            f"its attention passes {name!r}, which the paged attention does not implement; use another model",
        )


AttentionInterface.register(NAME, paged_attention)
