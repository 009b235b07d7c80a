"""Peers that mean harm: what they send costs them something, and nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench.garble import garbled
from drafter.server import DRAFTER
from paceline import codec, rpc
from paceline.errors import PacelineError
from paceline.types import Commit, Draft, OpenDraft, Role, WorkerInfo
from paceline.wire import common_pb2, coordinator_pb2, coordinator_pb2_grpc, drafter_pb2, verifier_pb2
from paceline.worker import WorkerServer
from tests.system.cluster import Cluster, cluster, load, until, worker_info
from tests.tiny import write_pair

PROMPT = tuple(range(40, 52))
LETTERS = coordinator_pb2.GenerateRequest(prompt="hi", max_tokens=3, stop=["x"], request_id="r", resume_token_ids=[1])
UNARY: dict[str, Any] = {
    "Generate": LETTERS,
    "Abort": coordinator_pb2.AbortRequest(request_id="r"),
    "GetModelInfo": coordinator_pb2.GetModelInfoRequest(),
    "GetServerInfo": coordinator_pb2.GetServerInfoRequest(),
    "ListTraces": coordinator_pb2.ListTracesRequest(),
    "GetTrace": coordinator_pb2.GetTraceRequest(request_id="r"),
    "Register": common_pb2.WorkerInfo(role="ROLE_DRAFTER", address="h:1", model="m", dtype="float32", vocab_size=3),
}
ASKS: dict[str, Any] = {
    "Verifier": verifier_pb2.VerifierAsk(open={"request_id": "r", "token_ids": b"\1\0\0\0", "rule": 1}),
    "Drafter": drafter_pb2.DrafterAsk(commit={"request_id": "r", "start": 5, "token_ids": b"\1\0\0\0"}),
}
NUM_MESSAGES = 200  # of each RPC
# What a peer may be told. INTERNAL stands for a bug of ours, and is none of these.
HONEST = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
async def it(pair: tuple[Path, Path]) -> AsyncIterator[Cluster]:
    async with cluster(pair[0], max_workers=20) as made:
        await made.add("v", Role.VERIFIER, pair[0])
        yield made


async def serves(it: Cluster, num_tokens: int = 8, mode: str | None = None) -> tuple[int, ...]:
    """A few greedy tokens: an honest client is served as ever."""
    async with it.client() as client:
        answer = await client.complete(PROMPT, max_tokens=num_tokens, ignore_eos=True, mode=mode, timeout_s=30)
    assert len(answer.token_ids) == num_tokens
    return answer.token_ids


@pytest.mark.parametrize("method", UNARY)
async def test_garbled_calls_are_answered_with_an_error_of_the_callers_and_serving_goes_on(
    it: Cluster, method: str
) -> None:
    rng = random.Random(method)
    seen = set()
    async with rpc.connect(it.address) as channel:
        for _ in range(NUM_MESSAGES):
            message = garbled(UNARY[method].SerializeToString(), b"", rng)
            call: Any
            if method in ("Generate", "GetTrace"):
                call = channel.unary_stream(f"/paceline.wire.Coordinator/{method}")(message, timeout=20)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    _ = [reply async for reply in call]
            else:
                call = channel.unary_unary(f"/paceline.wire.Coordinator/{method}")(message, timeout=20)
            seen.add(await call.code())
    assert seen <= HONEST
    assert await serves(it)


@pytest.mark.parametrize("role", ["Verifier", "Drafter"])
async def test_garbled_asks_cost_their_stream_at_most(
    it: Cluster, pair: tuple[Path, Path], role: str, caplog: pytest.LogCaptureFixture
) -> None:
    await it.add("d", Role.DRAFTER, pair[1])
    address = it.workers[role[0].lower()].info.address
    rng = random.Random(role)
    seen = set()
    async with rpc.connect(address) as channel:
        for _ in range(NUM_MESSAGES // 5):
            call = channel.stream_stream(f"/paceline.wire.{role}/Connect")()
            with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                for _ in range(5):
                    await call.write(garbled(ASKS[role].SerializeToString(), b"", rng))
                await call.done_writing()
            with contextlib.suppress(grpc.aio.AioRpcError):
                _ = [reply async for reply in call]
            # A write that meets the end of the stream makes the library itself say INTERNAL, on this side.
            code, details = await call.code(), str(await call.details())
            if code is not grpc.StatusCode.INTERNAL or "the server's log" in details:
                seen.add(code)
    assert seen <= HONEST
    assert "a handler failed" not in caplog.text
    assert await serves(it)


async def test_a_message_over_the_bound_is_refused_before_it_is_read(it: Cluster) -> None:
    async with rpc.connect(it.address) as channel:
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(it.address, options=options) as unbounded:
            stub = coordinator_pb2_grpc.CoordinatorStub(unbounded)
            huge = coordinator_pb2.GenerateRequest(prompt="x" * (rpc.MAX_MESSAGE_BYTES + 1), max_tokens=1)
            call = stub.Generate(huge, timeout=20)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        long = coordinator_pb2.GenerateRequest(prompt="x" * 2**20, max_tokens=1)
        call = coordinator_pb2_grpc.CoordinatorStub(channel).Generate(long, timeout=20)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call.read()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT, "nor is a text tokenized that can never fit"
    assert await serves(it)


async def test_thousands_of_registrations_are_bounded_and_stop_nobody(it: Cluster) -> None:
    info = replace(it.workers["v"].info, role=Role.DRAFTER, address="127.0.0.1:1")
    codes = []
    async with rpc.connect(it.address) as channel:
        register = coordinator_pb2_grpc.CoordinatorStub(channel).Register

        async def flood(start: int) -> None:
            for i in range(start, start + 250):
                codes.append(await register(codec.worker_info_to_wire(replace(info, incarnation=i)), timeout=20).code())
                assert len(it.server.coordinator.links) <= 20

        flooding = [asyncio.create_task(flood(250 * i)) for i in range(8)]
        assert await serves(it)
        await asyncio.gather(*flooding)
    assert len(codes) == 2000
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    await until(lambda: len(it.server.coordinator.links) == 1)
    assert await serves(it)


class Liar:
    """A drafter that knows no token: ids beyond the vocabulary, from epochs and places that nobody asked about."""

    def __init__(self, info: WorkerInfo) -> None:
        self.info = info
        self.num_requests = 0
        self.rng = random.Random(1)

    def handle(self, peer: int, ask: Any, waited_s: float = 0.0) -> list[tuple[int, Any]]:
        if not isinstance(ask, OpenDraft | Commit):
            return []
        end = ask.start + len(ask.token_ids) if isinstance(ask, Commit) else len(ask.token_ids)
        rng = self.rng
        places = [(ask.epoch, end)]  # the one that is asked for, then others
        for _ in range(19):
            epoch, start = ask.epoch + rng.choice((0, 0, -1, 1, 2**20)), end + rng.choice((0, 0, -3, 5, 2**20))
            places.append((max(0, epoch), max(0, start)))
        return [(peer, Draft(ask.request_id, *place, self._token_ids())) for place in places]

    def _token_ids(self) -> tuple[int, ...]:
        rng = self.rng
        return (*(rng.randrange(2 ** rng.choice((8, 32))) for _ in range(rng.randint(0, 63))), 2**32 - 1)

    def step(self) -> list[tuple[int, Any]]:
        return []

    def has_work(self) -> bool:
        return False

    @property
    def held(self) -> dict[str, int]:
        return {"requests": 0}

    def drop(self, peer: int) -> None:
        pass

    def fail(self, error: Exception) -> list[tuple[int, Any]]:
        return []


async def test_a_drafter_that_lies_about_its_vocabulary_changes_no_token(it: Cluster, pair: tuple[Path, Path]) -> None:
    honest = await serves(it, 48)
    info = replace(worker_info(Role.DRAFTER, pair[1], load(pair[1])), vocab_size=2**32 - 1)
    liar: WorkerServer[Any, Any] = WorkerServer(Liar(info), DRAFTER)
    await liar.start(coordinators=[it.address])
    pools = it.server.coordinator.pipeline.pools
    await until(lambda: any(member.info.role is Role.DRAFTER for member in pools))
    (drafter,) = [member for member in pools if member.info.role is Role.DRAFTER]
    num_rounds = 0
    while not drafter.pace.breaker.num_trips:
        # Long enough for a lie to come in time; `pearl` waits for one, `auto` would try the drafter now and then.
        assert await serves(it, 48, "pearl") == honest
        num_rounds += 1
        assert num_rounds < 50, "after a few lies nobody asks it any more, for a while"
    assert await serves(it, 48) == honest
    await liar.stop(2)


@pytest.mark.parametrize("is_asked", [False, True])
async def test_a_drafter_that_floods_is_cut_off_and_stops_nobody(
    it: Cluster, pair: tuple[Path, Path], is_asked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Before it was asked for anything, or of requests that it has: while it is asked it may say more than it should,
    and harms nobody; what it was allowed is used up soon after."""
    honest = await serves(it)
    num_sent = 0

    async def flood(context: Any) -> None:
        nonlocal num_sent
        request_id = (await context.read()).open.request_id if is_asked else "nobody"
        while True:
            await context.write(codec.drafter_reply_to_wire(Draft(request_id, 7, 5, (1,))))
            num_sent += 1

    services = ((DRAFTER.service, lambda server: DRAFTER.add(flood, server)),)
    server, port = await rpc.start_server(services, "127.0.0.1", 0)
    info = replace(worker_info(Role.DRAFTER, pair[1], load(pair[1])), address=f"127.0.0.1:{port}")
    coordinator = it.server.coordinator

    def is_there() -> bool:
        return any(member.info.role is Role.DRAFTER for member in coordinator.pipeline.pools)

    try:
        coordinator.registry.register(info)
        await until(lambda: is_there() or num_sent)
        for _ in range(3):
            assert await serves(it) == honest
        assert num_sent
        for link in coordinator.links.values():
            link.lease_until_s += 60  # it is not for the lease that it goes
        await until(lambda: not is_there())
        assert "more than it was asked for" in caplog.text
        assert await serves(it) == honest
    finally:
        await server.stop()


SECRET = "Xyzzy"  # of a prompt, and of what goes wrong with one


async def test_no_log_line_says_what_a_prompt_said(
    it: Cluster, pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever becomes of it, and however much is logged."""
    caplog.set_level(logging.DEBUG)
    await it.add("d", Role.DRAFTER, pair[1])
    async with it.client() as client:
        for given in (
            {"max_tokens": 8, "ignore_eos": True},
            {"max_tokens": 8, "stop": [SECRET]},
            {"max_tokens": 8, "request_id": "r", "mode": "pearl", "temperature": 1.0},
            {"max_tokens": 10**6},
            {"max_tokens": 8, "stop_token_ids": [10**6]},
            {"max_tokens": 400, "ignore_eos": True, "timeout_s": 0.05},
        ):
            with contextlib.suppress(PacelineError):
                await client.complete(f"{SECRET} is the word", **given)
        with contextlib.suppress(PacelineError):
            await client.complete(SECRET * 10**5, max_tokens=8)
        await it.remove("d")
        await client.complete(SECRET, max_tokens=8)
    assert caplog.records, "something is logged at all"
    assert SECRET not in caplog.text


async def _talk(port: int, sends: bytes, *, until_closed: bool = False) -> bytes:
    """What a raw connection reads: the first piece, or all of it until the server closes, which it must."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        writer.write(sends)
        got = await asyncio.wait_for(reader.read() if until_closed else reader.read(1), 20)
        if not until_closed:
            await asyncio.sleep(1)  # all of them are held open for as long as others try
    except ConnectionError:
        pass
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return got


@pytest.mark.parametrize("sends", [b"", b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\n\r\n"])
async def test_who_connects_and_says_nothing_of_use_is_let_go(monkeypatch: pytest.MonkeyPatch, sends: bytes) -> None:
    options = dict(rpc.SERVER_OPTIONS) | {"grpc.server_handshake_timeout_ms": 300}
    monkeypatch.setattr(rpc, "SERVER_OPTIONS", tuple(options.items()))
    server, port = await rpc.start_server([], "127.0.0.1", 0)

    await asyncio.gather(*(_talk(port, sends, until_closed=True) for _ in range(50)))
    await server.stop()


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict(rpc.SERVER_OPTIONS) | {"grpc.max_allowed_incoming_connections": 5}
    monkeypatch.setattr(rpc, "SERVER_OPTIONS", tuple(options.items()))
    server, port = await rpc.start_server([], "127.0.0.1", 0)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
    answered = await asyncio.gather(*(_talk(port, preface) for _ in range(40)))
    num_open = sum(bool(answer) for answer in answered)
    assert 1 <= num_open <= 5
    await server.stop()
