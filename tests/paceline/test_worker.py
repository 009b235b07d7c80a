"""The workers' shell, with an engine that needs no model."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.processes import free_port
from drafter.server import DRAFTER
from drafter.server import serve as serve_drafter
from paceline import codec, engine_thread, outbox, rpc, worker
from paceline.engine_thread import EngineThread
from paceline.errors import EngineLost, InvalidInput, Overloaded, PacelineError, Unhelpful, Unsupported
from paceline.kind import Place
from paceline.types import (
    Blame,
    Close,
    Decode,
    Fault,
    Role,
    Source,
    StepCost,
    Verdict,
    VerifierAsk,
    VerifierReply,
    WorkerInfo,
)
from paceline.wire import coordinator_pb2, coordinator_pb2_grpc, verifier_pb2, verifier_pb2_grpc
from paceline.worker import WorkerServer
from verifier.server import VERIFIER

INFO = WorkerInfo(Role.VERIFIER, "", 0, "toy", "a" * 64, "b" * 64, 16, 64, 4, (1,), "float32", "cpu")


class Toy:
    """Answers a Decode in the next step, with as many tokens as were asked for."""

    def __init__(self, info: WorkerInfo = INFO) -> None:
        self.info = info
        self.work: list[tuple[int, Decode]] = []
        self.closed: list[str] = []
        self.dropped: list[int] = []
        self.threads: set[int] = set()
        self.waited_s: list[float] = []
        self.gate: threading.Event | None = None
        self.step_error: Exception | None = None
        self.num_steps = 0

    @property
    def num_requests(self) -> int:
        return len(self.work)

    @property
    def held(self) -> dict[str, int]:
        return {"requests": len(self.work)}

    def handle(self, peer: int, ask: VerifierAsk, waited_s: float = 0.0) -> list[tuple[int, VerifierReply]]:
        self.waited_s.append(waited_s)
        self.threads.add(threading.get_ident())
        if isinstance(ask, Close):
            self.closed.append(ask.request_id)
        elif ask.request_id == "crash":
            raise KeyError("the secret")
        elif ask.request_id == "refuse":
            raise InvalidInput("num_decode", 1, "no")
        elif ask.request_id == "full":
            raise Overloaded("requests", 1, 0.25)
        elif isinstance(ask, Decode):
            self.work.append((peer, ask))
        return []

    def step(self) -> list[tuple[int, VerifierReply]]:
        self.num_steps += 1
        if self.gate:
            self.gate.wait(5)
        if self.step_error:
            raise self.step_error
        work, self.work = self.work, []
        return [
            (peer, Verdict(ask.request_id, ask.epoch, ask.start, (7,), (Source.SELF_DECODED,)))
            for peer, ask in work
            for _ in range(ask.num_tokens)
        ]

    def has_work(self) -> bool:
        return bool(self.work) or isinstance(self.step_error, EngineLost)

    def drop(self, peer: int) -> None:
        self.dropped.append(peer)

    def fail(self, error: Exception) -> list[tuple[int, Fault]]:
        work, self.work = self.work, []
        return [(peer, Fault(ask.request_id, "step failed")) for peer, ask in work]


class Registry:
    """A coordinator that only registers."""

    def __init__(self, error: PacelineError | None = None, lease_s: float = 0.15) -> None:
        self.error, self.lease_s = error, lease_s
        self.seen: list[WorkerInfo] = []
        self.changed = asyncio.Event()

    async def Register(self, wire: Any, context: Any) -> Any:  # noqa: N802
        async with rpc.answering(context):
            self.seen.append(codec.worker_info_from_wire(wire))
            self.changed.set()
            if self.error:
                raise self.error
            return coordinator_pb2.RegisterReply(lease_s=self.lease_s)

    def __getattr__(self, name: str) -> Any:
        return self.Register

    async def start(self, port: int = 0) -> tuple[rpc.Server, int]:
        def add(server: Any) -> None:
            coordinator_pb2_grpc.add_CoordinatorServicer_to_server(self, server)

        return await rpc.start_server([("paceline.wire.Coordinator", add)], "127.0.0.1", port)

    async def wait_for(self, num: int) -> None:
        while len(self.seen) < num:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 5)


@pytest.fixture
async def toy() -> AsyncIterator[tuple[Toy, WorkerServer[VerifierAsk, VerifierReply], Any]]:
    """An engine, its server, and a stub connected to it."""
    engine = Toy()
    server = WorkerServer(engine, VERIFIER)
    await server.start()
    async with rpc.connect(server.info.address) as channel:
        yield engine, server, verifier_pb2_grpc.VerifierStub(channel)
    assert await server.stop(4)
    assert server._streams == {}


def ask(request_id: str, num_tokens: int = 1) -> Any:
    return codec.verifier_ask_to_wire(Decode(request_id, 0, 5, num_tokens))


async def read(call: Any) -> VerifierReply:
    return codec.verifier_reply_from_wire(await asyncio.wait_for(call.read(), 5))


async def until(condition: Callable[[], object]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("did not happen within 5 s")


async def test_asks_of_many_requests_share_a_stream_and_one_thread(toy: Any) -> None:
    engine, _, stub = toy
    call = stub.Connect()
    for index in range(20):
        await call.write(ask(f"r{index}"))
    replies = {(await read(call)).request_id for _ in range(20)}
    assert replies == {f"r{index}" for index in range(20)}
    assert len(engine.threads) == 1
    assert engine.threads != {threading.get_ident()}
    call.cancel()


async def test_two_coordinators_get_their_own_replies(toy: Any) -> None:
    engine, _, stub = toy
    calls = [stub.Connect(), stub.Connect()]
    for index, call in enumerate(calls):
        await call.write(ask(f"of {index}"))
    for index, call in enumerate(calls):
        assert (await read(call)).request_id == f"of {index}"
        call.cancel()
    await until(lambda: len(engine.dropped) == 2)


@pytest.mark.parametrize("end", ["cancel", "done_writing"])
async def test_a_stream_that_ends_drops_its_peer(toy: Any, end: str) -> None:
    engine, _, stub = toy
    call = stub.Connect()
    await call.write(ask("r"))
    await read(call)
    if end == "cancel":
        call.cancel()
    else:
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    await until(lambda: engine.dropped)


async def test_a_bad_ask_costs_its_request_and_no_other(toy: Any) -> None:
    engine, _, stub = toy
    call = stub.Connect()
    await call.write(verifier_pb2.VerifierAsk(decode={"request_id": "bad", "num_tokens": 0}))
    fault = await read(call)
    assert isinstance(fault, Fault)
    assert (fault.request_id, fault.blame) == ("bad", Blame.CALLER)
    assert "decode.num_tokens" in fault.message
    await call.write(ask("good"))
    assert isinstance(await read(call), Verdict)
    assert engine.closed == ["bad"]
    call.cancel()


@pytest.mark.parametrize("message", [b"", b"\xff\xff\xff"])
async def test_an_ask_that_names_no_request_ends_its_stream_only(toy: Any, message: bytes) -> None:
    engine, server, stub = toy
    other = stub.Connect()
    await other.write(ask("other"))
    await read(other)
    async with rpc.connect(server.info.address) as channel:
        call = channel.stream_stream("/paceline.wire.Verifier/Connect")()
        await call.write(message)
        assert await asyncio.wait_for(call.code(), 5) is grpc.StatusCode.INVALID_ARGUMENT
    await other.write(ask("other"))
    assert isinstance(await read(other), Verdict)
    await until(lambda: engine.dropped)
    other.cancel()


@pytest.mark.parametrize(
    ("request_id", "blame"), [("crash", Blame.WORKER), ("refuse", Blame.CALLER), ("full", Blame.FULL)]
)
async def test_an_engine_that_raises_on_an_ask_faults_that_request_and_frees_it(
    toy: Any, request_id: str, blame: Blame, caplog: pytest.LogCaptureFixture
) -> None:
    engine, _, stub = toy
    call = stub.Connect()
    await call.write(ask(request_id))
    fault = await read(call)
    assert isinstance(fault, Fault)
    assert fault.blame is blame
    assert "secret" not in fault.message
    assert ("the secret" in caplog.text) is (request_id == "crash")
    await call.write(ask("next"))
    assert isinstance(await read(call), Verdict)
    assert engine.closed == [request_id]
    call.cancel()


async def test_a_failed_step_faults_what_the_engine_names_and_serving_goes_on(toy: Any) -> None:
    engine, _, stub = toy
    call = stub.Connect()
    engine.step_error = RuntimeError("device")
    await call.write(ask("r"))
    assert await read(call) == Fault("r", "step failed")
    engine.step_error = None
    await call.write(ask("r2"))
    assert isinstance(await read(call), Verdict)
    call.cancel()


async def test_three_failed_steps_in_a_row_end_the_worker(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine, server, stub = toy
    call = stub.Connect()
    engine.step_error = RuntimeError("device")
    for index in range(engine_thread.MAX_STEP_FAILURES):
        assert not server.ended.done()
        await call.write(ask(f"r{index}"))
        assert isinstance(await read(call), Fault)
    assert await asyncio.wait_for(asyncio.shield(server.ended), 5) == 1
    assert "RuntimeError: device" in capsys.readouterr().err
    call.cancel()


@pytest.mark.parametrize("is_idle", [True, False])
async def test_a_lost_engine_ends_the_worker_without_another_try(
    toy: Any, is_idle: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, server, stub = toy
    call = stub.Connect()
    engine.step_error = EngineLost("rank 1 is gone")
    if not is_idle:
        await call.write(ask("r"))
        assert await read(call) == Fault("r", "step failed")
    assert await asyncio.wait_for(asyncio.shield(server.ended), 5) == 1
    assert engine.num_steps == 1
    assert "rank 1 is gone" in capsys.readouterr().err
    call.cancel()


async def test_a_peer_that_does_not_read_loses_its_stream_and_no_other(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _, stub = toy
    monkeypatch.setattr(outbox, "MAX_REPLIES", 50)
    deaf, other = stub.Connect(), stub.Connect()
    await deaf.write(ask("deaf", 1000))
    await until(lambda: engine.dropped)
    await other.write(ask("other"))
    assert isinstance(await read(other), Verdict)
    assert await asyncio.wait_for(deaf.code(), 5) is grpc.StatusCode.RESOURCE_EXHAUSTED
    other.cancel()


async def test_a_full_inbox_makes_submit_wait_and_loses_nothing() -> None:
    engine = Toy()
    engine.gate = threading.Event()
    replies: list[Any] = []
    thread = EngineThread(engine, replies.extend, replies.append, max_inbox=2)
    tasks = [asyncio.create_task(thread.submit(1, Decode(f"r{index}", 0, 0, 1))) for index in range(50)]
    await until(lambda: engine.num_steps)
    assert sum(task.done() for task in tasks) < 50
    engine.gate.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    await until(lambda: len(replies) == 50)
    assert await thread.stop(5)


async def test_shutdown_ends_streams_and_says_not_serving() -> None:
    server = WorkerServer(Toy(), VERIFIER)
    await server.start()
    async with rpc.connect(server.info.address) as channel:
        call = verifier_pb2_grpc.VerifierStub(channel).Connect()
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="paceline.wire.Verifier")
        )
        await call.write(ask("r"))
        await read(call)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(server.stop(4))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await asyncio.wait_for(call.code(), 5) is grpc.StatusCode.UNAVAILABLE
        watch.cancel()
        assert await stopping


async def test_a_worker_that_drains_tells_its_coordinators_at_once_and_waits_until_it_is_empty() -> None:
    registry, engine = Registry(lease_s=600), Toy()
    coordinator, port = await registry.start()
    server = WorkerServer(engine, VERIFIER)
    await server.start(coordinators=[f"127.0.0.1:{port}"])
    await registry.wait_for(1)
    engine.gate = threading.Event()
    async with rpc.connect(server.info.address) as channel:
        call = verifier_pb2_grpc.VerifierStub(channel).Connect()
        await call.write(ask("r"))
        await until(lambda: engine.num_steps)
        draining = asyncio.create_task(server.drain(20))
        await registry.wait_for(2)
        assert (registry.seen[-1].is_draining, registry.seen[-1].num_requests) == (True, 1)
        assert not (await asyncio.wait((draining,), timeout=0.2))[0], "it holds a request still"
        engine.gate.set()
        await asyncio.wait_for(draining, 5)
        assert isinstance(await read(call), Verdict)
        call.cancel()
    assert await server.stop(4)
    await coordinator.stop()


async def test_asks_that_wait_for_a_pass_are_no_requests_of_a_heartbeat_and_keep_a_drain_waiting() -> None:
    """Drafts for one request, queued behind a pass, looked like a crowd of other coordinators' requests."""
    engine = Toy()
    server = WorkerServer(engine, VERIFIER)
    await server.start()
    engine.gate = threading.Event()
    for _ in range(3):
        await server._engine.submit(1, Decode("r", 0, 0, 1))
        await until(lambda: engine.num_steps)
    assert server._info_now().num_requests == 1
    assert server._engine.held["asks"] == 2
    engine.work.clear()
    assert not server._engine.is_empty
    engine.gate.set()
    assert await server.stop(4)


async def test_a_drain_is_bounded_whatever_is_held_and_whoever_does_not_answer() -> None:
    engine = Toy()
    server = WorkerServer(engine, VERIFIER)
    await server.start(coordinators=["127.0.0.1:1"])
    engine.gate = threading.Event()
    await server._engine.submit(1, Decode("r", 0, 0, 1))
    await asyncio.wait_for(server.drain(0.2), 5)
    assert engine.num_requests
    engine.gate.set()
    assert await server.stop(4)


async def test_a_worker_registers_again_within_its_lease() -> None:
    registry = Registry()
    coordinator, port = await registry.start()
    server = WorkerServer(Toy(), VERIFIER)
    await server.start(coordinators=[f"127.0.0.1:{port}"])
    await registry.wait_for(3)
    assert set(registry.seen) == {server.info}
    assert server.info.address.startswith("127.0.0.1:")
    assert server.info.incarnation != 0
    assert await server.stop(4)
    await coordinator.stop()


async def test_a_registration_carries_the_costs_as_they_are_now() -> None:
    registry, engine = Registry(), Toy()
    coordinator, port = await registry.start()
    server = WorkerServer(engine, VERIFIER)
    await server.start(coordinators=[f"127.0.0.1:{port}"])
    await registry.wait_for(1)
    assert registry.seen[0].cost is None
    engine.info = replace(engine.info, cost=StepCost(10.0, 0.5, 0.25, 0.001))
    await registry.wait_for(4)
    assert registry.seen[-1].cost == engine.info.cost
    assert await server.stop(4)
    await coordinator.stop()


async def test_a_worker_waits_for_a_coordinator_that_starts_later_or_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, port = await Registry().start()
    await first.stop()
    server = WorkerServer(Toy(), VERIFIER)
    await server.start(coordinators=[f"127.0.0.1:{port}"])
    await until(lambda: "does not answer" in caplog.text)
    for _ in range(2):
        registry = Registry()
        coordinator, _ = await registry.start(port)
        await registry.wait_for(2)
        await coordinator.stop()
    assert not server.ended.done()
    assert await server.stop(4)


@pytest.mark.parametrize("lease_s", [0.0, -1.0, math.nan, math.inf, 1e300])
async def test_a_lease_that_makes_no_sense_is_bounded(lease_s: float) -> None:
    assert 0.04 <= rpc._pause_s(lease_s) <= 200


async def test_a_registration_that_breaks_ends_the_worker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def breaks(*_: object, **__: object) -> PacelineError:
        raise KeyError("a bug")

    monkeypatch.setattr(worker, "keep_registered", breaks)
    assert await worker.serve_worker(Toy(), VERIFIER, coordinators=["127.0.0.1:1"]) == 1
    assert "KeyError" in capsys.readouterr().err


async def test_a_refused_worker_exits_with_code_2_and_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    coordinator, port = await Registry(Unsupported("tokenizer_hash", "b", "differs")).start()
    assert await worker.serve_worker(Toy(), VERIFIER, coordinators=[f"127.0.0.1:{port}"]) == 2
    out, err = capsys.readouterr()
    assert "tokenizer_hash='b': differs" in err
    assert len(out.splitlines()) == 1
    await coordinator.stop()


async def test_a_worker_that_one_of_two_coordinators_refuses_goes_on_for_the_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    refusing, good = Registry(Unsupported("tokenizer_hash", "b", "differs")), Registry()
    started = [await registry.start() for registry in (refusing, good)]
    server = WorkerServer(Toy(), VERIFIER)
    await server.start(coordinators=[f"127.0.0.1:{port}" for _, port in started])
    await refusing.wait_for(1)
    await good.wait_for(5)
    assert len(refusing.seen) == 1, "it is not asked again"
    assert not server.ended.done()
    good.error = Unsupported("model_hash", "c", "differs")
    assert await asyncio.wait_for(asyncio.shield(server.ended), 5) == 2
    told = capsys.readouterr().err
    assert "tokenizer_hash" in told
    assert "model_hash" in told
    await server.stop()
    for coordinator, _ in started:
        await coordinator.stop()


async def test_a_worker_that_is_of_no_use_asks_again_and_ends_only_if_it_is_told_to(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = Registry(Unhelpful("drafter", "small", "takes 60.0 ms a token", 0.05))
    coordinator, port = await registry.start()
    server = WorkerServer(Toy(), VERIFIER)
    await server.start(coordinators=[f"127.0.0.1:{port}"])
    await registry.wait_for(2)
    assert not server.ended.done()
    assert "no use for it now, asking again in 1 s: drafter='small': takes 60.0 ms a token" in caplog.text
    registry.error = None
    await registry.wait_for(4)
    assert not server.ended.done()
    assert await server.stop(4)
    registry.error = Unhelpful("drafter", "small", "takes 60.0 ms a token", 0.05)
    place: Place = {"coordinators": [f"127.0.0.1:{port}"], "exits_if_refused": True}
    assert await worker.serve_worker(Toy(), VERIFIER, **place) == 2
    await coordinator.stop()


async def test_sigterm_ends_a_worker_with_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    info = WorkerInfo(Role.DRAFTER, "", 0, "toy", "a" * 64, "b" * 64, 16, 64, 4, (1,), "float32", "cpu")
    engine: Any = Toy(info)
    serving = asyncio.create_task(serve_drafter(engine))
    output = ""

    def is_ready() -> bool:
        nonlocal output
        output += capsys.readouterr().out
        return "ready" in output

    await until(is_ready)
    assert output.startswith("paceline drafter ready on 127.0.0.1:")
    assert output.endswith(" (model toy)\n")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(serving, 5) == 0


@pytest.mark.parametrize(
    ("advertise", "registered"),
    [
        ("example.org", "example.org:PORT"),
        ("example.org:99", "example.org:99"),
        ("::1", "[::1]:PORT"),
        ("[::1]:99", "[::1]:99"),
        (None, "127.0.0.1:PORT"),
    ],
)
async def test_a_worker_is_registered_by_the_name_and_the_port_it_is_told(
    advertise: str | None, registered: str
) -> None:
    """Behind a forwarder it is reached by another port than the one it listens on."""
    server = WorkerServer(Toy(), VERIFIER)
    port = free_port()
    await server.start(advertise=advertise, port=port)
    assert server.info.address == registered.replace("PORT", str(port))
    assert await server.stop(2)


async def test_a_worker_on_all_hosts_must_say_how_it_is_reached() -> None:
    server = WorkerServer(Toy(), VERIFIER)
    with pytest.raises(InvalidInput, match="advertise"):
        await server.start(host="0.0.0.0", insecure=True)
    with pytest.raises(InvalidInput, match="host"):
        await server.start(host="0.0.0.0", advertise="example.org")
    assert await server.stop(2)


def test_both_kinds_name_the_service_of_their_proto() -> None:
    assert VERIFIER.service == verifier_pb2.DESCRIPTOR.services_by_name["Verifier"].full_name
    assert DRAFTER.service == "paceline.wire.Drafter"


async def test_the_way_to_the_engine_and_back_is_short() -> None:
    """0.04 ms where it was measured; a hundred times that would mean a poll or a sleep on the way."""
    landed: asyncio.Queue[Any] = asyncio.Queue()
    thread = EngineThread(Toy(), landed.put_nowait, print)
    times = []
    gc.collect()
    for _ in range(300):
        start = time.perf_counter()
        await thread.submit(1, Decode("r", 0, 0, 1))
        await landed.get()
        times.append(time.perf_counter() - start)
    assert await thread.stop(2)
    print(f"median {sorted(times)[150] * 1e6:.0f} us, p99 {sorted(times)[297] * 1e6:.0f} us")
    assert sorted(times)[150] < 0.004


async def test_an_ask_says_how_long_it_lay_in_the_inbox() -> None:
    engine = Toy()
    engine.gate = threading.Event()
    replies: list[Any] = []
    thread = EngineThread(engine, replies.extend, replies.append)
    await thread.submit(1, Decode("r0", 0, 0, 1))
    await until(lambda: engine.num_steps)
    await thread.submit(1, Decode("r1", 0, 0, 1))  # comes while the pass of the first one is under way
    await asyncio.sleep(0.1)
    engine.gate.set()
    await until(lambda: len(replies) == 2)
    assert engine.waited_s[1] >= 0.1 > engine.waited_s[0]
    assert await thread.stop(5)


async def test_a_worker_whose_engine_hangs_says_nothing_until_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "HANGS_S", 0.3)
    monkeypatch.setattr(rpc, "MAX_BACKOFF_S", 0.05)
    monkeypatch.setattr(engine_thread, "IDLE_CHECK_S", 0.05)
    registry, engine = Registry(), Toy()
    coordinator, port = await registry.start()
    server = WorkerServer(engine, VERIFIER)
    await server.start(coordinators=[f"127.0.0.1:{port}"])
    await registry.wait_for(8)  # at 0.05 s each: longer than it may be busy, and it is not
    engine.gate = threading.Event()
    await server._engine.submit(1, Decode("r", 0, 0, 1))
    await until(lambda: "no heartbeat" in caplog.text)
    num_seen = len(registry.seen)
    await asyncio.sleep(0.3)
    assert len(registry.seen) <= num_seen + 1, "one may have been on its way"
    engine.gate.set()
    await registry.wait_for(num_seen + 3)
    await server.stop()
    await coordinator.stop()


def test_an_engine_whose_passes_are_long_may_be_busy_for_longer() -> None:
    quick, slow = (replace(INFO, cost=StepCost(10.0, per_token_ms, 0.0, 0.0)) for per_token_ms in (1.0, 20.0))
    assert worker.longest_turn_s(INFO) == worker.longest_turn_s(quick) == worker.HANGS_S
    assert worker.longest_turn_s(slow) > 2048 * 0.020
