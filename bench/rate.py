"""Tokens a second with so many clients at a time, each asking again when it has been answered.

Counting begins when every client reads tokens, so prefilling is not in it, and goes from arrival to arrival, so that a
pass is counted whole or not at all. At the end the clients hang up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paceline.client import AsyncClient
from paceline.errors import Unavailable

MAX_TOKENS = 96
RAMP_S = 60.0  # until the last of the clients reads tokens
QUIET_S = 20.0  # until the server has freed what was hung up


@dataclass
class Arrivals:
    """What came, in the order in which it came."""

    arrivals: list[tuple[float, int]] = field(default_factory=list)  # seconds, tokens
    modes: Counter[str] = field(default_factory=Counter)  # that finished requests ended in

    def rate(self, from_s: float, to_s: float) -> float:
        """Tokens a second from the last arrival before `from_s` to the last one before `to_s`."""
        times = [at_s for at_s, _ in self.arrivals if at_s <= to_s]
        first_s = max((at_s for at_s in times if at_s <= from_s), default=from_s)
        last_s = max(times, default=from_s)
        if last_s <= first_s:
            return 0.0
        return sum(num for at_s, num in self.arrivals if first_s < at_s <= last_s) / (last_s - first_s)


async def run(
    server: str,
    prompts: Sequence[str],
    mode: str | None,
    num_clients: int,
    seconds: float,
    strike: Callable[[], None] | None = None,
) -> tuple[float, Counter[str]]:
    """Tokens a second, and the modes of the requests that finished. `strike` is called as the counting begins."""
    came, clock = Arrivals(), asyncio.get_running_loop().time
    begun: set[int] = set()
    all_begun = asyncio.Event()

    async def ask(number: int, client: AsyncClient) -> None:
        turn = number
        while True:
            prompt = prompts[turn % len(prompts)]
            async for chunk in client.generate(prompt, max_tokens=MAX_TOKENS, ignore_eos=True, mode=mode):
                came.arrivals.append((clock(), len(chunk.token_ids)))
                begun.add(number)
                if len(begun) == num_clients:
                    all_begun.set()
                if chunk.metrics:
                    came.modes[chunk.metrics["mode"]] += 1
            turn += num_clients

    async with AsyncClient(server) as client:
        tasks = [asyncio.create_task(ask(number, client)) for number in range(num_clients)]
        try:
            async with asyncio.timeout(RAMP_S):
                await _first(all_begun, tasks)
            from_s = clock()
            if strike:
                strike()
            await asyncio.sleep(seconds)
            rate = came.rate(from_s, clock())
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if not isinstance(error, asyncio.CancelledError) and isinstance(error, BaseException):
                raise error
        await _quiet(client)
    return rate, came.modes


async def _first(event: asyncio.Event, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Until the event has come, or a task has failed, which the caller sees."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((waiting, *tasks), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting


async def _quiet(client: AsyncClient) -> None:
    """Until no request is left: what hung up must not take part in the next measurement."""
    deadline_s = asyncio.get_running_loop().time() + QUIET_S
    while (info := await client.server_info()).num_requests_running + info.num_requests_waiting:
        if asyncio.get_running_loop().time() > deadline_s:
            raise Unavailable(f"requests that hung up were still running after {QUIET_S:g} s")
        await asyncio.sleep(0.02)
