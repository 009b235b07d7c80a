"""gRPC's health of the coordinator's service: serving while a verifier is here, as `GET /health` has it.

The process itself, the service of the empty name, is healthy from its start: a probe of that asks whether to start it
anew, which would bring no verifier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from coordinator.core.commands import Command
from coordinator.core.events import Event, WorkerDown, WorkerUp
from coordinator.server import Coordinator
from paceline.types import Role


class Health:
    """See the top of the file. An observer of the coordinator."""

    def __init__(self, coordinator: Coordinator, say: Callable[[bool], Awaitable[None]]) -> None:
        """`say` whether the service is served, whenever that may have changed."""
        self._coordinator = coordinator
        self._say = say
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_serving(self) -> bool:
        return any(worker.info.role is Role.VERIFIER for worker in self._coordinator.pipeline.pools)

    def observe(self, event: Event, commands: Sequence[Command], now_s: float) -> None:
        if isinstance(event, WorkerUp | WorkerDown):
            task = asyncio.get_running_loop().create_task(self._tell())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tell(self) -> None:
        await self._say(self.is_serving)  # as it is by now, so that two changes in a row end with the last one
