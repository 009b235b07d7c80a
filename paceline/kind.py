"""What differs on the wire between a drafter and a verifier, and where a worker serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypedDict, TypeVar

from paceline.security import Tls

Ask = TypeVar("Ask")
Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class Kind(Generic[Ask, Reply]):
    """See the top of the file."""

    service: str  # full name
    add: Callable[[Callable[[Any], Any], Any], None]  # add(serve_stream, server): register the servicer
    ask_from_wire: Callable[[Any], Ask]
    reply_to_wire: Callable[[Any], Any]


class Place(TypedDict, total=False):
    """Where a worker serves, and whom it tells; see `WorkerServer.start`."""

    host: str
    port: int
    coordinators: Sequence[str]
    coordinators_file: str | None
    insecure: bool
    advertise: str | None
    tls: Tls | None
    has_reflection: bool
    exits_if_refused: bool
