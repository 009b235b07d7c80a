"""One client's connection, which may not be kept by saying nothing, or by saying it ever so slowly."""

from __future__ import annotations

import asyncio
import logging

from uvicorn.protocols.http.h11_impl import H11Protocol

from paceline.rpc import MAX_CONNECTIONS

log = logging.getLogger(__name__)

# From a connection's beginning, or a later request's first byte, to the end of that request's body: a body of the
# largest size comes in time at 140 kB/s.
READ_S = 30.0


class Connection(H11Protocol):
    """uvicorn's, with a bound on how long a request may take to come, and on how many connections there are.

    Between two requests uvicorn's own bound on keep-alive holds.
    """

    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            log.warning("there are %d HTTP connections: closing the newest", MAX_CONNECTIONS)
            transport.abort()
            return
        self._await_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle = self.cycle  # of the last request whose head is here; None before the first
        if cycle is None or cycle.response_complete or cycle.more_body:
            self._await_request()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        if self._reading is None and not self.transport.is_closing():
            self._reading = self.loop.call_later(READ_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._reading:
            self._reading.cancel()
            self._reading = None
