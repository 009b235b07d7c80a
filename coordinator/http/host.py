"""The name that a request asks for: a foreign web page can give this machine a name of its own, and ask by that."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.http.errors import response_to
from paceline.errors import Forbidden
from paceline.rpc import is_loopback

_FIX = (
    "without keys only this machine is served, by the name localhost or by a loopback address, so that no web page can "
    "come in by a name of its own; ask by one of these, have the proxy send it as Host, or give --api-keys"
)


class OwnHost:
    """Around a server that asks for no keys, since only this machine reaches it: browsers of this machine do as well.

    A browser keeps a page to the name that it came from. Whoever owns that name can have it mean 127.0.0.1 once the
    page is there (DNS rebinding), and the page may then ask, and read, all that is here. The name stays in `Host`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Without a `Host` (HTTP/1.0) it is no browser.
        if scope["type"] != "http" or is_own(host := Headers(scope=scope).get("host", "localhost")):
            await self.app(scope, receive, send)
            return
        await response_to(Forbidden(f"Host={host[:80]!r}: {_FIX}"))(scope, receive, send)


def is_own(host: str) -> bool:
    """Whether `host`, with a port or without, is this machine for whoever asks for it."""
    named = re.fullmatch(r"(\[[^\[\]]+\]|[^:\[\]]+)(:\d*)?", host)
    return named is not None and is_loopback(named[1].lower())
