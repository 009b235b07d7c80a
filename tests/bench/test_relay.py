"""What the relay does to messages, seen from both ends of a worker's stream."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench.relay import Faults, Relay
from paceline import codec, rpc
from paceline.types import Decode
from paceline.wire import verifier_pb2_grpc
from paceline.worker import WorkerServer
from tests.paceline.test_worker import Toy
from verifier.server import VERIFIER

NUM_ASKS = 200


@asynccontextmanager
async def relayed(shape: Faults) -> AsyncIterator[verifier_pb2_grpc.VerifierStub]:
    """A stub of a worker behind a relay; the worker answers every `Decode` of one token with one verdict."""
    worker = WorkerServer(Toy(), VERIFIER)
    await worker.start()
    relay = Relay(("127.0.0.1", int(worker.info.address.rpartition(":")[2])), shape)
    try:
        async with rpc.connect(f"127.0.0.1:{await relay.start()}") as channel:
            yield verifier_pb2_grpc.VerifierStub(channel)
    finally:
        await relay.stop()
        await worker.stop(2)


async def answered(stub: verifier_pb2_grpc.VerifierStub) -> list[int]:
    """The starts of the verdicts that came, in their order, for asks from 0 on."""
    call = stub.Connect()
    for start in range(NUM_ASKS):
        await call.write(codec.verifier_ask_to_wire(Decode("r", 0, start, 1)))
    starts: list[int] = []
    while len(starts) < 2 * NUM_ASKS:
        try:
            async with asyncio.timeout(1):
                reply = await call.read()
        except TimeoutError:
            break
        starts.append(codec.verifier_reply_from_wire(reply).start)  # type: ignore[union-attr]
    call.cancel()
    return starts


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Faults(), "all, in order"),
        (Faults(repeat_share=0.2), "some twice"),
        (Faults(overtake_share=0.2), "all, out of order"),
        (Faults(lose_share=0.2), "some not"),
    ],
)
async def test_each_fault_does_what_it_says_and_nothing_else(shape: Faults, expected: str) -> None:
    async with relayed(shape) as stub:
        starts = await answered(stub)
    seen = Counter(starts)
    assert (len(seen) < NUM_ASKS) == (expected == "some not")
    assert (max(seen.values()) > 1) == (expected == "some twice")
    assert (sorted(starts) != starts) == (expected == "all, out of order")
