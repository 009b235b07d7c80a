"""What a server may know of its engine without importing torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What other processes need to know about a loaded model.

    model_hash: 'sha256:…' over config.json and all weights; from 1 GiB on 'sha256-sampled:…' of them.
    tokenizer_hash: 'sha256:…' over vocabulary, merges and added tokens as parsed.
    vocab_size: length of a logits row; never less than the tokenizer's, often more.
    """

    model_hash: str
    tokenizer_hash: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    dtype: str
    device: str
    num_parameters: int
    folder: str = ""  # where its files are
