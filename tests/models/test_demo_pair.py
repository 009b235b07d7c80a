"""The shipped pair is complete, small, and one pair: the same vocabulary in both folders."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from models.distil import continuations
from models.measure import compare
from paceline import acceptance_head
from paceline.engine import weights

MODELS = Path(__file__).parents[2] / "models"
PAIR = [MODELS / "demo-target", MODELS / "demo-drafter"]
MAX_BYTES = 32_000_000


def config_of(directory: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return config


def test_pair_is_small_enough_to_ship() -> None:
    total = sum(path.stat().st_size for directory in PAIR for path in directory.rglob("*"))
    assert 5_000_000 < total <= MAX_BYTES


def test_folders_hold_what_serving_needs_and_no_pickle() -> None:
    needed = {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for directory in PAIR:
        names = {path.name for path in directory.iterdir()}
        assert needed <= names
        extras = {"special_tokens_map.json", "figures.json", "chat_template.jinja", acceptance_head.FILE}
        assert names - needed <= extras


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_both_folders_have_the_same_tokenizer(name: str) -> None:
    assert (PAIR[0] / name).read_bytes() == (PAIR[1] / name).read_bytes()


def test_vocabularies_and_ends_are_the_same() -> None:
    target, drafter = (config_of(directory) for directory in PAIR)
    tokenizer = AutoTokenizer.from_pretrained(PAIR[0])
    for config in (target, drafter):
        assert config["vocab_size"] == len(tokenizer) == 4096
        assert config["eos_token_id"] == tokenizer.eos_token_id
        assert config.get("bos_token_id") is None
        assert config["max_position_embeddings"] == 1024
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"


def test_the_shipped_head_is_the_shipped_drafters_and_small() -> None:
    (target_hash, _), (drafter_hash, _) = (weights.inspect(str(directory)).hashes() for directory in PAIR)
    head = acceptance_head.beside(PAIR[1], drafter_hash=drafter_hash)
    assert head is not None
    assert head.info.target_hash == target_hash
    assert head.info.hidden_size == config_of(PAIR[1])["hidden_size"]
    assert {6.0, 12.0, 25.0} <= set(head.info.thresholds)
    assert (PAIR[1] / acceptance_head.FILE).stat().st_size < 200_000


def test_tensor_parallel_over_two_devices_can_split_both_models() -> None:
    for directory in PAIR:
        config = config_of(directory)
        for field in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            value = config[field]
            assert isinstance(value, int)
            assert value % 2 == 0


def test_tokenizer_adds_nothing_and_splits_numbers_into_digits() -> None:
    text = "Question: Tom has 120 apples.\nAnswer: 120/2 = 60\n#### 60"
    plain = Tokenizer.from_file(str(PAIR[0] / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(PAIR[0])
    ids = plain.encode(text).ids
    assert auto.encode(text) == ids
    assert plain.decode(ids) == text
    digits = [plain.decode([i]) for i in ids if any(c.isdigit() for c in plain.decode([i]))]
    assert digits == list("12012026060")


def test_pair_loads_in_bfloat16_and_agrees_on_most_of_an_easy_answer() -> None:
    """The target's own greedy answer, which the drafter was distilled on: most of it must be drafted rightly."""
    target, drafter = (LlamaForCausalLM.from_pretrained(directory) for directory in PAIR)
    assert target.dtype == drafter.dtype == torch.bfloat16
    tokenizer = Tokenizer.from_file(str(PAIR[0] / "tokenizer.json"))
    prompt = tokenizer.encode("Question: Tom has 12 apples and buys 5 more. How many has he now?\nAnswer:").ids
    _, answer = next(continuations(target, [tuple(prompt)], temperature=0.0, seed=0, max_new_tokens=100))
    assert compare(target, [drafter], [answer])[0].agrees.float().mean() > 0.6


def test_cards_name_licence_data_and_limits() -> None:
    for directory in PAIR:
        card = (directory / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nlicense: apache-2.0\n")
        for word in ("GSM8K", "MIT", "python -m models.train", "wrong"):
            assert word in card
