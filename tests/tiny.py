"""Tiny random models with a byte-level tokenizer: real Hugging Face folders, made in a second."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

END = "<|endoftext|>"


def write_tokenizer(folder: Path, *, extra: tuple[str, ...] = ()) -> int:
    """A byte-level tokenizer (no merges) in `folder`; its size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([END, *alphabet, *extra])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END})
    )
    return len(vocabulary)


def write_model(
    folder: Path,
    *,
    seed: int,
    hidden_size: int = 32,
    num_layers: int = 2,
    sharpness: float = 6.0,
    extra: tuple[str, ...] = (),
    tokenizer_of: Path | None = None,
) -> Path:
    """A random Llama in `folder`. `sharpness` scales its logits: 6 gives laws that are neither flat nor certain."""
    if tokenizer_of:
        folder.mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer_of / name, folder / name)
        vocab_size = json.loads((tokenizer_of / "config.json").read_text())["vocab_size"]
    else:
        vocab_size = write_tokenizer(folder, extra=extra)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness / 0.2)
    model.save_pretrained(folder)
    return folder


def write_pair(folder: Path) -> tuple[Path, Path]:
    """A target, and a drafter that is the target with noise on its weights, so that some drafts are right."""
    target = write_model(folder / "target", seed=1)
    drafter = write_model(folder / "drafter", seed=1)
    model = LlamaForCausalLM.from_pretrained(drafter)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1 * parameter.std())
    model.save_pretrained(drafter)
    return target, drafter
