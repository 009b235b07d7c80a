"""A role's process, in which the time is marked whenever a message of the worker streams passes a seam.

    python -m bench.marks FILE drafter --model models/demo-drafter --coordinator …

Runs `paceline ROLE …` with a stopwatch at its seams, and writes the marks to FILE when it ends. The seams are those
that every message passes anyway: where it is read from the wire and written to it, where the engine takes it and
where the engine answers. The clock is the machine's monotonic one, so marks of different processes on one machine can
be compared. A mark costs about a microsecond; the product knows nothing of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack

from deploy.cli import main as paceline
from paceline import codec, worker

READ, TAKEN, ANSWERED, WRITTEN = "read", "taken", "answered", "written"


@dataclass(frozen=True, slots=True)
class Mark:
    """A message was at a seam."""

    at_s: float
    role: str
    seam: str
    message: str  # the name of its class
    request_id: str
    start: int  # absolute position of its first token
    num_tokens: int
    busy_ms: float  # what a draft says of drafting, or a verdict of verifying; else 0


class Stopwatch:
    """All marks of one process."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._marks: list[tuple[float, str, Any]] = []

    def mark(self, seam: str, message: Any) -> None:
        self._marks.append((time.perf_counter(), seam, message))

    def reading(self, from_wire: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`from_wire`, marked with the time before it: what it takes belongs to the reader."""

        def read(wire: Any) -> Any:
            at_s = time.perf_counter()
            message = from_wire(wire)
            self._marks.append((at_s, READ, message))
            return message

        return read

    def writing(self, to_wire: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`to_wire`, marked with the time after it: what it takes belongs to the writer."""

        def write(message: Any) -> Any:
            wire = to_wire(message)
            self.mark(WRITTEN, message)
            return wire

        return write

    def dump(self, path: str) -> None:
        rows = [row for at_s, seam, message in self._marks if (row := self._row(at_s, seam, message))]
        Path(path).write_bytes(msgpack.packb(rows))

    def _row(self, at_s: float, seam: str, message: Any) -> tuple[Any, ...] | None:
        kind = type(message).__name__
        message = getattr(message, "draft", message)  # a Verify is about its draft
        if not hasattr(message, "start"):
            return None
        busy_ms = getattr(message, "verify_ms", 0.0) or getattr(message, "draft_ms", 0.0)
        num_tokens = len(getattr(message, "token_ids", ()))
        return at_s, self.role, seam, kind, message.request_id, message.start, num_tokens, busy_ms


def read_marks(path: str) -> list[Mark]:
    return [Mark(*row) for row in msgpack.unpackb(Path(path).read_bytes())]


class _Engine:
    """An engine whose asks and answers are marked."""

    def __init__(self, engine: Any, watch: Stopwatch) -> None:
        self._engine, self._watch = engine, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def handle(self, peer: int, ask: Any, waited_s: float = 0.0) -> Any:
        self._watch.mark(TAKEN, ask)
        return self._marked(self._engine.handle(peer, ask, waited_s))

    def step(self) -> Any:
        return self._marked(self._engine.step())

    def _marked(self, replies: Any) -> Any:
        for _, reply in replies:
            self._watch.mark(ANSWERED, reply)
        return replies


def _tap_worker(watch: Stopwatch) -> None:
    """Before the role imports what it needs: it takes `serve_worker` as it is then."""
    serve_worker = worker.serve_worker

    def tapped(engine: Any, kind: Any, **options: Any) -> Any:
        kind = replace(
            kind, ask_from_wire=watch.reading(kind.ask_from_wire), reply_to_wire=watch.writing(kind.reply_to_wire)
        )
        return serve_worker(_Engine(engine, watch), kind, **options)

    worker.serve_worker = tapped  # type: ignore[assignment]


def _tap_coordinator(watch: Stopwatch) -> None:
    """Before a stream is opened: each takes the codec's functions as they are then."""
    for role in ("drafter", "verifier"):
        ask, reply = f"{role}_ask_to_wire", f"{role}_reply_from_wire"
        setattr(codec, ask, watch.writing(getattr(codec, ask)))
        setattr(codec, reply, watch.reading(getattr(codec, reply)))


def main(arguments: Sequence[str]) -> int:
    path, role, *rest = arguments
    watch = Stopwatch(role)
    if role == "coordinator":
        _tap_coordinator(watch)
    else:
        _tap_worker(watch)
    try:
        return paceline([role, *rest])
    finally:
        watch.dump(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
