"""The proxy, with real sockets on loopback. Order and least times only: a busy machine may always take longer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench.link import control
from bench.proxy import MAX_BUFFER_BYTES, Proxy, Shape
from paceline.errors import InvalidInput


@asynccontextmanager
async def echo(shape: Shape) -> AsyncIterator[tuple[Proxy, int]]:
    """A server that sends back what it gets, and a proxy before it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The client may be gone before its end has come through.
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy = Proxy(("127.0.0.1", server.sockets[0].getsockname()[1]), shape)
    try:
        yield proxy, await proxy.start()
    finally:
        await proxy.stop()
        server.close()
        await asyncio.sleep(0.02)  # connections close in the turns after they were told to


@asynccontextmanager
async def opened(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def round_trip_s(port: int) -> float:
    async with opened(port) as (reader, writer):
        started_s = asyncio.get_running_loop().time()
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        return asyncio.get_running_loop().time() - started_s


async def test_a_round_trip_takes_at_least_what_it_was_given() -> None:
    async with echo(Shape(rtt_ms=40)) as (proxy, port):
        assert await round_trip_s(port) >= 0.04
        proxy.shape = proxy.shape.changed("rtt_ms=80")
        assert await round_trip_s(port) >= 0.08


async def test_each_direction_has_its_half() -> None:
    async with echo(Shape(rtt_ms=100)) as (_, port), opened(port) as (reader, writer):
        started_s = asyncio.get_running_loop().time()
        for number in range(5):
            writer.write(bytes([number]))
            await asyncio.sleep(0.001)
        assert await reader.readexactly(5) == bytes(range(5))
        # A proxy that waited for one chunk before it took the next would take five round trips.
        assert asyncio.get_running_loop().time() - started_s >= 0.1


async def test_jitter_and_stalls_change_neither_order_nor_content() -> None:
    data = bytes(range(256)) * 64
    async with echo(Shape(jitter_ms=5, stall_share=0.2, stall_ms=10)) as (_, port), opened(port) as (reader, writer):

        async def send() -> None:
            for at in range(0, len(data), 512):
                writer.write(data[at : at + 512])
                await asyncio.sleep(0.0005)

        sending = asyncio.create_task(send())
        assert await reader.readexactly(len(data)) == data
        await sending


async def test_a_bottleneck_takes_as_long_as_its_bytes() -> None:
    async with echo(Shape(bytes_per_s=1e6)) as (_, port), opened(port) as (reader, writer):
        started_s = asyncio.get_running_loop().time()
        writer.write(bytes(100_000))
        await reader.readexactly(100_000)
        assert asyncio.get_running_loop().time() - started_s >= 0.1


async def test_an_end_is_passed_on_after_all_that_was_sent_before() -> None:
    async with echo(Shape(rtt_ms=20)) as (_, port), opened(port) as (reader, writer):
        writer.write(b"last words")
        writer.write_eof()
        assert await reader.read() == b"last words"


async def test_a_cut_ends_every_connection_and_new_ones_are_taken() -> None:
    async with echo(Shape(rtt_ms=10_000)) as (proxy, port), opened(port) as (reader, writer):
        writer.write(b"ping")
        while not proxy.num_connections:
            await asyncio.sleep(0.001)
        control(proxy, "cut")
        with pytest.raises(ConnectionError):
            await reader.readexactly(4)
        proxy.shape = Shape()
        assert await round_trip_s(port) >= 0


async def test_connections_are_cut_by_chance_when_told_so() -> None:
    async with echo(Shape(rtt_ms=10_000, cut_every_s=0.01)) as (_, port), opened(port) as (reader, writer):
        writer.write(b"ping")
        with pytest.raises(ConnectionError):
            await reader.readexactly(4)


async def test_the_buffer_is_bounded_and_the_sender_is_slowed_down() -> None:
    """Nothing is passed on for ten seconds, so what can be sent is what buffers hold: ours and the sockets'."""
    async with echo(Shape(rtt_ms=20_000)) as (proxy, port), opened(port) as (_, writer):
        for _ in range(64):
            writer.write(bytes(1 << 20))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.5)
        sent = (64 << 20) - writer.transport.get_write_buffer_size()
        assert MAX_BUFFER_BYTES / 2 < sent < 6 * MAX_BUFFER_BYTES
        assert proxy.num_connections == 1


async def test_a_server_that_is_not_there_ends_the_connection() -> None:
    proxy = Proxy(("127.0.0.1", 1), Shape())
    port = await proxy.start()
    async with opened(port) as (reader, _):
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)
        await proxy.stop()


def test_a_control_line_that_is_wrong_changes_nothing_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    proxy = Proxy(("127.0.0.1", 1), Shape(rtt_ms=5))
    for line, why in (("rtt=9", "is none of rtt_ms"), ("rtt_ms=x", "must be a number"), ("rtt_ms=-1", "not negative")):
        control(proxy, line)
        assert why in capsys.readouterr().out
    assert proxy.shape == Shape(rtt_ms=5)
    control(proxy, "rtt_ms=9 jitter_ms=1")
    assert proxy.shape == Shape(rtt_ms=9, jitter_ms=1)
    with pytest.raises(InvalidInput, match="stall_share"):
        Shape(stall_share=2)
