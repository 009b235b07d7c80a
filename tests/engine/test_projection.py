"""The packed matrix product is the plain one, in every shape that the engine uses."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from paceline.engine import projection
from paceline.engine.projection import Projection

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("shape", [(1,), (2,), (9,), (64,), (2, 3)])
def test_a_projection_is_a_linear_layer(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: torch.dtype, is_packed: bool
) -> None:
    if not is_packed:
        monkeypatch.setattr(projection, "can_pack", lambda _: False)
    torch.manual_seed(0)
    weight, bias = torch.randn(48, 32).to(dtype) / 6, torch.randn(48).to(dtype)
    inputs = torch.randn(*shape, 32).to(dtype)
    expected = linear(inputs.double(), weight.double(), bias.double())
    with torch.inference_mode():
        found = Projection(weight, bias)(inputs)
    assert found.dtype is dtype
    assert float((found - expected).norm() / expected.norm()) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", list(LIMITS))
def test_a_residual_is_added_and_left_as_it_was(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, inputs, sums = torch.randn(48, 32).to(dtype), torch.randn(9, 32).to(dtype), torch.randn(9, 48).to(dtype)
    before = sums.clone()
    expected = sums.double() + linear(inputs.double(), weight.double())
    found = Projection(weight).onto(sums, inputs)
    assert float((found - expected).norm() / expected.norm()) < LIMITS[dtype]
    assert torch.equal(sums, before)


def test_a_single_row_over_large_weights_is_computed_plainly_and_gives_the_same() -> None:
    torch.manual_seed(0)
    weight, inputs, sums = torch.randn(1024, 1024), torch.randn(1, 1024), torch.randn(1, 1024)
    both, packed = Projection(weight, keeps_plain=True), Projection(weight)
    for found, expected in ((both(inputs), packed(inputs)), (both.onto(sums, inputs), packed.onto(sums, inputs))):
        assert float((found - expected).norm() / expected.norm()) < LIMITS[torch.float32]
    assert torch.equal(both(inputs), linear(inputs, weight))


def test_a_torch_without_the_operators_computes_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    projection.can_pack.cache_clear()
    try:
        assert not Projection(torch.eye(4)).is_packed
    finally:
        projection.can_pack.cache_clear()
