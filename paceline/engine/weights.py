"""From a folder or a Hugging Face name to a validated model in memory.

Whatever is wrong with a model must be said here, at start, with the path and the remedy: a missing tensor,
which transformers would fill with noise, a tokenizer with ids that the embedding lacks, a format that can run
code when it is read. Code that ships with a model is never executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils import logging as transformers_logging

from paceline.engine.attention import NAME as ATTENTION
from paceline.engine.files import check_tokenizer, find_shards, first_line, read_json
from paceline.errors import InvalidInput, Unsupported
from paceline.tokenizer import tokenizer_hash

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_NEEDED_FILES = ["config.json", "generation_config.json", "tokenizer*", "*.safetensors*"]

# Reading and hashing a gigabyte takes about a second; a larger model is hashed by sample (see
# `_hash_weights`).
_MAX_FULL_HASH_BYTES = 1 << 30
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder that has passed every check which needs no tensor. `config` is the language model's."""

    folder: Path
    config: PreTrainedConfig
    max_model_len: int
    shards: tuple[Path, ...]

    def hashes(self) -> tuple[str, str]:
        """(model_hash, tokenizer_hash), as in info.ModelInfo."""
        return _hash_weights(self.folder / "config.json", self.shards), tokenizer_hash(self.folder)


def inspect(model: str, *, revision: str | None = None, max_model_len: int | None = None) -> Checkpoint:
    """Finds and checks a model's files. Raises InvalidInput, or Unsupported for what we cannot serve."""
    folder = _resolve(model, revision)
    read_json(folder, "config.json", "copy the whole model folder, config.json included")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise InvalidInput(
            "model",
            str(folder),
            f"config.json describes no model that transformers knows ({first_line(error)}); "
            "code that ships with a model is never executed",
        ) from error
    text = config.get_text_config()
    shards = find_shards(folder)
    check_tokenizer(folder, text.vocab_size)
    _check_layers(folder, text)
    return Checkpoint(folder, text, _max_model_len(folder, text, max_model_len), shards)


def load(checkpoint: Checkpoint, *, dtype: str, device: str, tensor_parallel_size: int = 1) -> Any:
    """The model in evaluation mode, with our attention; all of it, or this rank's share on every rank at once.

    A tensor parallel load needs an initialised process group of exactly that size.
    """
    folder = str(checkpoint.folder)
    quiet: Any = transformers_logging
    quiet.disable_progress_bar()
    factory: Any = AutoModelForCausalLM
    shares = {"distributed_config": DistributedConfig(tp_size=tensor_parallel_size)}
    try:
        model, report = factory.from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            attn_implementation=ATTENTION,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **(shares if tensor_parallel_size > 1 else {}),
        )
    except Exception as error:
        fix = f"the weights do not load ({first_line(error)}); download or export the model again"
        raise InvalidInput("model", folder, fix) from error
    for problem, what in (("missing_keys", "is missing"), ("mismatched_keys", "has the wrong shape")):
        if report.get(problem):
            name = min(key if isinstance(key, str) else str(key[0]) for key in report[problem])
            raise InvalidInput("model", folder, f"tensor {name} {what}; download or export the model again")
    if not model._supports_logits_to_keep():
        fix = f"{type(model).__name__} has no logits_to_keep; use another architecture"
        raise Unsupported("model", folder, fix)
    if tensor_parallel_size == 1:
        model = model.to(device)
    return model.eval()


def eos_token_ids(model: Any) -> tuple[int, ...]:
    """The end-of-sequence ids of a loaded model: its generation config's, else its config's."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    if ids is None:
        ids = model.config.get_text_config().eos_token_id
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def _resolve(model: str, revision: str | None) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or not model:
        raise InvalidInput("model", model, "no such folder; give one, or a Hugging Face name like org/name")
    from huggingface_hub import snapshot_download  # only here: a local folder needs no hub client

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_NEEDED_FILES))
    except Exception as error:
        raise InvalidInput(
            "model",
            model,
            f"neither a folder nor a model that can be downloaded ({first_line(error)}); "
            "check the spelling, the network and HF_TOKEN, or give a local folder",
        ) from error


def _check_layers(folder: Path, config: PreTrainedConfig) -> None:
    """Refuses what the attention function could not notice in a dry run of a few tokens."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or getattr(config, "attention_chunk_size", None):
        kind = min(kinds, default="chunked_attention")
        fix = f"{kind} layers cannot be rolled back here; use another model"
        raise Unsupported("model", str(folder), fix)
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        raise Unsupported("model", str(folder), "its attention is not causal; use a decoder-only model")


def _max_model_len(folder: Path, config: PreTrainedConfig, wanted: int | None) -> int:
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    per_layer = [kind for kind in rope.values() if isinstance(kind, dict)]
    kinds = {kind.get("rope_type") for kind in (rope, *per_layer)}
    if limit and kinds & {"dynamic", "longrope"}:
        # These scale the whole batch by its longest sequence, so beyond the original length a neighbour in
        # the batch would change a request's tokens, and keys cached earlier would be scaled otherwise than
        # later ones.
        limit = getattr(config, "original_max_position_embeddings", None) or rope.get(
            "original_max_position_embeddings", limit
        )
    if wanted is None and limit is None:
        raise InvalidInput("max_model_len", None, f"{folder} names no maximum; give one")
    if wanted is not None and (wanted < 1 or (limit is not None and wanted > limit)):
        raise InvalidInput("max_model_len", wanted, f"must lie between 1 and the model's {limit}")
    chosen: Any = wanted if wanted is not None else limit
    return int(chosen)


def _hash_weights(config: Path, shards: tuple[Path, ...]) -> str:
    num_bytes = sum(shard.stat().st_size for shard in shards)
    is_small = num_bytes <= _MAX_FULL_HASH_BYTES
    digest = hashlib.sha256(config.read_bytes())
    read: Callable[[Path], Iterator[bytes]] = _whole if is_small else _samples
    for shard in shards:
        digest.update(shard.stat().st_size.to_bytes(8, "little"))
        for part in read(shard):
            digest.update(part)
    return f"sha256{'' if is_small else '-sampled'}:{digest.hexdigest()}"


def _whole(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            yield part


def _samples(path: Path) -> Iterator[bytes]:
    """The safetensors header and evenly spaced pieces: tells models apart, does not prove them equal."""
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        yield file.read(min(header_bytes, 1 << 26))
        for index in range(_NUM_SAMPLES):
            file.seek((num_bytes - _SAMPLE_BYTES) * index // (_NUM_SAMPLES - 1))
            yield file.read(_SAMPLE_BYTES)
