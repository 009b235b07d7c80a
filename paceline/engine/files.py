"""What can be told about a model's folder from its files alone: no tensor is read, and torch is not needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paceline.errors import InvalidInput


def read_json(folder: Path, name: str, fix: str, *, field: str = "model") -> dict[str, Any]:
    """The object in a file of the folder. `field`: what the caller calls the folder, for the error."""
    path = folder / name
    if not path.is_file():
        raise InvalidInput(field, str(folder), f"{name} is missing; {fix}")
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        problem = f"{name} is not valid JSON ({first_line(error)}); {fix}"
        raise InvalidInput(field, str(folder), problem) from error
    if not isinstance(parsed, dict):
        raise InvalidInput(field, str(folder), f"{name} is not a JSON object; {fix}")
    return parsed


def find_shards(folder: Path, *, field: str = "model") -> tuple[Path, ...]:
    """The files that hold the weights, all of which are there."""
    single = folder / "model.safetensors"
    if single.is_file():
        return (single,)
    if not (folder / "model.safetensors.index.json").is_file():
        fix = "no model.safetensors; other formats can run code when read: save the model as safetensors"
        raise InvalidInput(field, str(folder), fix)
    fix = "download the model again"
    weight_map = read_json(folder, "model.safetensors.index.json", fix, field=field).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidInput(field, str(folder), f"model.safetensors.index.json names no weights; {fix}")
    shards = tuple(folder / str(name) for name in sorted(set(weight_map.values())))
    for shard in shards:
        if not shard.is_file():
            raise InvalidInput(field, str(folder), f"{shard.name} is missing; {fix}")
    return shards


def check_tokenizer(folder: Path, vocab_size: int, *, field: str = "model") -> None:
    """Raises InvalidInput if tokenizer.json has ids for which the embedding of `vocab_size` rows has none."""
    tokenizer = read_json(folder, "tokenizer.json", "save the fast tokenizer into the same folder", field=field)
    try:
        ids = [int(entry["id"]) for entry in tokenizer.get("added_tokens") or []]
        vocab = tokenizer["model"]["vocab"]
        # Unigram has a list of [token, score] pairs, every other model a map from token to id.
        ids += [len(vocab) - 1] if isinstance(vocab, list) else [int(id_) for id_ in vocab.values()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fix = "tokenizer.json has no readable vocabulary; save the fast tokenizer into the same folder"
        raise InvalidInput(field, str(folder), fix) from error
    if ids and max(ids) >= vocab_size:
        raise InvalidInput(
            field,
            str(folder),
            f"tokenizer.json has ids up to {max(ids)}, but the embedding only {vocab_size} rows; "
            "use the tokenizer that belongs to this model",
        )


def first_line(error: Exception) -> str:
    """The class of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
