"""The acceptance head's file: what comes back, and what is refused before it could mislead."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline import acceptance_head
from paceline.acceptance_head import AcceptanceHead, HeadInfo, TrainedHead
from paceline.errors import InvalidInput

INFO = HeadInfo(
    hidden_size=8,
    num_blocks=3,
    is_tied=False,
    drafter_hash="sha256:" + "a" * 64,
    target="big",
    target_hash="sha256:" + "b" * 64,
    temperature=1.0,
    thresholds={2.0: 0.5, 12.0: 0.75},
    auc=0.7,
)


def head(**changes: Any) -> TrainedHead:
    """One with weights of chance, in bfloat16 as they are stored."""
    info = replace(INFO, **changes)
    module = AcceptanceHead(info.hidden_size, num_blocks=info.num_blocks, is_tied=info.is_tied)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).bfloat16())
    return TrainedHead(module, info)


HIDDEN = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("changes", [{}, {"is_tied": True}, {"num_blocks": 0}, {"num_blocks": 1}], ids=str)
def test_a_head_comes_back_as_it_was_saved(tmp_path: Path, changes: dict[str, Any]) -> None:
    given = head(**changes)
    path = tmp_path / acceptance_head.FILE
    acceptance_head.save(given, path)
    found = acceptance_head.beside(tmp_path, drafter_hash=INFO.drafter_hash)
    assert found is not None
    assert found.info == given.info
    assert torch.equal(found.accept_probs(HIDDEN), given.accept_probs(HIDDEN))


def test_blocks_are_residual_and_tied_ones_are_one_block_applied_again() -> None:
    module = head(is_tied=True).module
    weight, bias = (module.blocks[0].get_parameter(name).detach() for name in ("weight", "bias"))
    hidden = HIDDEN
    for _ in range(3):
        hidden = hidden + torch.nn.functional.silu(hidden @ weight.T + bias)
    assert torch.allclose(module(HIDDEN), module.classes(hidden), atol=1e-4)
    assert len(module.blocks) == 1
    assert len(head().module.blocks) == 3


def test_a_head_that_has_learned_nothing_is_the_linear_map_alone() -> None:
    module = AcceptanceHead(8, num_blocks=3, is_tied=False)
    assert torch.equal(module(HIDDEN), module.classes(HIDDEN))


def test_probabilities_are_those_of_the_second_class() -> None:
    given = head()
    scores = given.module(HIDDEN)
    assert torch.allclose(given.accept_probs(HIDDEN), (scores[:, 1] - scores[:, 0]).sigmoid(), atol=1e-6)


def test_a_model_without_a_head_has_none(tmp_path: Path) -> None:
    assert acceptance_head.beside(tmp_path, drafter_hash=INFO.drafter_hash) is None


def test_another_drafters_head_is_refused_with_both_hashes_and_the_fix(tmp_path: Path) -> None:
    acceptance_head.save(head(), tmp_path / acceptance_head.FILE)
    other = "sha256:" + "c" * 64
    with pytest.raises(InvalidInput, match=f"{INFO.drafter_hash}.*{other}.*train one for this drafter"):
        acceptance_head.beside(tmp_path, drafter_hash=other)


def broken(path: Path, tensors: dict[str, torch.Tensor], **info: Any) -> None:
    written = json.loads(json.dumps({name: getattr(INFO, name) for name in INFO.__slots__}, default=str))
    written |= {"thresholds": {"2": 0.5}} | info
    save_file(tensors, path, metadata={"format": acceptance_head.FORMAT, "info": json.dumps(written)})


@pytest.mark.parametrize(
    "info",
    [
        {"hidden_size": 0},
        {"hidden_size": 9},
        {"num_blocks": 99},
        {"num_blocks": 2},
        {"thresholds": {}},
        {"thresholds": {"0": 0.5}},
        {"thresholds": {"2": 1.5}},
        {"thresholds": {"2": "high"}},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_file_whose_metadata_does_not_fit_is_refused(tmp_path: Path, info: dict[str, Any]) -> None:
    path = tmp_path / acceptance_head.FILE
    acceptance_head.save(head(), path)
    broken(path, load_file(path), **info)
    with pytest.raises(InvalidInput, match="is no head that can be read"):
        acceptance_head.load(path, drafter_hash=INFO.drafter_hash)


@pytest.mark.parametrize("content", [b"", b"not a head", b"\x80\x04pickle"])
def test_a_file_that_is_no_head_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / acceptance_head.FILE
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="is no head that can be read"):
        acceptance_head.load(path, drafter_hash=INFO.drafter_hash)


def test_another_kind_of_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / acceptance_head.FILE
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(InvalidInput, match="its format is None"):
        acceptance_head.load(path, drafter_hash=INFO.drafter_hash)
