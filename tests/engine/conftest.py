"""Tiny random models on disk, one folder per architecture, made once a session."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

VOCAB_SIZE = 320
WINDOW = 16

_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,  # at the usual 0.02 attention hardly matters, and a wrong one would pass
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ALTERNATING = ["sliding_attention", "full_attention"]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Mistral": {"sliding_window": WINDOW},
    "Gemma2": {
        "sliding_window": WINDOW,
        "layer_types": _ALTERNATING,
        "attn_logit_softcapping": 1.0,
        "query_pre_attn_scalar": 16,
    },
    "Gemma3": {"sliding_window": WINDOW, "layer_types": _ALTERNATING, "query_pre_attn_scalar": 48},
    "Phi3": {},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
    },
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "GPTNeoX": {},
}


def make_config(architecture: str, **changes: Any) -> Any:
    """The configuration of a tiny model of that architecture."""
    name = {"Gemma3": "Gemma3Text"}.get(architecture, architecture)
    options = _SMALL | ARCHITECTURES.get(architecture, {}) | changes
    return getattr(transformers, f"{name}Config")(**options)


def save_model(folder: Path, config: Any, seed: int = 0) -> Path:
    """Writes a random model and its tokenizer.json."""
    torch.manual_seed(seed)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    factory: Any = transformers.AutoModelForCausalLM
    factory.from_config(config).save_pretrained(folder)
    write_tokenizer(folder, num_tokens=256)
    return folder


def write_tokenizer(folder: Path, num_tokens: int) -> None:
    model = {"type": "BPE", "vocab": {f"t{index}": index for index in range(num_tokens)}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """model_folder("Llama") is a tiny model on disk."""
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            made[architecture] = save_model(folder, make_config(architecture))
        return made[architecture]

    return make
