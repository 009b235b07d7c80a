"""Messages in between: a gRPC relay that says them twice, out of turn, or not at all.

    python -m bench.relay --listen 127.0.0.1:6002 --to 127.0.0.1:7001 --repeat-share 0.1 --overtake-share 0.1

TCP repeats nothing and nothing overtakes on it, so `bench/proxy.py` cannot show what becomes of messages that do. This
ends the one stream and opens another, and passes on the bytes of every message, unread. Faults fall on the long-lived
streams, `Connect`, in both directions; all other calls pass as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from bench.link import Settings, run
from paceline.errors import InvalidInput
from paceline.rpc import CHANNEL_OPTIONS, SERVER_OPTIONS

HOLD_S = 0.05  # a message that is to be overtaken waits so long for one that overtakes it


@dataclass(frozen=True, slots=True)
class Faults(Settings):
    """What is done to messages, each by its share."""

    repeat_share: float = 0.0
    overtake_share: float = 0.0  # sent after the next one
    lose_share: float = 0.0


class Relay(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Listens, and passes every call on to `to`, a (host, port). `shape` may be changed at any time."""

    def __init__(self, to: tuple[str, int], shape: Faults, seed: int = 0) -> None:
        self.shape = shape
        self.num_faults = 0
        self._random = random.Random(seed)
        self._calls: set[Any] = set()
        self._channel = grpc.aio.insecure_channel(f"{to[0]}:{to[1]}", options=CHANNEL_OPTIONS)
        self._server = grpc.aio.server(options=SERVER_OPTIONS, handlers=(self,))

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the bound port. Raises InvalidInput if it is taken."""
        try:
            bound: int = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            raise InvalidInput("--listen", f"{host}:{port}", "cannot be bound") from None
        await self._server.start()
        return bound

    async def stop(self) -> None:
        self.cut()
        await self._server.stop(None)
        await self._channel.close()

    def cut(self) -> None:
        for call in self._calls:
            call.cancel()

    def service(self, details: Any) -> Any:
        """gRPC's question who handles a call; bytes go through as they are."""

        async def handle(_requests: object, context: Any) -> None:
            await self._pass(details.method, context)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _pass(self, method: str, context: Any) -> None:
        call = self._channel.stream_stream(method)()
        is_faulty = method.endswith("/Connect")
        self._calls.add(call)
        asks = asyncio.create_task(self._forward(context.read, call.write, is_faulty, call.done_writing))
        try:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                await self._forward(call.read, context.write, is_faulty)
        finally:
            self._calls.discard(call)
            asks.cancel()
            call.cancel()
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            await context.abort(code, await call.details() or "")

    async def _forward(
        self,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[bytes], Awaitable[Any]],
        is_faulty: bool,
        end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """One direction, until it ends."""
        held: bytes | None = None
        following = asyncio.ensure_future(read())
        while True:
            if held is not None:
                await asyncio.wait((following,), timeout=HOLD_S)
                if not following.done():
                    await write(held)
                    held = None
            message = await following
            if message is grpc.aio.EOF:
                break
            following = asyncio.ensure_future(read())
            fault = self._fault() if is_faulty else ""
            if fault == "overtake" and held is None:
                held = message
                continue
            if fault != "lose":
                await write(message)
            if fault == "repeat":
                await write(message)
            if held is not None:
                await write(held)
                held = None
        if held is not None:
            await write(held)
        if end:
            await end()

    def _fault(self) -> str:
        """What is to befall a message, if anything."""
        shape, drawn = self.shape, self._random.random()
        for name, share in (
            ("repeat", shape.repeat_share),
            ("overtake", shape.overtake_share),
            ("lose", shape.lose_share),
        ):
            if drawn < share:
                self.num_faults += 1
                return name
            drawn -= share
        return ""


def main(arguments: Sequence[str] | None = None) -> int:
    return run("relay", __doc__, Faults, Relay, arguments)


if __name__ == "__main__":
    sys.exit(main())
