"""Integers from Python to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def upload(values: Sequence[Any], device: torch.device) -> torch.Tensor:
    """A tensor of `values` on `device`. To a GPU it goes from pinned memory, and nobody waits until it is there."""
    tensor = torch.tensor(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
