"""`--speculative-config JSON`: vLLM's way to say which drafter there is, and how far it drafts."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

from deploy.options import Group, UsageError, rank_of
from paceline.errors import did_you_mean
from paceline.length_policy import LengthPolicy

FLAG = "--speculative-config"
MAX_WHOLE = 64  # of --drafter-tensor-parallel-size, and of a draft's tokens
# What is taken, each with the attribute of the option that says the same.
KEYS = {
    "model": "drafter",
    "num_speculative_tokens": "length_policy",
    "draft_tensor_parallel_size": "drafter_tensor_parallel_size",
}
INSTEAD = {
    "max_model_len": "--max-model-len bounds requests for both models",
    "method": "--drafter prompt-lookup is vLLM's ngram, --drafter suffix its suffix, and a draft model needs no method",
    "prompt_lookup_max": "say --drafter prompt-lookup and --max-ngram",
    "prompt_lookup_min": "say --drafter prompt-lookup and --min-ngram",
    "quantization": "say --drafter-dtype bfloat16",
    "revision": "say --drafter-revision",
}


@dataclass(frozen=True, slots=True)
class SpeculativeConfig:
    """What was given, by its keys; each value is checked."""

    given: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return json.dumps(dict(self.given))


def add_speculative_config(group: Group) -> None:
    group.add(
        FLAG,
        kind=parse,
        metavar="JSON",
        help="as vLLM has it: model is --drafter, num_speculative_tokens N --length-policy fixed:length=N, "
        "draft_tensor_parallel_size --drafter-tensor-parallel-size",
    )


def parse(text: str) -> SpeculativeConfig:
    """Raises ValueError with the fix as its text."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict) or not given:
        raise ValueError('must be a JSON object, such as {"model": "small/", "num_speculative_tokens": 5}')
    for key, value in given.items():
        if key not in KEYS:
            fix = f"{INSTEAD[key]}; leave it out" if key in INSTEAD else f"{did_you_mean(key, KEYS)}It has {_KNOWN}"
            raise ValueError(f"{key} is not offered here: {fix}")
        if key == "model" and not (isinstance(value, str) and value):
            raise ValueError("model must be a folder or ORG/NAME, or prompt-lookup or suffix")
        if key != "model" and not (type(value) is int and 1 <= value <= MAX_WHOLE):
            raise ValueError(f"{key} must be a whole number from 1 to {MAX_WHOLE}")
    return SpeculativeConfig(tuple(given.items()))


def unfold(values: argparse.Namespace) -> None:
    """Set the options that `--speculative-config` stands for. Raises UsageError for what is given twice.

    An option from a higher source (flag, environment, file) wins, as everywhere.
    """
    if values.speculative_config is None:
        return
    rank = rank_of(FLAG)
    for key, value in values.speculative_config.given:
        flag = "--" + KEYS[key].replace("_", "-")
        if rank_of(flag) == rank:
            raise UsageError(f"{FLAG}, {flag}: {key} of the one is the other; give one of the two")
        if rank_of(flag) < rank:
            is_length = KEYS[key] == "length_policy"
            setattr(values, KEYS[key], LengthPolicy.of("fixed", {"length": value}) if is_length else value)


_KNOWN = ", ".join(KEYS)
