"""Every response is counted, by its route and status: what is refused at the door reaches no other metric."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

NO_ROUTE = "other"  # a path that a client makes up is no label


class Responses:
    """Tells `count` of each response, when its status is sent."""

    def __init__(self, app: ASGIApp, count: Callable[[str, int], None]) -> None:
        self.app = app
        self.count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")  # that was found on the way in, with its parameters as {names}
                self.count(getattr(route, "path", NO_ROUTE), message["status"])
            await send(message)

        await self.app(scope, receive, counted)
