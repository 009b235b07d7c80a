"""Clients that leave, run out of time, or do not read: what they held is free at once, on both workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator import server as coordinator_server
from paceline import rpc
from paceline.client import AsyncClient
from paceline.errors import Overloaded, TimedOut
from paceline.types import Role
from paceline.wire import coordinator_pb2 as pb
from paceline.wire import coordinator_pb2_grpc
from tests.system.cluster import Cluster, cluster, until
from tests.tiny import write_pair

REPLY = pb.GenerateReply
PROMPT = tuple(range(40, 52))
LONG: Any = {"max_tokens": 480, "ignore_eos": True}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
async def it(pair: tuple[Path, Path], request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with cluster(pair[0], **getattr(request, "param", {})) as made:
        await made.add("v", Role.VERIFIER, pair[0])
        await made.add("d", Role.DRAFTER, pair[1])
        yield made


def held(it: Cluster) -> list[int]:
    """Requests that each worker holds."""
    return [engine.num_requests for engine in it.engines.values()]


def cached(it: Cluster) -> list[int]:
    """Tokens in the pool of each worker that belong to a request."""
    return [sum(engine.runner.length(key) for key in engine._entries) for engine in it.engines.values()]


async def begun(it: Cluster, client: AsyncClient, **options: Any) -> Any:
    """A generation that both workers hold; its chunks."""
    chunks = client.generate(PROMPT, **{**LONG, **options})
    await anext(chunks)
    await until(lambda: held(it) == [1, 1])
    return chunks


@pytest.mark.parametrize("how", ["leave", "abort"])
async def test_a_client_that_leaves_frees_both_workers_while_they_still_compute_for_it(it: Cluster, how: str) -> None:
    async with it.client() as client:
        chunks = await begun(it, client, request_id="r")
        assert all(cached(it))
        if how == "leave":
            await chunks.aclose()
        else:
            await client.abort("r")
        await until(lambda: held(it) == [0, 0])
    for engine in it.engines.values():
        engine.runner.check_integrity()
    assert not it.server.coordinator._clients or how == "abort"


async def test_a_deadline_frees_both_workers(it: Cluster) -> None:
    async with it.client() as client:
        runner: Any = it.engines["v"].runner
        forward = runner.forward

        def slowly(chunks: Any) -> Any:
            time.sleep(0.02)
            return forward(chunks)

        runner.forward = slowly
        with pytest.raises(TimedOut):
            await client.complete(PROMPT, timeout_s=0.5, **LONG)
        await until(lambda: held(it) == [0, 0])


@pytest.mark.parametrize("it", [{"client_stall_s": 0.3}], indirect=True)
async def test_a_client_that_does_not_read_is_paused_then_cut_and_holds_nothing(
    it: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reply is made a megabyte, more of which than a stream's window holds."""
    async with rpc.connect(it.address) as channel:
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        monkeypatch.setattr(pb, "GenerateReply", lambda **fields: REPLY(**fields | {"text": "x" * 2**20}))
        call = stub.Generate(pb.GenerateRequest(prompt_token_ids=PROMPT, **LONG))
        await call.wait_for_connection()
        await until(lambda: held(it) == [1, 1])
        await until(lambda: held(it) == [0, 0])
        await until(lambda: not it.server.coordinator._clients)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [reply async for reply in call]
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "client to read" in str(caught.value.details())


async def test_a_client_that_has_too_much_to_read_is_told_so_when_it_reads_on(
    it: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_server, "MAX_CLIENT_QUEUE", 8)
    gate = asyncio.Event()
    real = asyncio.Queue.get

    async def get(queue: Any) -> Any:
        if isinstance(queue, asyncio.Queue) and queue.maxsize == 0:
            await gate.wait()
        return await real(queue)

    monkeypatch.setattr(asyncio.Queue, "get", get)
    async with it.client() as client:
        asked = asyncio.ensure_future(client.complete(PROMPT, **LONG))
        await until(lambda: held(it) == [1, 1])
        await until(lambda: held(it) == [0, 0])
        gate.set()
        with pytest.raises(Overloaded, match="not read: full at 8"):
            await asked
