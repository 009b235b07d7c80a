"""Who may send a body at all, and how many calls may be under way: looked at before a byte of the body is read."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.http.errors import response_to
from coordinator.http.face import NEEDS_KEY, Face
from paceline.errors import Overloaded, PacelineError, Unauthenticated
from paceline.rpc import MAX_STREAMS

RETRY_AFTER_S = 1.0
_BODILESS = ("GET", "HEAD", "OPTIONS")  # probes, pages and metrics: answered at once, whatever else goes on


class Door:
    """A framework reads and parses a body before its routes ask who sends it; whoever has no key gets no such work."""

    def __init__(self, app: ASGIApp, face: Face, max_calls: int = MAX_STREAMS) -> None:
        self.app = app
        self._keys = face.keys
        self._max_calls = max_calls
        self._num_calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _BODILESS:
            await self.app(scope, receive, send)
            return
        if error := self._refusal(scope):
            await response_to(error)(scope, receive, send)
            return
        self._num_calls += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._num_calls -= 1

    def _refusal(self, scope: Scope) -> PacelineError | None:
        if self._keys and self._keys.check(Headers(scope=scope).get("authorization")) is None:
            return Unauthenticated(NEEDS_KEY)
        if self._num_calls >= self._max_calls:
            return Overloaded("calls under way", self._max_calls, RETRY_AFTER_S)
        return None
