"""Going away without anybody's noticing: no new work, what runs moves or ends, and all of that within a bound."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

DRAIN_S = 20.0  # requests get this long to move or end; Kubernetes kills after 30
POLL_S = 0.05


async def emptied(told: Awaitable[object], is_empty: Callable[[], bool], within_s: float) -> bool:
    """Wait until those who send work have been `told`, and `is_empty()`; False if that took longer than `within_s`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await told
            while True:
                await asyncio.sleep(POLL_S)  # before the first look: what was sent before the news is on its way
                if is_empty():
                    return True
    return False
