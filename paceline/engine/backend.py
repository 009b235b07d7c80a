"""Which of torch's attention kernels a GPU runs: the one that was fastest when the model was loaded.

What torch offers depends on the GPU, the head size, the dtype and the mask, and its own order of preference is a rule
of thumb. So the model's own forward pass is timed under each. One that cannot run these shapes is left out, and stays
behind the others as what torch may fall back to. A CPU has one kernel and nothing to choose.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

CANDIDATES = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
)
_NUM_ROUNDS = 5

Name = TypeVar("Name")


def by_speed(
    candidates: Mapping[Name, Callable[[], object]],
    *,
    num_rounds: int = _NUM_ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Name]:
    """The names of those that run, fastest first by the median; they take turns, so that a slow minute falls on all."""
    times: dict[Name, list[float]] = {name: [] for name in candidates}
    for number in range(num_rounds + 1):  # the first round warms up and finds out who can run
        for name in list(times):
            started_s = clock()
            try:
                candidates[name]()
            except RuntimeError:
                del times[name]
                continue
            if number:
                times[name].append(clock() - started_s)
    return sorted(times, key=lambda name: statistics.median(times[name]))


def choose(run: Callable[[], object]) -> list[SDPBackend]:
    """Torch's backends in the order in which they should be tried on the GPU; `run` is what is timed."""

    def under(backend: SDPBackend) -> Callable[[], object]:
        def timed() -> None:
            with sdpa_kernel(backend):
                run()
            torch.cuda.synchronize()

        return timed

    fastest = by_speed({backend: under(backend) for backend in CANDIDATES})
    return [*fastest, *(backend for backend in CANDIDATES if backend not in fastest)]


def using(backends: Sequence[SDPBackend]) -> AbstractContextManager[None]:
    """Attention tries `backends` in this order; an empty sequence leaves it to torch."""
    return sdpa_kernel(list(backends), set_priority=True) if backends else contextlib.nullcontext()
