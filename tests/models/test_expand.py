"""An expanded model computes what its source computes; without the norms' correction it does not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from models import expand as module
from models.corpus import InputError
from models.expand import Shape, expand, main, parameters, read_shape, shape_near

TOLERANCE = 2e-5
DEMO_TARGET = Path(__file__).parents[2] / "models" / "demo-target"


def save_source(directory: Path, *, tied: bool = True, kv_heads: int = 2) -> Path:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=8,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    # Fresh norms are all ones, which would hide a correction that is applied to the wrong one.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(directory)
    return directory


def logits_of(directory: Path) -> torch.Tensor:
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = torch.arange(60).reshape(2, 30) * 7 % 96
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=tokens).logits
    return logits


def difference(first: Path, second: Path) -> float:
    return float((logits_of(first) - logits_of(second)).abs().max())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 128},
        {"hidden_size": 64},
        {"hidden_size": 40},
        {"num_layers": 5},
        {"intermediate_size": 176},
        {"num_heads": 8},
        {"hidden_size": 128, "num_layers": 3, "intermediate_size": 320, "num_heads": 16},
    ],
)
def test_expanded_model_has_the_logits_of_its_source(tmp_path: Path, sizes: dict[str, int], tied: bool) -> None:
    source = save_source(tmp_path / "source", tied=tied)
    shape = expand(source, tmp_path / "copy", **sizes, seed=3)  # type: ignore[arg-type]
    assert difference(source, tmp_path / "copy") <= TOLERANCE
    model = LlamaForCausalLM.from_pretrained(tmp_path / "copy")
    assert model.num_parameters() == shape.num_parameters > 1.1 * read_shape(source)[1].num_parameters


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_heads_keep_their_key_value_heads(tmp_path: Path, kv_heads: int) -> None:
    source = save_source(tmp_path / "source", kv_heads=kv_heads)
    shape = expand(source, tmp_path / "copy", num_heads=8)
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim) == (8, 2 * kv_heads, 8)
    assert difference(source, tmp_path / "copy") <= TOLERANCE


def test_without_the_correction_of_the_norms_logits_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: it shows that the test above can fail."""
    source = save_source(tmp_path / "source")
    monkeypatch.setattr(module, "norm_scale", lambda old, new: 1.0)
    expand(source, tmp_path / "copy", hidden_size=128)
    assert difference(source, tmp_path / "copy") > 0.1


def test_without_the_correction_of_epsilon_logits_differ(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    # The usual epsilon is far below the mean square here, so that no test would see it.
    (source / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    expand(source, tmp_path / "copy", hidden_size=128)
    assert difference(source, tmp_path / "copy") <= TOLERANCE
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["rms_norm_eps"] == pytest.approx(0.025)
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert difference(source, tmp_path / "copy") > 100 * TOLERANCE


def test_added_weights_are_random_where_they_may_be(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    expand(source, tmp_path / "copy", hidden_size=128, num_layers=3, num_heads=8)
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    query = weights["model.layers.0.self_attn.q_proj.weight"]
    assert query[32:, :].std() > 0.01
    assert query[:, 32:].std() > 0.01
    assert weights["model.layers.2.mlp.up_proj.weight"].std() > 0.01
    assert weights["model.layers.2.mlp.down_proj.weight"].abs().max() == 0


def test_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        expand(source, tmp_path / name, hidden_size=128, seed=seed)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_width_by_a_power_of_four_is_exact_in_bfloat16(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    weights = {name: w.to(torch.bfloat16) for name, w in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    expand(source, tmp_path / "exact", hidden_size=128)
    expand(source, tmp_path / "rounded", hidden_size=64)
    assert load_file(tmp_path / "exact" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert difference(source, tmp_path / "exact") <= TOLERANCE
    assert difference(source, tmp_path / "rounded") > 10 * TOLERANCE


@pytest.mark.parametrize("millions", [29, 90, 212])
def test_shape_near_a_size_is_exact_and_even(millions: int) -> None:
    old = Shape(256, 6, 768, 4, 2, 64, 4096, tied=True)
    new = shape_near(old, millions * 10**6)
    assert abs(new.num_parameters / (millions * 1e6) - 1) <= 0.02
    assert new.hidden_size in (256, 1024, 4096)
    assert new.num_heads % 2 == new.num_kv_heads % 2 == 0
    assert new.num_heads // new.num_kv_heads == 2


def test_copy_says_that_its_extra_weights_do_nothing(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    expand(source, tmp_path / "copy", num_layers=4)
    text = (tmp_path / "copy" / "README.md").read_text(encoding="utf-8")
    assert "expanded copy" in text
    assert "do\nnothing" in text


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"hidden_size": 16}, "hidden_size 16"),
        ({"num_layers": 1}, "num_layers 1"),
        ({"num_heads": 2}, "num_heads 2"),
        ({"hidden_size": 36, "num_heads": 6}, "num_heads 6"),
        ({"num_heads": 12}, "num_heads 12: must divide"),
    ],
)
def test_sizes_that_cannot_be_are_refused(tmp_path: Path, sizes: dict[str, int], named: str) -> None:
    source = save_source(tmp_path / "source")
    with pytest.raises(InputError, match=named):
        expand(source, tmp_path / "copy", **sizes)  # type: ignore[arg-type]
    assert not (tmp_path / "copy").exists()


def test_command_explains_a_source_that_is_no_llama(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert main([str(tmp_path), str(tmp_path / "copy")]) == 2
    assert "model_type is 'gpt2'" in capsys.readouterr().err


def test_sizes_are_read_with_their_units() -> None:
    assert [parameters(text) for text in ("90M", "1.5b", "2k", "7")] == [90_000_000, 1_500_000_000, 2_000, 7]


@pytest.mark.skipif(not DEMO_TARGET.is_dir(), reason="the demo target is not built")
def test_demo_target_expands_without_a_change(tmp_path: Path) -> None:
    expand(DEMO_TARGET, tmp_path / "copy", hidden_size=1024, num_heads=8)
    tokens = torch.arange(40)[None] * 31 % 4096
    logits = []
    for directory in (DEMO_TARGET, tmp_path / "copy"):
        model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
        with torch.inference_mode():
            logits.append(model(input_ids=tokens).logits)
    # Its logits reach beyond 10, and sums over other shapes round otherwise: the tolerance is relative here.
    assert (logits[0] - logits[1]).abs().max() <= TOLERANCE * logits[0].abs().max()
    assert torch.equal(logits[0].argmax(-1), logits[1].argmax(-1))
