"""Which type of numbers a device is fast in.

A CPU without instructions for bfloat16 computes it all the same: a single row as fast as in float32, and every further
row as slowly as the first, so that verifying a draft takes as long as decoding it would.
"""

from __future__ import annotations

import logging

import torch

log = logging.getLogger(__name__)

AUTO = "auto"


def fastest(device: str) -> str:
    """The type that `auto` stands for."""
    return "bfloat16" if has_bfloat16(device) else "float32"


def resolve(dtype: str, device: str) -> str:
    """The type itself. A choice that makes drafting useless on this device is told in the log."""
    if dtype == AUTO:
        return fastest(device)
    if dtype == "bfloat16" and not has_bfloat16(device):
        log.warning("this CPU has no instructions for bfloat16, so passes over drafts are slow: float32 is faster here")
    return dtype


def has_bfloat16(device: str) -> bool:
    """Whether it has instructions for it."""
    return not device.startswith("cpu") or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
