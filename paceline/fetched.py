"""What a coordinator tells of requests that it has run: the client's side of `ListTraces` and `GetTrace`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any

from paceline.errors import PacelineError, PeerFault, Unavailable, UnknownRequest
from paceline.trace import Record, read_stream

MAX_BYTES = 64 * 2**20  # of one request's trace


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """A request whose steps the coordinator keeps."""

    request_id: str
    unix_s: float  # wall clock at its arrival
    num_prompt_tokens: int
    num_generated_tokens: int  # 0 until it has ended well
    mode: str  # empty until it has ended well
    finish_reason: str  # stop, length, cancelled or failed; empty while it runs
    e2e_ms: float  # 0 while it runs


def summaries(wire: Any) -> tuple[TraceSummary, ...]:
    names = [field.name for field in fields(TraceSummary)]
    return tuple(TraceSummary(**{name: getattr(one, name) for name in names}) for one in wire.traces)


def add(data: bytearray, chunk: Any) -> None:
    """Append a chunk to what has come. Raises PeerFault for more than a trace may have."""
    if len(data) + len(chunk.records) > MAX_BYTES:
        raise PeerFault(f"the coordinator sends a trace of more than {MAX_BYTES} bytes")
    data += chunk.records


def records(data: bytearray) -> list[Record]:
    """The records that have come. Raises InvalidInput for what is no trace."""
    return list(read_stream(io.BytesIO(data), "from the coordinator"))


async def trace(calls: Iterable[Callable[[], Any]], errors: Callable[[], AbstractContextManager[None]]) -> list[Record]:
    """What the first coordinator sends that has the request; `errors` turns gRPC's into ours."""
    failure: PacelineError | None = None
    for call in calls:
        data = bytearray()
        try:
            with errors():
                async for chunk in call():
                    add(data, chunk)
                return records(data)
        except (Unavailable, UnknownRequest) as error:  # another coordinator may have run it
            failure = error
    assert failure is not None
    raise failure


def trace_blocking(
    calls: Iterable[Callable[[], Any]], errors: Callable[[], AbstractContextManager[None]]
) -> list[Record]:
    """As `trace`, without an event loop."""
    failure: PacelineError | None = None
    for call in calls:
        data = bytearray()
        try:
            with errors():
                for chunk in call():
                    add(data, chunk)
                return records(data)
        except (Unavailable, UnknownRequest) as error:
            failure = error
    assert failure is not None
    raise failure
