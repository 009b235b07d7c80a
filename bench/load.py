"""So many requests under way at all times: when one ends the next begins, and what each client saw is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from paceline.client import AsyncClient
from paceline.errors import PacelineError
from paceline.types import Tokens


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for, again and again."""

    prompt: str | Tokens
    options: Mapping[str, Any]  # `paceline.client.Options`


@dataclass
class Answer:
    """What came of it, on the monotonic clock, which all processes of a machine share."""

    number: int  # of the ask
    started_s: float
    tokens: list[int] = field(default_factory=list)
    came_s: list[float] = field(default_factory=list)  # one for every piece of tokens
    ended_s: float = 0.0  # 0 = cut off when the load ended
    error: PacelineError | None = None

    @property
    def is_whole(self) -> bool:
        return self.ended_s > 0 and self.error is None

    def gaps(self) -> list[tuple[float, float]]:
        """(when it ended, how long it was), for every wait between two pieces."""
        return [(after, after - before) for before, after in zip(self.came_s, self.came_s[1:], strict=False)]


def asks(prompts: Sequence[str | Tokens], num: int, **options: Any) -> list[Ask]:
    """`num` different ones, turn about greedy and sampled with a seed of their own."""
    laws: list[dict[str, Any]] = [
        {"temperature": 0.0} if i % 2 else {"temperature": 1.0, "seed": i} for i in range(num)
    ]
    return [Ask(prompts[i % len(prompts)], {**options, **law}) for i, law in enumerate(laws)]


class Load:
    """See the top of the file. `answers` are in the order in which they began."""

    def __init__(self, address: str, asks: Sequence[Ask], *, again: bool = True, clients: int = 1) -> None:
        """One request of each ask at a time; once only unless `again`. Connections are shared by `clients`."""
        self.answers: list[Answer] = []
        self._asks, self._again = asks, again
        # What the server says is what is measured, so nothing is hidden by asking again.
        self._clients = [AsyncClient(address, max_retries=0) for _ in range(clients)]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._repeat(number)) for number in range(len(self._asks))]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            await client.close()

    async def finished(self) -> list[Answer]:
        """The answers, when all have come; only for a load that runs once."""
        await asyncio.gather(*self._tasks)
        return self.answers

    async def _repeat(self, number: int) -> None:
        ask, client = self._asks[number], self._clients[number % len(self._clients)]
        while True:
            answer = Answer(number, time.monotonic())
            self.answers.append(answer)
            try:
                async for chunk in client.generate(ask.prompt, **ask.options):
                    if chunk.token_ids:
                        answer.came_s.append(time.monotonic())
                        answer.tokens += chunk.token_ids
            except PacelineError as error:
                answer.error = error
            answer.ended_s = time.monotonic()
            if not self._again:
                return
            if answer.error:
                await asyncio.sleep(getattr(answer.error, "retry_after_s", 0.1))
