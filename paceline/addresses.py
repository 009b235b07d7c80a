"""The coordinators that a client may ask, and how: used by both clients."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from paceline.api_keys import bearer
from paceline.errors import InvalidInput, Unavailable
from paceline.resume import Progress
from paceline.security import Tls
from paceline.wire import coordinator_pb2_grpc

log = logging.getLogger(__name__)

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
        self._addresses = addresses_of(address)
        self._tls, self._connect = tls, connect
        self._renewing = threading.Lock()  # a blocking client's threads share this
        self._max_retries = max_retries
        self._first = 0
        self.channels: list[Any] = []  # those in use, after those before them, on which calls may still run
        self._connect_all()

    def _connect_all(self) -> None:
        stamp = self._tls.stamp() if self._tls else None  # before the files are read: none changes unseen
        made = [self._connect(each, self._tls) for each in self._addresses]
        self.channels = [*self.channels[-len(made) :], *made]
        self._stubs = [coordinator_pb2_grpc.CoordinatorStub(channel) for channel in made]
        self._stamp = stamp

    def _renew(self) -> None:
        """Connect anew if a file has changed: a channel shows the certificate that it was made with for ever."""
        with self._renewing:
            if self._tls is None or self._tls.stamp() == self._stamp:
                return
            try:
                self._tls.read().check(self._tls)  # while the files do not fit, the former ones stay in use
                self._connect_all()
            except (InvalidInput, Unavailable) as error:
                log.warning("the former certificate stays in use: %s", error)

    def stubs(self) -> Iterator[Any]:
        """The stubs in turn, endlessly."""
        at = self._first
        while True:
            self._first = at
            self._renew()
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
