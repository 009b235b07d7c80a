"""The verifier's gRPC service. All it does is in `paceline.worker`; the engine arrives as an argument."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Unpack

from paceline.codec import verifier_ask_from_wire, verifier_reply_to_wire
from paceline.engine_thread import Engine
from paceline.kind import Kind, Place
from paceline.types import VerifierAsk, VerifierReply
from paceline.wire import verifier_pb2_grpc
from paceline.worker import serve_worker


class VerifierServicer:
    def __init__(self, serve_stream: Callable[[Any], Awaitable[None]]) -> None:
        self._serve_stream = serve_stream

    async def Connect(self, _asks: object, context: Any) -> None:  # noqa: N802 (the name in the .proto)
        await self._serve_stream(context)


def _add(serve_stream: Callable[[Any], Awaitable[None]], server: Any) -> None:
    verifier_pb2_grpc.add_VerifierServicer_to_server(VerifierServicer(serve_stream), server)


VERIFIER: Kind[VerifierAsk, VerifierReply] = Kind(
    service="paceline.wire.Verifier",
    add=_add,
    ask_from_wire=verifier_ask_from_wire,
    reply_to_wire=verifier_reply_to_wire,
)


async def serve(engine: Engine[VerifierAsk, VerifierReply], **place: Unpack[Place]) -> int:
    """Serve `engine` until a signal; the process's exit code (see `paceline.worker.serve_worker`)."""
    return await serve_worker(engine, VERIFIER, **place)
