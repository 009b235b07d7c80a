"""What `paceline bench serve` asks: prompts of its own making, or those of a file in the shape its data set has.

Nothing is fetched: a data set that needs a file says which, and where it is to be had.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.errors import InvalidInput
from paceline.prompts import SHAPES, question
from paceline.tokenizer import Tokenizer
from paceline.types import Tokens

# Tokens of an output where neither the data set nor an option says how many; vLLM's.
OUTPUT_LEN = 128
CHARACTERS_A_TOKEN = 4  # of English, about
LEAST_SHAREGPT_TOKENS = 4  # of a question or an answer; shorter ones are noise, and vLLM leaves them out too


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to be made."""

    prompt: str | Tokens
    max_tokens: int


def read(given: argparse.Namespace, tokenizer: Callable[[], Tokenizer]) -> list[Ask]:
    """`--num-prompts` asks of the data set, the same for the same seed. Raises InvalidInput.

    A file's prompts come in its order, or shuffled by the seed with `--shuffle`; a short file begins anew.
    """
    rng = random.Random(given.seed)
    if given.dataset_name == "random":
        return _random(given, rng, tokenizer())
    if given.dataset_path is None:
        raise InvalidInput(
            "--dataset-path", "", f"--dataset-name {given.dataset_name} needs {FILES[given.dataset_name]}"
        )
    found = _READERS[given.dataset_name](given)
    if not found:
        raise InvalidInput(
            "--dataset-path", given.dataset_path, f"holds no prompt; it must be {FILES[given.dataset_name]}"
        )
    if given.shuffle:
        rng.shuffle(found)
    return [found[i % len(found)] for i in range(given.num_prompts)]


FILES = {
    "custom": f"a JSONL file, one of {SHAPES} a line; output_tokens beside a prompt says how many tokens it gets",
    "sharegpt": "ShareGPT's JSON file (ShareGPT_V3_unfiltered_cleaned_split.json, from the Hugging Face hub), or "
    'another list of {"conversations": [{"value": TEXT}, …]}',
    "spec_bench": "Spec-Bench's question.jsonl (from its repository, data/spec_bench/question.jsonl)",
    "humaneval": "HumanEval.jsonl or HumanEval.jsonl.gz (from OpenAI's human-eval repository)",
}
NAMES = ("random", *FILES)


def _random(given: argparse.Namespace, rng: random.Random, tokenizer: Tokenizer) -> list[Ask]:
    """Token ids out of the vocabulary's ordinary part: the text is nonsense, the lengths are exact."""
    ends = set(tokenizer.eos_token_ids)
    ordinary = [token_id for token_id in range(tokenizer.vocab_size) if token_id not in ends]
    prefix = tuple(rng.choices(ordinary, k=given.random_prefix_len))

    def length(middle: int) -> int:
        spread = int(middle * given.random_range_ratio)
        return max(1, rng.randint(middle - spread, middle + spread))

    return [
        Ask(prefix + tuple(rng.choices(ordinary, k=length(given.random_input_len))), length(given.random_output_len))
        for _ in range(given.num_prompts)
    ]


def _custom(given: argparse.Namespace) -> list[Ask]:
    asks = []
    for where, value in _lines(given.dataset_path):
        fields = value if isinstance(value, dict) else {"prompt": value}
        turns = fields.get("turns")
        text = fields.get("prompt", turns[0] if isinstance(turns, list) and turns else None)
        if text is None and isinstance(fields.get("question"), str):
            text = question(fields["question"])
        num_tokens = given.output_len or fields.get("output_tokens") or OUTPUT_LEN
        if not (isinstance(text, str) and text and isinstance(num_tokens, int)):
            raise InvalidInput("--dataset-path", where, f"holds no prompt; write one of {SHAPES}")
        asks.append(Ask(text, num_tokens))
    return asks


def _spec_bench(given: argparse.Namespace) -> list[Ask]:
    """The first turn of each question, of one category if `--spec-bench-category` names it."""
    asks, categories = [], set()
    for where, value in _lines(given.dataset_path):
        turns = value.get("turns") if isinstance(value, dict) else None
        if not (isinstance(turns, list) and turns and isinstance(turns[0], str)):
            raise InvalidInput("--dataset-path", where, f"has no turns; it must be {FILES['spec_bench']}")
        categories.add(str(value.get("category")))
        if given.spec_bench_category in (None, value.get("category")):
            asks.append(Ask(turns[0], given.output_len or 256))
    if not asks and categories:
        fix = f"no question has it; there are {', '.join(sorted(categories))}"
        raise InvalidInput("--spec-bench-category", given.spec_bench_category, fix)
    return asks


def _humaneval(given: argparse.Namespace) -> list[Ask]:
    asks = []
    for where, value in _lines(given.dataset_path):
        text = value.get("prompt") if isinstance(value, dict) else None
        if not (isinstance(text, str) and text):
            raise InvalidInput("--dataset-path", where, f"has no prompt; it must be {FILES['humaneval']}")
        asks.append(Ask(text, given.output_len or 256))
    return asks


def _sharegpt(given: argparse.Namespace) -> list[Ask]:
    """The first question of every conversation that has an answer, whose length is the output's if no option says."""
    try:
        parsed = json.loads(_text(given.dataset_path))
    except ValueError as error:
        raise InvalidInput("--dataset-path", given.dataset_path, f"is no JSON: {error}") from None
    asks = []
    for entry in parsed if isinstance(parsed, list) else ():
        turns = (entry.get("conversations") or entry.get("conversation") or ()) if isinstance(entry, dict) else ()
        texts = [str(turn["value"]) for turn in turns[:2] if isinstance(turn, dict) and turn.get("value")]
        lengths = [len(text) // CHARACTERS_A_TOKEN for text in texts]
        if len(texts) == 2 and min(lengths) >= LEAST_SHAREGPT_TOKENS:
            asks.append(Ask(texts[0], given.output_len or lengths[1]))
    return asks


_READERS: dict[str, Callable[[argparse.Namespace], list[Ask]]] = {
    "custom": _custom,
    "sharegpt": _sharegpt,
    "spec_bench": _spec_bench,
    "humaneval": _humaneval,
}


def _lines(file: str) -> Iterator[tuple[str, Any]]:
    """Every line's place and value."""
    for number, line in enumerate(_text(file).splitlines(), 1):
        if line.strip():
            try:
                yield f"{file}:{number}", json.loads(line)
            except ValueError as error:
                raise InvalidInput("--dataset-path", f"{file}:{number}", f"is no JSON: {error}") from None


def _text(file: str) -> str:
    try:
        raw = Path(file).read_bytes()
        return (gzip.decompress(raw) if file.endswith(".gz") else raw).decode()
    except (OSError, EOFError) as error:
        raise InvalidInput("--dataset-path", file, f"cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput("--dataset-path", file, f"is no UTF-8 text: {error.reason}") from None
