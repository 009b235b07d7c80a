"""`--speculative-config`, and what else those who come from vLLM type."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from deploy import serve
from deploy.speculative_config import INSTEAD, unfold
from deploy.unoffered import UNOFFERED
from paceline.errors import InvalidInput, UsageError

WHOLE = {"model": "small/", "num_speculative_tokens": 5, "draft_tensor_parallel_size": 2}


def given(config: Any, *argv: str, **environ: str) -> argparse.Namespace:
    text = config if isinstance(config, str) else json.dumps(config)
    values = serve.parser().parse(["big/", "--speculative-config", text, *argv], environ)
    unfold(values)
    return values


def test_its_keys_are_the_options_that_say_the_same() -> None:
    values = given(WHOLE)
    assert (values.drafter, values.drafter_tensor_parallel_size) == ("small/", 2)
    assert str(values.length_policy) == "fixed:length=5"
    assert json.loads(str(values.speculative_config)) == WHOLE, "as --print-config writes it"
    alone = given({"model": "small/"})
    assert (alone.length_policy, alone.drafter_tensor_parallel_size) == (None, 1)


@pytest.mark.parametrize(
    ("key", "argv"),
    [
        ("model", ("--drafter", "other/")),
        ("num_speculative_tokens", ("--length-policy", "svip")),
        ("draft_tensor_parallel_size", ("--drafter-tensor-parallel-size", "2")),
    ],
)
def test_what_is_said_twice_is_refused_by_both_names(key: str, argv: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=f"--speculative-config, {argv[0]}: {key}"):
        given({key: WHOLE[key]}, *argv)


def test_the_command_line_wins_over_the_environment() -> None:
    assert given(WHOLE, PACELINE_DRAFTER="other/").drafter == "small/"
    values = serve.parser().parse(["--drafter", "other/"], {"PACELINE_SPECULATIVE_CONFIG": json.dumps(WHOLE)})
    unfold(values)
    assert (values.drafter, values.drafter_tensor_parallel_size) == ("other/", 2)


@pytest.mark.parametrize(
    ("config", "fix"),
    [
        ("small/", "must be a JSON object"),
        ("[" * 100_000, "must be a JSON object"),
        ([], "must be a JSON object"),
        ({}, "must be a JSON object"),
        ({"model": 3}, "model must be a folder"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens must be a whole number from 1 to 64"),
        ({"num_speculative_tokens": True}, "num_speculative_tokens must be a whole number from 1 to 64"),
        ({"draft_tensor_parallel_size": 65}, "draft_tensor_parallel_size must be a whole number from 1 to 64"),
        ({"num_speculative_token": 5}, "did you mean num_speculative_tokens"),
        *(({key: 1}, f"{key} is not offered here: {fix}") for key, fix in INSTEAD.items()),
    ],
)
def test_what_is_wrong_names_the_key_and_the_fix(config: Any, fix: str) -> None:
    with pytest.raises(InvalidInput, match="--speculative-config=") as caught:
        given(config)
    assert fix in str(caught.value)


def test_what_is_called_unoffered_is_no_option_of_serve_and_what_it_names_is() -> None:
    known = {flag for option in serve.parser().options for flag in option.flags}
    assert not known & UNOFFERED.keys()
    named = {word.strip(",;") for fix in (*UNOFFERED.values(), *INSTEAD.values()) for word in fix.split()}
    assert {word for word in named if word.startswith("--")} <= known


@pytest.mark.parametrize("name", ["--dtype", "--drafter-dtype"])
def test_float_is_float32_under_its_other_name(name: str) -> None:
    values = serve.parser().parse(["big/", name, "float"], {})
    assert getattr(values, name.removeprefix("--").replace("-", "_")) == "float32"
