"""The coordinators that a client may ask, and how: used by both clients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from paceline.api_keys import bearer
from paceline.errors import InvalidInput
from paceline.resume import Progress
from paceline.security import Tls
from paceline.wire import coordinator_pb2_grpc

CALL_TIMEOUT_S = 10.0  # of the calls that only look something up


class Addresses:
    """The one that answered last is asked first."""

    def __init__(
        self,
        address: str | Sequence[str],
        tls: Tls | None,
        api_key: str | None,
        connect: Callable[[str, Tls | None], Any],
        max_retries: int,
    ) -> None:
        if max_retries < 0:
            raise InvalidInput("max_retries", max_retries, "must be 0 or more")
        self.metadata = bearer(api_key)
        self.channels = [connect(each, tls) for each in addresses_of(address)]
        self._max_retries = max_retries
        self._stubs = [coordinator_pb2_grpc.CoordinatorStub(channel) for channel in self.channels]
        self._first = 0

    def stubs(self) -> Iterator[Any]:
        """The stubs in turn, endlessly."""
        at = self._first
        while True:
            self._first = at
            yield self._stubs[at]
            at = (at + 1) % len(self._stubs)

    def metadata_of(self, traceparent: str | None) -> tuple[tuple[str, str], ...]:
        """The key, and the trace that the call belongs to."""
        return (*self.metadata, *((("traceparent", traceparent),) if traceparent else ()))

    def progress(self, request: Any, timeout_s: float | None) -> Progress:
        return Progress(request, timeout_s, len(self._stubs), self._max_retries)

    def calls(self, method: str, request: Any) -> Iterator[Callable[[], Any]]:
        """How to make a short call, of every coordinator in turn."""
        for stub in itertools.islice(self.stubs(), len(self._stubs)):
            yield partial(getattr(stub, method), request, timeout=CALL_TIMEOUT_S, metadata=self.metadata)


def addresses_of(given: Any) -> tuple[str, ...]:
    """From "a:1", "a:1,b:2" or a sequence of addresses. Raises `InvalidInput`."""
    addresses = tuple(part.strip() for part in given.split(",")) if isinstance(given, str) else tuple(given)
    if not addresses or not all(addresses):
        raise InvalidInput("address", given, "give HOST:PORT, or several of them")
    return addresses
