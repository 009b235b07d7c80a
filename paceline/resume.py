"""A generation that outlives its coordinator: what has come so far, and how to ask for the rest.

Used by both clients. A call that fails as UNAVAILABLE is made again at the next address, with the tokens that have
come as `resume_token_ids`; under a seed they go on as they would have. Where there is one address only, it is asked
again once something has come: it was there, and may be again; one that has never answered is told of at once. A call
that is refused as RESOURCE_EXHAUSTED is made again after the time that the server names. Nothing else is tried again: a
deadline has passed for good, and what is wrong here is wrong elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from paceline.errors import Overloaded, TimedOut, Unavailable

MAX_RETRIES = 2  # over the addresses, without a token between; then the failure is the caller's to know
MAX_BUSY_S = 30.0  # a server that is full for longer is the caller's to wait for
PAUSE_S = 0.2  # before a round that is not the first; doubled with each


class Progress:
    """One generation: `request()` is what to ask for now, `came` notes an answer, `failed` chooses what to do."""

    def __init__(
        self,
        request: Any,
        timeout_s: float | None,
        num_addresses: int,
        max_retries: int = MAX_RETRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request, self._num_addresses, self._clock = request, num_addresses, clock
        self._max_failures = (1 + max_retries) * num_addresses
        self._until_s = None if timeout_s is None else clock() + timeout_s
        self._num_failures = 0  # in a row
        self._has_begun = False

    @property
    def request(self) -> Any:
        return self._request

    @property
    def left_s(self) -> float | None:
        """Seconds until the caller's deadline, if there is one."""
        return None if self._until_s is None else max(0.0, self._until_s - self._clock())

    def came(self, chunk: Any) -> Any:
        """The chunk, for the caller, who is told a request id once."""
        if chunk.token_ids:
            self._num_failures = 0
            self._request.resume_token_ids.extend(chunk.token_ids)
        if self._has_begun and chunk.request_id:
            chunk = replace(chunk, request_id="")
        self._has_begun = True
        return chunk

    def failed(self, error: Unavailable | Overloaded) -> float:
        """Seconds to pause before the call is made again, at the next address. Raises `error` if it is not to be."""
        self._num_failures += 1
        pause_s = 0.0
        if self._num_failures % self._num_addresses == 0:
            pause_s = PAUSE_S * 2 ** (self._num_failures // self._num_addresses - 1)
            if isinstance(error, Overloaded):
                pause_s = max(pause_s, error.retry_after_s)
        is_last = self._num_failures >= self._max_failures or pause_s > MAX_BUSY_S
        was_never_there = self._num_addresses == 1 and not self._has_begun and isinstance(error, Unavailable)
        left_s = self.left_s
        is_too_late = isinstance(error, TimedOut) or (left_s is not None and left_s <= pause_s)
        if is_last or was_never_there or is_too_late:
            raise error
        return pause_s
