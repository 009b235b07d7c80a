"""What one coordinator has yet to be sent by a worker, and why its stream must end."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from paceline.errors import Overloaded, PacelineError

MAX_REPLIES = 4096  # waiting for one peer; it has stopped reading long before


class Outbox:
    """See the top of the file."""

    def __init__(self) -> None:
        self.replies: deque[Any] = deque()
        self.ready = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put(self, reply: Any) -> None:
        if len(self.replies) < MAX_REPLIES:
            self.replies.append(reply)
            self.ready.set()
        else:
            self.end(Overloaded("replies that this coordinator has not read", MAX_REPLIES, 1))

    async def wait(self) -> None:
        """Until there is something to send, or no more will be."""
        self.ready.clear()
        if not self.replies and not self.ended.done():
            await self.ready.wait()

    def end(self, error: PacelineError) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)
        self.ready.set()

    def close(self) -> None:
        """No more is sent."""
        self.ended.cancel()
        self.ready.set()
