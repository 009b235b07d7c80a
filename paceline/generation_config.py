"""What a model's authors would have it sampled with: `generation_config.json`, as far as it is a sampling law."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from paceline.errors import InvalidInput
from paceline.files import read_json
from paceline.types import SamplingParams

FILE = "generation_config.json"
AUTO, NONE = "auto", ("none", "vllm")  # vLLM calls it by its own name
_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_defaults(given: str, model: Path) -> Mapping[str, float]:
    """Fields of `SamplingParams`, by `--generation-config`; only those that differ from ours. Raises InvalidInput."""
    if given in NONE:
        return {}
    file = (model if given == AUTO else Path(given).expanduser()) / FILE
    if not file.exists():
        if given == AUTO:
            return {}
        raise InvalidInput("generation_config", given, f"holds no {FILE}; give auto, none, or a folder that does")
    found = read_json(file)
    values = {name: found[name] for name in _FIELDS if found.get(name) is not None}
    if values.get("top_k") == -1:
        values["top_k"] = 0  # off, as some write it
    try:
        if not all(type(value) is int or (type(value) is float and name != "top_k") for name, value in values.items()):
            raise TypeError("each must be a number, top_k a whole one")
        law = SamplingParams(**values)
    except (InvalidInput, TypeError, ValueError) as error:
        fix = f"its {FILE} holds no sampling law ({error}); correct it, or start with --generation-config none"
        raise InvalidInput("generation_config", str(file.parent), fix) from None
    ours = SamplingParams()
    return {name: getattr(law, name) for name in values if getattr(law, name) != getattr(ours, name)}
