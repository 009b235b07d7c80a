"""What a model's authors would have it sampled with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paceline.errors import InvalidInput
from paceline.generation_config import sampling_defaults


def folder(at: Path, **found: Any) -> Path:
    at.mkdir(exist_ok=True)
    (at / "generation_config.json").write_text(json.dumps(found))
    return at


def test_the_models_own_are_taken_as_far_as_they_are_a_law_and_not_ours_anyway(tmp_path: Path) -> None:
    law = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": None, "repetition_penalty": 1.0}
    model = folder(tmp_path / "m", **law, do_sample=True, eos_token_id=[1, 2], max_length=20)
    assert sampling_defaults("auto", model) == {"temperature": 0.6, "top_p": 0.9, "top_k": 20}
    assert sampling_defaults("none", model) == sampling_defaults("vllm", model) == {}
    assert sampling_defaults(str(folder(tmp_path / "other", top_k=-1, min_p=0.1)), model) == {"min_p": 0.1}


def test_without_a_file_there_is_none_but_a_folder_that_is_named_must_have_one(tmp_path: Path) -> None:
    assert sampling_defaults("auto", tmp_path) == {}
    with pytest.raises(InvalidInput, match=r"holds no generation_config\.json"):
        sampling_defaults(str(tmp_path / "missing"), tmp_path)


@pytest.mark.parametrize("found", [{"temperature": -1}, {"top_k": 2.5}, {"top_p": "0.9"}, {"min_p": True}])
def test_what_is_no_law_is_refused_with_the_file_and_the_way_out(tmp_path: Path, found: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"(?s)generation_config\.json.*--generation-config none"):
        sampling_defaults("auto", folder(tmp_path / "m", **found))
