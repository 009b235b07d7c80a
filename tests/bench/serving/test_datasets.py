"""What each data set's file becomes, and what is said of one that is none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bench.serving import datasets
from bench.serving.datasets import Ask
from bench.serving.settings import parse
from paceline.errors import InvalidInput
from paceline.tokenizer import Tokenizer
from tests.coordinator.toy import END, write_model

GSM8K = "tests/data/gsm8k_dev_12.jsonl"


def read(*arguments: str, tokenizer: Tokenizer | None = None) -> list[Ask]:
    def given() -> Tokenizer:
        assert tokenizer
        return tokenizer

    return datasets.read(parse(arguments, ""), given)


def test_random_prompts_have_the_lengths_asked_for_and_are_the_seeds(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_model(tmp_path / "model"))
    options = (
        "--num-prompts",
        "30",
        "--random-input-len",
        "20",
        "--random-output-len",
        "8",
        "--random-prefix-len",
        "3",
    )
    same = read(*options, tokenizer=tokenizer)
    assert {len(ask.prompt) for ask in same} == {23}
    assert len({ask.prompt[:3] for ask in same}) == 1
    assert not any(END in ask.prompt for ask in same)
    assert same == read(*options, tokenizer=tokenizer)
    assert same != read(*options, "--seed", "1", tokenizer=tokenizer)
    spread = read(*options, "--random-range-ratio", "0.5", tokenizer=tokenizer)
    assert min(len(ask.prompt) for ask in spread) >= 13
    assert {ask.max_tokens for ask in spread} <= set(range(4, 13))
    assert len({ask.max_tokens for ask in spread}) > 1


def test_a_custom_file_in_any_of_the_houses_shapes_begins_anew_when_it_is_short(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "output_tokens": 7}\n"b"\n{"turns": ["c", "d"]}\n')
    asks = read("--dataset-path", str(file), "--num-prompts", "4")
    assert asks == [Ask("a", 7), Ask("b", 128), Ask("c", 128), Ask("a", 7)]
    assert {ask.max_tokens for ask in read("--dataset-path", str(file), "--custom-output-len", "5")} == {5}
    (question, *_) = read("--dataset-path", GSM8K, "--num-prompts", "1")
    assert isinstance(question.prompt, str)
    assert question.prompt.startswith("Question: ")


def test_published_data_sets_are_read_in_their_own_shapes(tmp_path: Path) -> None:
    spec = tmp_path / "question.jsonl"
    rows = [{"question_id": i, "category": name, "turns": [f"q{i}", "more"]} for i, name in enumerate(("qa", "math"))]
    spec.write_text("\n".join(map(json.dumps, rows)))
    common = ("--num-prompts", "2", "--dataset-path")
    assert read(*common, str(spec), "--dataset-name", "spec_bench") == [Ask("q0", 256), Ask("q1", 256)]
    only = read(*common, str(spec), "--dataset-name", "spec_bench", "--spec-bench-category", "math")
    assert only == [Ask("q1", 256)] * 2
    code = tmp_path / "HumanEval.jsonl.gz"
    code.write_bytes(gzip.compress(b'{"task_id": "HumanEval/0", "prompt": "def f():"}\n'))
    assert read(*common, str(code), "--dataset-name", "humaneval") == [Ask("def f():", 256)] * 2
    talk = tmp_path / "sharegpt.json"
    turns = [{"from": "human", "value": "x" * 40}, {"from": "gpt", "value": "y" * 80}]
    talk.write_text(json.dumps([{"conversations": turns}, {"conversations": turns[:1]}, {"conversations": []}]))
    assert read(*common, str(talk), "--dataset-name", "sharegpt") == [Ask("x" * 40, 20)] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dataset-name", "humaneval"), "needs HumanEval.jsonl"),
        (("--dataset-name", "spec_bench", "--dataset-path", GSM8K), "has no turns"),
        (("--dataset-name", "sharegpt", "--dataset-path", GSM8K), "is no JSON"),
        (("--dataset-path", "nowhere.jsonl"), "cannot be read"),
        (("--backend", "openai-chat", "--dataset-name", "random"), "use /v1/completions"),
    ],
)
def test_a_file_that_is_missing_or_another_is_refused_with_what_it_must_be(
    arguments: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        read(*arguments)
