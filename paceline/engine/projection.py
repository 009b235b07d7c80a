"""A linear layer's matrix product. On a CPU its weights are packed for oneDNN first: that is up to twice as fast.

torch's own `linear` reads weights as they lie: MKL's float32 kernels are slow for the two to sixty-four rows of a
verification, and oneDNN's bfloat16 ones rearrange the weights in every call. Packed once, they are read as they are
multiplied (docs/benchmarks.md has the figures). The operators are those that torch's own compiler emits for a CPU.

One thing they do worse: a single float32 row over weights that no cache holds. For those the weights are kept as they
lie, too, while they are few.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn.functional import linear

_CACHED = 1 << 20  # elements of a weight; one of 4 MiB stays in a core's cache from one token to the next
_MAX_KEPT_BYTES = 4 << 30  # of a model whose weights may be held twice


def keeps_plain(model: Any) -> bool:
    """Whether this model's weights are few enough to be held twice where that is faster."""
    num_bytes = sum(int(parameter.nbytes) for parameter in model.parameters())
    return num_bytes <= _MAX_KEPT_BYTES


class Projection:
    """inputs @ weight.T + bias, for inputs [..., in] and a weight [out, in]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, keeps_plain: bool = False) -> None:
        """Keeps a packed copy of `weight` if that helps, else the weight itself; `keeps_plain`: both if both help."""
        self.is_packed = weight.device.type == "cpu" and can_pack(weight.dtype)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.is_packed else weight
        self._bias = bias
        is_large = weight.dtype is torch.float32 and weight.numel() >= _CACHED
        self._plain = weight if self.is_packed and keeps_plain and is_large else None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if self._plain is not None and inputs.numel() == inputs.shape[-1]:
            return linear(inputs, self._plain, self._bias)
        if not self.is_packed:
            return linear(inputs, self._weight, self._bias)
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        return result

    def onto(self, sums: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """sums + inputs @ weight.T in one call, for matrices and a projection without a bias."""
        if self._plain is not None and len(inputs) == 1:
            return torch.addmm(sums, inputs, self._plain.t())
        if not self.is_packed:
            return torch.addmm(sums, inputs, self._weight.t())
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(inputs, sums, self._weight, None, "add")
        return result


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch on this CPU has the packed product, and it gives what `linear` does."""
    backend: Any = torch.backends.mkldnn
    try:
        if not backend.is_available():
            return False
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        weight, inputs = torch.eye(16, dtype=dtype), torch.arange(32, dtype=dtype).view(2, 16)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        product = torch.ops.mkldnn._linear_pointwise(inputs, packed, None, "none", [], "")
        summed = torch.ops.mkldnn._linear_pointwise.binary(inputs, inputs, packed, None, "add")
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return bool((product == inputs).all() and (summed == 2 * inputs).all())


def pack_modules(model: Any) -> None:
    """Makes every plain `nn.Linear` of a model on a CPU compute with packed weights; what they replace is freed."""
    keeps = keeps_plain(model)
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight.device.type == "cpu" and can_pack(module.weight.dtype):
            bias = None if module.bias is None else module.bias.detach()
            vars(module)["forward"] = Projection(module.weight.detach(), bias, keeps_plain=keeps)
            free(module)


def free(module: Any) -> None:
    """Lets go of a linear layer's own weight, which a projection has taken over; a tied embedding keeps it."""
    module.weight = torch.nn.Parameter(module.weight.new_empty(0), requires_grad=False)
