"""A trace: what happened to a coordinator's core and what it did about it, written down while it runs.

An append-only file of msgpack values, nothing else; docs/protocol.md has the format. Every record is written with one
call to the operating system as soon as it is made, so a process that dies takes nothing with it, and a reader may
follow a file that still grows. It is bounded: when it is full, that is noted, and the server runs on without it.

    for record in read("run.trace"):
        match record:
            case Opened(): ...   a coordinator began to write (again, if it was restarted)
            case Step(): ...     one event and the commands that followed from it
            case Closed(): ...   it stopped writing, and why

What a trace holds is private: the token ids of prompts and of outputs stand in it. Draft rows are left out; the core
never looks at them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from paceline import __version__
from paceline.errors import InvalidInput
from paceline.plain import to_plain
from paceline.types import Rows

log = logging.getLogger(__name__)

FORMAT, VERSION = "paceline trace", 1
DEFAULT_MAX_BYTES = 256 * 2**20
# The longest prompt (a message has at most 4 MiB) stands twice in the record of its arrival, at up to five bytes a
# token against four on the wire, and a move to another pair of workers repeats it.
MAX_RECORD_BYTES = 32 * 2**20
FULL, STOPPED = "full", "stopped"


@dataclass(frozen=True, slots=True)
class Opened:
    """A coordinator began to write."""

    unix_s: float  # wall clock then
    clock_s: float  # the clock of `Step.at_s` then
    version: str  # of paceline
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the core was started with


@dataclass(frozen=True, slots=True)
class Step:
    """One event and what followed from it. An event or a command is a map; "is" names its class."""

    at_s: float  # monotonic; only differences within one `Opened` mean something
    event: Mapping[str, Any]
    commands: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Closed:
    """The coordinator stopped writing: the file was full, or it ended."""

    reason: str


Record = Opened | Step | Closed


class Writer:
    """Appends to a trace. Failing to write never hurts the caller: it ends the trace, and the log says so."""

    def __init__(
        self,
        path: str,
        *,
        unix_s: float,
        clock_s: float,
        settings: Mapping[str, Any],
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        """Raises InvalidInput if `path` cannot be written, or holds something else than a trace."""
        self.path = path
        self._max_bytes = max_bytes
        self._pack = msgpack.Packer(use_bin_type=True).pack
        try:
            # The tokens of prompts and outputs are nobody else's business.
            self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            # A record that was cut off by a crash would swallow the ones behind it.
            self._num_bytes = _end_of_last_record(path)
            os.truncate(self._file, self._num_bytes)
        except OSError as error:
            raise InvalidInput("--trace", path, f"cannot be written: {error.strerror}; name another file") from None
        opened = {"unix_s": unix_s, "clock_s": clock_s, "version": __version__, "settings": to_plain(settings)}
        self._write([FORMAT, VERSION, opened])

    def observe(self, event: object, commands: Sequence[object], now_s: float) -> None:
        """Note one event of the core, which it handled at `now_s`, and what it answered."""
        if self._file is not None:
            step = [now_s, to_plain(event, without=(Rows,)), to_plain(commands, without=(Rows,))]
            self._write(step)

    def close(self, reason: str = STOPPED) -> None:
        """May be repeated."""
        if self._file is not None:
            self._append(self._pack([reason]))
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, record: Sequence[object]) -> None:
        data: bytes = self._pack(record)
        if self._num_bytes + len(data) > self._max_bytes or len(data) > MAX_RECORD_BYTES:
            log.warning("the trace %s is full at %d bytes; it ends here", self.path, self._num_bytes)
            self.close(FULL)
            return
        self._append(data)

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        try:
            written = os.write(self._file, data)
            if written < len(data):
                raise OSError(f"{written} of {len(data)} bytes were written")
        except OSError as error:
            log.warning("the trace %s ends here: %s", self.path, error)
            os.close(self._file)
            self._file = None
            return
        self._num_bytes += len(data)


def read(path: str) -> Iterator[Record]:
    """The records of a trace, in order; what a crash cut off at the end is left out.

    Raises InvalidInput if the file cannot be read, or is no trace of this version.
    """
    try:
        with open(path, "rb") as file:
            unpacker = msgpack.Unpacker(file, raw=False, max_buffer_size=MAX_RECORD_BYTES)
            is_first = True
            for raw in unpacker:
                record = _record(path, raw)
                if is_first and not isinstance(record, Opened):
                    raise _wrong(path)
                is_first = False
                yield record
            if is_first:
                raise _wrong(path)
    except OSError as error:
        raise InvalidInput("trace", path, f"cannot be read: {error.strerror}") from None
    except (ValueError, msgpack.UnpackException) as error:
        raise InvalidInput("trace", path, f"is damaged: {error or type(error).__name__}") from None


def _record(path: str, raw: Any) -> Record:
    match raw:
        case [str(name), int(version), dict()] if name == FORMAT and version != VERSION:
            raise InvalidInput("trace", path, f"is of version {version}; this program reads version {VERSION}")
        case [
            str(name),
            int(),
            {"unix_s": float(unix_s), "clock_s": float(clock_s), "version": str(of), "settings": dict(settings)},
        ] if name == FORMAT:
            return Opened(unix_s, clock_s, of, settings)
        case [float(at_s), dict(event), list(commands)]:
            return Step(at_s, event, commands)
        case [str(reason)]:
            return Closed(reason)
    raise _wrong(path)


def _wrong(path: str) -> InvalidInput:
    return InvalidInput("trace", path, "is no trace of paceline; write one with --trace FILE on the coordinator")


def _end_of_last_record(path: str) -> int:
    """Bytes up to the end of the last whole record. Raises InvalidInput if the file holds something else."""
    if not os.path.getsize(path):
        return 0
    next(read(path))  # a file that is no trace must not be written to
    with open(path, "rb") as file:
        unpacker = msgpack.Unpacker(file, raw=False, max_buffer_size=MAX_RECORD_BYTES)
        while True:
            end: int = unpacker.tell()
            try:
                unpacker.skip()
            except msgpack.OutOfData:
                return end
