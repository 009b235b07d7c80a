"""The lean forward pass: who gets it, and that it is the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from paceline.engine import lean
from paceline.engine.executor import Executor
from paceline.engine.runner import Chunk, Runner
from tests.engine.conftest import ARCHITECTURES, make_config, save_model

Folders = Callable[[str], Path]


def logits(runner: Runner) -> torch.Tensor:
    """Rows of two sequences at different positions, after a rollback."""
    for sequence in "ab":
        runner.open(sequence)
    runner.forward([Chunk("a", 0, list(range(40)), 0), Chunk("b", 0, list(range(9)), 0)])
    rows = runner.forward([Chunk("a", 30, [1, 2, 3], 3), Chunk("b", 9, [4], 1)])
    for sequence in "ab":
        runner.close(sequence)
    return rows


def lean_decoder(runner: Runner) -> lean.LeanDecoder | None:
    assert isinstance(runner._executor, Executor)
    return runner._executor._lean


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_the_plain_families_run_lean(model_folder: Folders, architecture: str) -> None:
    runner = Runner.load(str(model_folder(architecture)), max_num_tokens=64)
    assert (lean_decoder(runner) is not None) == (architecture in ["Llama", "Qwen2", "Qwen3", "Mistral"])


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Qwen3", "Mistral"])
def test_lean_and_full_code_agree(model_folder: Folders, monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    folder = str(model_folder(architecture))
    found = logits(Runner.load(folder, max_num_tokens=128))
    monkeypatch.setattr(lean.LeanDecoder, "adopt", lambda *_: None)
    runner = Runner.load(folder, max_num_tokens=128)
    assert lean_decoder(runner) is None
    assert float((logits(runner) - found).abs().max()) < 1e-5


def test_long_contexts_compute_their_angles_step_by_step(
    model_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(model_folder("Llama"))
    expected = logits(Runner.load(folder, max_num_tokens=128))
    monkeypatch.setattr(lean, "_MAX_TABLE_BYTES", 0)
    assert float((logits(Runner.load(folder, max_num_tokens=128)) - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2"])
def test_weights_are_not_held_twice(model_folder: Folders, architecture: str) -> None:
    runner = Runner.load(str(model_folder(architecture)), max_num_tokens=64)
    assert isinstance(runner._executor, Executor)
    model = runner._executor.model
    assert runner.info.num_parameters > sum(parameter.numel() for parameter in model.parameters())
    assert model.model.layers[0].self_attn.q_proj.weight.numel() == 0
    assert model.model.embed_tokens.weight.numel() > 0


@pytest.mark.parametrize("option", ["mlp_bias", "attention_bias"])
def test_a_model_with_other_biases_runs_on_its_own_code(tmp_path: Path, option: str) -> None:
    runner = Runner.load(str(save_model(tmp_path, make_config("Llama", **{option: True}))), max_num_tokens=64)
    assert lean_decoder(runner) is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_are_what_the_output_embedding_reads(model_folder: Folders, architecture: str) -> None:
    """On the lean path and on transformers' own; of the rows that were asked for, in their order."""
    folder = str(model_folder(architecture))
    runner = Runner.load(folder, max_num_tokens=128)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for sequence in "ab":
        runner.open(sequence)
    found = runner.forward_with_hidden([Chunk("a", 0, [5, 6, 7, 8], 2), Chunk("b", 0, [9], 1)])
    with torch.inference_mode():
        expected = model.get_output_embeddings()(found.hidden)
    if cap := getattr(model.config, "final_logit_softcapping", None):
        expected = (expected / cap).tanh() * cap
    assert found.hidden.shape == (3, model.config.hidden_size)
    assert float((found.logits - expected).abs().max()) < 1e-5
    assert torch.equal(
        runner.forward([Chunk("a", 2, [7, 8], 2), Chunk("b", 0, [9], 1)]).argmax(-1), expected.argmax(-1)
    )
    empty = runner.forward_with_hidden([Chunk("a", 1, [], 0)])
    assert len(empty.logits) == len(empty.hidden) == 0
