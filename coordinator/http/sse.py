"""Server-sent events: a stream of JSON objects, the first of which is there before the status is sent.

So what is wrong with a request is told by its status, as with an answer that comes at once. What goes wrong later is
told by a last event that holds an error object.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from coordinator.http.errors import error_object
from coordinator.http.face import ClientLeft, face, while_connected
from paceline.errors import PacelineError

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
# Proxies that gather a response before they pass it on would undo the streaming.
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(value: Any, name: str | None = None) -> bytes:
    """One event. `name` is for a page's EventSource; OpenAI's clients want none."""
    data = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"{f'event: {name}{chr(10)}' if name else ''}data: {data}\n\n".encode()


class EventStream(StreamingResponse):
    """A response that closes its generator however it ends: a client that leaves ends its request.

    So does one that reads nothing for `stall_s` while there is something to read.
    """

    def __init__(self, events: AsyncGenerator[bytes], stall_s: float, **headers: str) -> None:
        super().__init__(events, media_type="text/event-stream", headers=HEADERS | headers)
        self._events, self._stall_s = events, stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._stall_s):
                    await send(message)  # waits while the client does not read
            except TimeoutError:
                log.warning("a client has read nothing for %g s: its stream ends", self._stall_s)
                raise ClientLeft from None

        async with aclosing(self._events):
            with contextlib.suppress(ClientLeft):
                await super().__call__(scope, receive, send_in_time)


async def stream(request: Request, events: AsyncGenerator[bytes], **headers: str) -> EventStream:
    """A response of `events`, begun: raises what goes wrong before the first of them, and ClientLeft."""
    try:
        first = await while_connected(request, anext(events))
        stall_s = face(request).service.coordinator.config.client_stall_s
        return EventStream(_rest(first, events), stall_s, **headers)
    except BaseException:
        await events.aclose()
        raise


async def _rest(first: bytes, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        try:
            yield first
            async for one in events:
                yield one
        except PacelineError as error:
            yield event(error_object(error))
            yield DONE
