"""The door of a gRPC server: who may call what, decided before any handler runs.

A method that the table does not name is nobody's. Health is open to all who come through the handshake. What clients
may call wants one of the API keys where there are any; what only workers and coordinators call wants none, since their
certificates say who they are. Locked or open, it turns away calls whose bytes are no message.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from paceline.api_keys import ApiKeys
from paceline.errors import InvalidInput, Unauthenticated
from paceline.rpc import answering
from paceline.security import PeerRole, check_peer

Who = Mapping[str, tuple[PeerRole, ...]]  # by a method's last name
_HEALTH = "/grpc.health.v1.Health/"
_REFLECTION = "ServerReflectionInfo"


class Door(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """See the top of the file."""

    def __init__(self, who: Who, *, has_tls: bool, keys: ApiKeys | None = None) -> None:
        self._who = {_REFLECTION: (PeerRole.CLIENT,), **who}
        self._has_tls, self._keys = has_tls, keys

    @property
    def is_locked(self) -> bool:
        """Whether it keeps anybody out."""
        return self._has_tls or self._keys is not None

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        is_open = not self.is_locked or details.method.startswith(_HEALTH)
        name = details.method.rpartition("/")[2]
        return _checked(handler, None if is_open else lambda context: self.check(name, context))

    def check(self, method: str, context: Any) -> None:
        """Raises `Forbidden` or `Unauthenticated`."""
        allowed = self._who.get(method, ())
        if self._has_tls or not allowed:
            check_peer(context, *allowed)
        if PeerRole.CLIENT in allowed:
            self.client(context)

    def client(self, context: Any) -> str:
        """The name of the caller's API key, empty where no keys are asked for. Raises `Unauthenticated`."""
        if self._keys is None:
            return ""
        metadata = context.invocation_metadata() or ()
        header = next((value for key, value in metadata if key == "authorization"), None)
        name = self._keys.check(header)
        if name is None:
            found = "this API key is not known here" if header else "no API key was given"
            raise Unauthenticated(f"{found}; send the header 'authorization: Bearer KEY' (--api-key KEY)")
        return name


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Bytes that are no message of the method."""

    reason: str


def _checked(handler: Any, check: Callable[[Any], None] | None) -> Any:
    """`handler`, after a `check` of its context, and of its request's being one at all."""
    streams = (handler.request_streaming, handler.response_streaming)
    inner, wrap = {
        (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
        (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
        (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
        (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
    }[streams]

    async def enter(request: Any, context: Any) -> None:
        async with answering(context):
            if check:
                check(context)
            if isinstance(request, _Malformed):
                raise InvalidInput("request", request.reason, "these bytes are no message of this method")

    def parse(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except DecodeError as error:  # gRPC would print a traceback of each: a caller could fill the log with them
            return _Malformed(str(error))

    async def answer(request: Any, context: Any) -> Any:
        await enter(request, context)
        return await inner(request, context)

    async def stream(request: Any, context: Any) -> Any:
        await enter(request, context)
        async with contextlib.aclosing(inner(request, context)) as replies:
            async for reply in replies:
                yield reply

    outer = stream if inspect.isasyncgenfunction(inner) else answer
    # Of a stream's messages the handler learns by reading them, so it must see the error itself.
    return wrap(outer, handler.request_deserializer if streams[0] else parse, handler.response_serializer)
