"""When requests are made: as they would arrive, or as many at a time as are allowed."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence

from bench.serving.call import Outcome
from bench.serving.datasets import Ask


def arrivals_s(count: int, rate: float, burstiness: float, rng: random.Random) -> list[float]:
    """When each of `count` requests is made, from 0 on: gaps of a gamma law with mean 1 / `rate`.

    A burstiness of 1 is a Poisson process; less comes in bursts, more evenly. An infinite rate: all at once.
    """
    if math.isinf(rate):
        return [0.0] * count
    times, at_s = [], 0.0
    for _ in range(count):
        times.append(at_s)
        at_s += rng.gammavariate(burstiness, 1 / (rate * burstiness))
    return times


async def run(
    asks: Sequence[Ask],
    call: Callable[[Ask], Awaitable[Outcome]],
    times_s: Sequence[float],
    max_concurrency: int | None,
    advance: Callable[[], None],
) -> list[Outcome]:
    """The outcomes in the order of `asks`. A request that waits for its turn has not begun: its clock stands."""
    begun_s = time.perf_counter()
    turns = asyncio.Semaphore(max_concurrency or len(asks))

    async def one(ask: Ask, at_s: float) -> Outcome:
        await asyncio.sleep(max(0.0, begun_s + at_s - time.perf_counter()))
        async with turns:
            outcome = await call(ask)
        advance()
        return outcome

    return await asyncio.gather(*(one(ask, at_s) for ask, at_s in zip(asks, times_s, strict=True)))
