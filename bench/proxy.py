"""A network in between: a TCP proxy that makes what passes through it slow, uneven, stuck or cut off.

    python -m bench.proxy --listen 127.0.0.1:6001 --to 127.0.0.1:7001 --rtt-ms 30 --jitter-ms 3
    paceline drafter … --port 7001 --advertise 127.0.0.1:6001

It works on bytes and knows nothing of what they mean, so what is seen through it is the real system. Each direction is
delayed by half of `--rtt-ms`; jitter and stalls only ever add to that, and nothing overtakes, as in TCP. A chunk is
read, waits for its time in a bounded buffer, and is written: when the buffer is full nothing more is read, and TCP
slows the sender down. bench/link.py has what `--control` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from bench.link import Settings, run
from paceline.errors import InvalidInput

CHUNK_BYTES = 64 * 2**10
MAX_BUFFER_BYTES = 4 * 2**20  # a direction; at 100 ms one way, 40 MB/s
MAX_CONNECTIONS = 256
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Shape(Settings):
    """What is done to a connection."""

    rtt_ms: float = 0.0
    jitter_ms: float = 0.0  # each direction adds up to so much, evenly
    stall_share: float = 0.0  # of chunks that get stuck, and all that is behind them
    stall_ms: float = 200.0  # for so long: Linux' least time until it sends a lost packet again
    bytes_per_s: float = 0.0  # 0 = no bound
    cut_every_s: float = 0.0  # a connection is cut after about this long (exponential); 0 = never


class Pipe:
    """One direction of one connection: chunks that wait for their time."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy, self._reader, self._writer = proxy, reader, writer
        self._waiting: deque[tuple[float, bytes]] = deque()  # due times never shrink; an empty chunk is the end
        self._num_bytes = 0
        self._changed = asyncio.Event()
        self._due_s = 0.0

    async def run(self) -> None:
        """Until this direction has ended and all of it was written."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read())
            tasks.create_task(self._write())

    async def _read(self) -> None:
        while True:
            while self._num_bytes >= MAX_BUFFER_BYTES:
                await self._wait()
            chunk = await self._reader.read(CHUNK_BYTES)
            self._due_s = self._proxy.due_s(self._due_s, len(chunk))
            self._waiting.append((self._due_s, chunk))
            self._num_bytes += len(chunk)
            self._changed.set()
            if not chunk:
                return

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._waiting:
                await self._wait()
            due_s, chunk = self._waiting[0]
            if (left_s := due_s - loop.time()) > 0:
                await asyncio.sleep(left_s)
            self._waiting.popleft()
            self._num_bytes -= len(chunk)
            self._changed.set()
            if not chunk:
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                return
            self._writer.write(chunk)
            await self._writer.drain()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class Proxy:
    """Listens, and passes every connection on to `to`, a (host, port). `shape` may be changed at any time."""

    def __init__(self, to: tuple[str, int], shape: Shape, seed: int = 0) -> None:
        self.shape = shape
        self._to = to
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def num_connections(self) -> int:
        return len(self._connections)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the bound port. Raises InvalidInput if it is taken."""
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=CHUNK_BYTES)
        except OSError as error:
            raise InvalidInput("--listen", f"{host}:{port}", f"cannot be bound: {error.strerror}") from None
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        if self._server:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def cut(self) -> None:
        """Cut every connection off, with all that is on its way."""
        for task in self._connections:
            task.cancel()

    def due_s(self, last_s: float, num_bytes: int) -> float:
        """When a chunk that was read now is to be written, after one that is due at `last_s`."""
        shape, now_s = self.shape, asyncio.get_running_loop().time()
        delay_s = shape.rtt_ms / 2e3 + self._random.random() * shape.jitter_ms / 1e3
        if shape.stall_share and self._random.random() < shape.stall_share:
            delay_s += shape.stall_ms / 1e3
        due_s = max(last_s, now_s + delay_s)
        if shape.bytes_per_s:
            # A chunk leaves when the one before it has left and all of it has passed the bottleneck.
            due_s = max(due_s, max(last_s, now_s) + num_bytes / shape.bytes_per_s)
        return due_s

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        writers = [writer]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                there, back = await asyncio.open_connection(*self._to, limit=CHUNK_BYTES)
            writers.append(back)
            async with asyncio.timeout(self._life_s()), asyncio.TaskGroup() as tasks:
                tasks.create_task(Pipe(self, reader, back).run())
                tasks.create_task(Pipe(self, there, writer).run())
            for one in writers:
                one.close()
        except* (OSError, TimeoutError, asyncio.CancelledError):  # cut by either side, by chance or by `cut`
            for one in writers:
                _reset(one)
        finally:
            self._connections.discard(task)

    def _life_s(self) -> float | None:
        return self._random.expovariate(1 / self.shape.cut_every_s) if self.shape.cut_every_s else None


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, and let the other side see a reset instead of an orderly end."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # it is closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def main(arguments: Sequence[str] | None = None) -> int:
    return run("proxy", __doc__, Shape, Proxy, arguments)


if __name__ == "__main__":
    sys.exit(main())
