"""Server-sent events: a stream of JSON objects, the first of which is there before the status is sent.

So what is wrong with a request is told by its status, as with an answer that comes at once. What goes wrong later is
told by a last event that holds an error object.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from coordinator.http.errors import error_object
from coordinator.http.face import while_connected
from paceline.errors import PacelineError

DONE = b"data: [DONE]\n\n"
# Proxies that gather a response before they pass it on would undo the streaming.
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(value: Any, name: str | None = None) -> bytes:
    """One event. `name` is for a page's EventSource; OpenAI's clients want none."""
    data = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"{f'event: {name}{chr(10)}' if name else ''}data: {data}\n\n".encode()


class EventStream(StreamingResponse):
    """A response that closes its generator however it ends: a client that leaves ends its request."""

    def __init__(self, events: AsyncGenerator[bytes], **headers: str) -> None:
        super().__init__(events, media_type="text/event-stream", headers=HEADERS | headers)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


async def stream(request: Request, events: AsyncGenerator[bytes], **headers: str) -> EventStream:
    """A response of `events`, begun: raises what goes wrong before the first of them, and ClientLeft."""
    try:
        first = await while_connected(request, anext(events))
    except BaseException:
        await events.aclose()
        raise
    return EventStream(_rest(first, events), **headers)


async def _rest(first: bytes, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        try:
            yield first
            async for one in events:
                yield one
        except PacelineError as error:
            yield event(error_object(error))
            yield DONE
