"""The two models: their shapes, how they are built, and how they are written as Hugging Face folders."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from models.corpus import END_OF_TEXT, InputError
from models.trainer import replace_directory

# Numbers of heads are even so that tensor parallelism over two devices can split both models.
SHAPES: dict[str, dict[str, Any]] = {
    "target": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    "drafter": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
}


def device_of(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return torch.device(name)


def build(shape: dict[str, Any], tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """A model with random weights. Input and output embeddings are one matrix: half of a small model's size."""
    end = int(tokenizer.convert_tokens_to_ids(END_OF_TEXT))  # type: ignore[arg-type]
    config = LlamaConfig(
        **shape,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
        attention_bias=False,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def add_dropout(model: LlamaForCausalLM, probability: float) -> None:
    """Drop parts of what every layer adds to the residual stream, while the model is in training mode.

    Hugging Face's Llama only has dropout inside attention, which is not where small models overfit.
    """
    if probability == 0:
        return

    def drop(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return functional.dropout(output, probability, module.training)

    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.down_proj.register_forward_hook(drop)


def load_model(directory: Path, *, device: torch.device) -> LlamaForCausalLM:
    """A model from its folder, in float32 and evaluation mode."""
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: has no config.json; give a folder with a Hugging Face model")
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    nn.Module.to(model, device)
    model.train(False)
    return model


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    if not (directory / "tokenizer.json").is_file():
        raise InputError(
            f"{directory}: has no tokenizer.json; make one with the command tokenizer, or give a model's folder"
        )
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # The name that every version of transformers knows; version 5 would write its own.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("backend", None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_model(model: LlamaForCausalLM, tokenizer_directory: Path, output: Path) -> None:
    """Write weights in bfloat16, both configurations and the tokenizer; a card that is there already stays."""

    def write(fresh: Path) -> None:
        copy = nn.Module.to(LlamaForCausalLM(model.config), torch.bfloat16)
        copy.load_state_dict(model.state_dict())
        end = model.config.eos_token_id
        copy.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=True, temperature=1.0, bos_token_id=None, eos_token_id=end, pad_token_id=end
        )
        copy.save_pretrained(fresh)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (tokenizer_directory / name).is_file():
                shutil.copyfile(tokenizer_directory / name, fresh / name)
        if (output / "README.md").is_file():
            shutil.copyfile(output / "README.md", fresh / "README.md")

    write_directory(output, write)


def write_directory(output: Path, write: Callable[[Path], None]) -> None:
    """Fill a new directory beside `output`, then put it in its place, so that no reader sees half of it."""
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        write(fresh)
        for path in fresh.iterdir():
            # safetensors makes files that only their owner may read.
            path.chmod(0o644)
        replace_directory(fresh, output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
