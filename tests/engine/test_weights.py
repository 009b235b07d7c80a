"""Whatever is wrong with a model is said at load, with the field, the folder and the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from paceline.engine import weights
from paceline.engine.runner import Runner
from paceline.errors import InvalidInput, Unsupported
from tests.engine.conftest import VOCAB_SIZE, make_config, save_model, write_tokenizer

Folders = Callable[[str], Path]


@pytest.fixture
def folder(model_folder: Folders, tmp_path: Path) -> Path:
    """A Llama that the test may damage."""
    return Path(shutil.copytree(model_folder("Llama"), tmp_path / "model"))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(model: Path | str, **options: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        Runner.load(str(model), **({"max_num_tokens": 64} | options))
    return str(caught.value)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")


def test_a_name_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> str:
        raise OSError("we could not connect")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert "could not connect" in refusal("some-org/some-model")


def test_a_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json is missing" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_not_a_json_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json is not" in refusal(folder)


def test_a_config_of_an_architecture_that_brings_its_own_code(folder: Path) -> None:
    edit_config(folder, model_type="homemade", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("raise SystemExit('executed')")
    assert "never executed" in refusal(folder)


def test_weights_in_a_format_that_can_run_code(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refusal(folder)


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    assert "do not load" in refusal(folder)


def test_a_missing_shard(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors is missing" in refusal(folder)


def test_a_missing_tensor(folder: Path) -> None:
    """transformers fills it with random numbers and goes on."""
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"))
    assert "model.layers.1.self_attn.k_proj.weight is missing" in refusal(folder)


def test_a_tensor_of_the_wrong_shape(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}))
    assert "model.norm.weight has the wrong shape" in refusal(folder)


def test_a_missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refusal(folder)


def test_a_tokenizer_without_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    assert "no readable vocabulary" in refusal(folder)


def test_a_tokenizer_larger_than_the_embedding(folder: Path) -> None:
    write_tokenizer(folder, num_tokens=VOCAB_SIZE + 1)
    assert f"ids up to {VOCAB_SIZE}" in refusal(folder)


def test_bad_options_are_named(folder: Path) -> None:
    assert refusal(folder, dtype="float8").startswith("dtype=")
    assert refusal(folder, device="abacus").startswith("device=")
    assert refusal(folder, block_size=0).startswith("block_size=")
    assert refusal(folder, block_size=128).startswith("max_num_tokens=")
    assert refusal(folder, max_num_tokens=None, kv_cache_bytes=99).startswith("kv_cache_bytes=")
    assert refusal(folder, max_model_len=1000).startswith("max_model_len=")


def test_attention_with_unknown_arguments_is_refused(tmp_path: Path) -> None:
    """gpt-oss passes sinks; an attention function that swallows them gives wrong text."""
    config = make_config("GptOss", num_local_experts=2, num_experts_per_tok=1, sliding_window=16)
    message = refusal(save_model(tmp_path, config))
    assert "gpt_oss" in message
    assert "'s_aux'" in message


def test_recurrent_layers_are_refused(folder: Path) -> None:
    edit_config(folder, layer_types=["linear_attention", "full_attention"])
    with pytest.raises(Unsupported, match="linear_attention"):
        Runner.load(str(folder), max_num_tokens=64)


def test_a_rope_that_depends_on_the_batch_ends_at_its_original_length(folder: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    edit_config(folder, rope_parameters=rope, max_position_embeddings=128)
    assert weights.inspect(str(folder)).max_model_len == 128
    assert refusal(folder, max_model_len=129).startswith("max_model_len=")


def test_info_says_what_was_loaded(folder: Path) -> None:
    edit_config(folder, eos_token_id=[5, 7])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    info = Runner.load(str(folder), max_num_tokens=64).info
    assert (info.vocab_size, info.max_model_len, info.eos_token_ids) == (VOCAB_SIZE, 256, (5, 7))
    assert (info.dtype, info.device) == ("float32", "cpu")
    factory: Any = transformers.AutoModelForCausalLM
    assert info.num_parameters == factory.from_pretrained(folder).num_parameters()


def test_hashes_tell_models_apart_and_copies_alike(folder: Path, tmp_path: Path) -> None:
    model_hash, tokenizer_hash = weights.inspect(str(folder)).hashes()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = dict(reversed(tokenizer["model"]["vocab"].items()))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=4))
    assert weights.inspect(str(folder)).hashes() == (model_hash, tokenizer_hash)
    tokenizer["model"]["vocab"]["t0"], tokenizer["model"]["vocab"]["t1"] = 1, 0
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit_tensors(folder, lambda tensors: tensors["model.norm.weight"].mul_(2))
    changed = weights.inspect(str(folder)).hashes()
    assert changed[0] != model_hash
    assert changed[1] != tokenizer_hash


def test_large_weights_are_hashed_by_sample_and_say_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_MAX_FULL_HASH_BYTES", 1000)
    before, _ = weights.inspect(str(folder)).hashes()
    assert before.startswith("sha256-sampled:")
    edit_tensors(folder, lambda tensors: [tensor.mul_(2) for tensor in tensors.values()])
    assert weights.inspect(str(folder)).hashes()[0] != before


def test_tied_embeddings_are_not_missing_tensors(tmp_path: Path) -> None:
    folder = save_model(tmp_path, make_config("Llama", tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    Runner.load(str(folder), max_num_tokens=64)


def test_a_model_in_several_shards_is_loaded(folder: Path, tmp_path: Path) -> None:
    factory: Any = transformers.AutoModelForCausalLM
    factory.from_pretrained(folder).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    shutil.copy(folder / "tokenizer.json", tmp_path / "shards")
    assert len(weights.inspect(str(tmp_path / "shards")).shards) > 1
    Runner.load(str(tmp_path / "shards"), max_num_tokens=64)
