"""Who may send a body at all, and how many calls may be under way: looked at before a byte of the body is read."""

from __future__ import annotations

from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.http.errors import response_to
from coordinator.http.face import NEEDS_KEY, Face
from coordinator.shares import Shares
from paceline.errors import Overloaded, Unauthenticated
from paceline.rpc import MAX_STREAMS

MAX_CALLS = 2 * MAX_STREAMS  # so that a client alone, which has half of it, may have as many as over gRPC
_BODILESS = ("GET", "HEAD", "OPTIONS")  # probes, pages and metrics: answered at once, whatever else goes on


class Door:
    """A framework reads and parses a body before its routes ask who sends it; whoever has no key gets no such work."""

    def __init__(self, app: ASGIApp, face: Face, max_calls: int = MAX_CALLS) -> None:
        self.app = app
        self._keys = face.keys
        self._calls = Shares("calls under way", max_calls)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _BODILESS:
            await self.app(scope, receive, send)
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(self._calls.hold(self._client(scope)))
            except (Unauthenticated, Overloaded) as error:
                await response_to(error)(scope, receive, send)
                return
            await self.app(scope, receive, send)

    def _client(self, scope: Scope) -> str:
        """Whose call it is: the name of the key or, where none are asked for, the address. Raises Unauthenticated."""
        if self._keys is None:
            address, _ = scope.get("client") or ("", 0)
            return str(address)
        name = self._keys.check(Headers(scope=scope).get("authorization"))
        if name is None:
            raise Unauthenticated(NEEDS_KEY)
        return name
