"""What a forward pass will take: measured at the start, refreshed while running.

    ms(step) = base + per_token * tokens + per_seq * sequences + per_context_token * cached tokens read

Four numbers, none of them negative, by least squares on relative errors: a prefill of a second and a decode of ten
milliseconds count alike. What was measured at the start never fades, so that shapes which traffic does not show keep
their estimate; what is seen while running fades, so that it follows a machine that becomes slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from paceline.engine.plan import Chunk
from paceline.engine.runner import Runner
from paceline.types import StepCost, WorkerInfo

# A pass that took this many times its estimate was held up by something else; one that really became slower is
# believed after a few of them.
_MAX_SURPRISE = 4.0
_MEMORY = 100.0  # passes until what was seen counts for a third
_START_WEIGHT = 0.25  # of a measurement at the start, against a pass seen while running
_REFRESH_EVERY = 32
_RIDGE = 1e-9
_SCALES = np.array([1.0, 16.0, 4.0, 1024.0])  # usual sizes, so that the four numbers are of a kind


class CostModel:
    """The regression. It starts ignorant: `cost` is None until something was seen."""

    def __init__(self) -> None:
        self._start = _Sums(1.0)
        self._running = _Sums(1 - 1 / _MEMORY)
        self._num_seen = 0
        self._cost: StepCost | None = None
        self._is_fresh = True

    @property
    def num_seen(self) -> int:
        return self._num_seen

    @property
    def cost(self) -> StepCost | None:
        """The present estimate."""
        if not self._is_fresh:
            self._cost = self._fit()
            self._is_fresh = True
        return self._cost

    def observe(self, num_tokens: int, num_seqs: int, context: float, ms: float, *, at_start: bool = False) -> None:
        """A pass over `num_tokens` of `num_seqs` sequences, with `context` cached tokens each on average."""
        if not (num_tokens > 0 and num_seqs > 0 and 0 < ms < float("inf")):
            return
        if not at_start and self._cost is not None and (expected := self._cost.ms(num_tokens, num_seqs, context)) > 0:
            ms = min(ms, _MAX_SURPRISE * expected)
        features = np.array([1.0, num_tokens, num_seqs, num_seqs * context]) / _SCALES
        (self._start if at_start else self._running).add(features / ms)
        self._num_seen += 1
        self._is_fresh = False

    def seen(self, info: WorkerInfo, chunks: Sequence[Chunk], ms: float) -> WorkerInfo:
        """Observes a pass; `info` with the present estimate, which changes every so many passes."""
        if chunks:
            num_tokens = sum(len(chunk.token_ids) for chunk in chunks)
            self.observe(num_tokens, len(chunks), sum(chunk.start for chunk in chunks) / len(chunks), ms)
        if self._num_seen % _REFRESH_EVERY == 1:
            return replace(info, cost=self.cost)
        return info

    def _fit(self) -> StepCost:
        matrix = _START_WEIGHT * self._start.matrix + self._running.matrix
        vector = _START_WEIGHT * self._start.vector + self._running.vector
        matrix = matrix + _RIDGE * np.trace(matrix) * np.eye(4)
        used = [0, 1, 2, 3]
        solution = np.zeros(4)
        while used:  # what comes out negative is nothing; without it the others come out a little different
            found = np.linalg.solve(matrix[np.ix_(used, used)], vector[used])
            if found.min() >= 0:
                solution[used] = found
                break
            used.pop(int(found.argmin()))
        return StepCost(*(float(value) for value in solution / _SCALES))


class _Sums:
    """The normal equations of relative errors: rows are features / ms, and each should give 1."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self.matrix: NDArray[np.float64] = np.zeros((4, 4))
        self.vector: NDArray[np.float64] = np.zeros(4)

    def add(self, row: NDArray[np.float64]) -> None:
        self.matrix = self._decay * self.matrix + np.outer(row, row)
        self.vector = self._decay * self.vector + row


# (sequences, cached tokens each, new tokens each): decode steps, drafts under test, prefill chunks.
SHAPES = ((1, 0, 1), (1, 0, 8), (1, 0, 64), (4, 16, 1), (4, 16, 8), (1, 256, 1), (1, 256, 64), (8, 64, 4), (1, 0, 256))


def measure(runner: Runner, within_s: float = 1.5, clock: Callable[[], float] = time.perf_counter) -> CostModel:
    """A model that has seen each of `SHAPES` that fits, twice if there is time. Ends after about `within_s`."""
    model, deadline_s = CostModel(), clock() + within_s
    longest = min(runner.info.max_model_len, runner.room())
    is_warm = False
    for num_seqs, context, num_new in SHAPES + SHAPES:
        if clock() >= deadline_s or num_seqs * (context + num_new) > runner.room() or context + num_new > longest:
            continue
        names = [f"cost/{index}" for index in range(num_seqs)]
        for name in names:
            runner.open(name)
        try:
            if context:
                runner.forward([Chunk(name, 0, [1] * context, 0) for name in names])
            chunks = [Chunk(name, context, [1] * num_new, 1) for name in names]
            if not is_warm:  # the first pass of a process is no measure of the others
                runner.forward(chunks)
                is_warm = True
            started_s = clock()
            runner.forward(chunks)
            ms = 1e3 * (clock() - started_s)
            model.observe(num_seqs * num_new, num_seqs, context, ms, at_start=True)
        finally:
            for name in names:
                runner.forget(name)  # nothing of this is worth caching
                runner.close(name)
    return model
