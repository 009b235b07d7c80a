"""Status codes, binding, health, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from paceline import rpc
from paceline.errors import (
    InvalidInput,
    Overloaded,
    PacelineError,
    PeerFault,
    Unavailable,
    Unhelpful,
    UnknownRequest,
    Unsupported,
)
from paceline.wire import coordinator_pb2, coordinator_pb2_grpc

NAME = "paceline.wire.Coordinator"


class Raises:
    """A coordinator whose Abort raises `error`."""

    def __init__(self) -> None:
        self.error: BaseException = InvalidInput("x", 1, "y")

    async def Abort(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with rpc.answering(context):
            raise self.error

    def __getattr__(self, name: str) -> Any:
        return self.Abort


@pytest.fixture
async def raises() -> AsyncIterator[tuple[Raises, Callable[[], Awaitable[Any]], int]]:
    servicer = Raises()
    add = partial(coordinator_pb2_grpc.add_CoordinatorServicer_to_server, servicer)
    server, port = await rpc.start_server([(NAME, add)], "127.0.0.1", 0)
    async with rpc.connect(f"127.0.0.1:{port}") as channel:
        abort = coordinator_pb2_grpc.CoordinatorStub(channel).Abort
        yield servicer, lambda: abort(coordinator_pb2.AbortRequest(), timeout=5), port
    await server.stop()


ERRORS: list[tuple[PacelineError, grpc.StatusCode]] = [
    (InvalidInput("max_tokens", 0, "must be at least 1"), grpc.StatusCode.INVALID_ARGUMENT),
    (Unsupported("rule", "token", "needs rows…"), grpc.StatusCode.FAILED_PRECONDITION),
    (Unhelpful("drafter", "small", "takes 60 ms a token", 2.5), grpc.StatusCode.FAILED_PRECONDITION),
    (UnknownRequest("r-1"), grpc.StatusCode.NOT_FOUND),
    (Overloaded("queue", 8, 2.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Unavailable("no verifier is connected"), grpc.StatusCode.UNAVAILABLE),
    (PeerFault("the drafter sent nonsense"), grpc.StatusCode.INTERNAL),
]


@pytest.mark.parametrize(("error", "status"), ERRORS)
async def test_an_error_crosses_the_wire_as_itself(raises: Any, error: PacelineError, status: grpc.StatusCode) -> None:
    servicer, call, _ = raises
    servicer.error = error
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call()
    assert caught.value.code() is status is rpc.status_of(error)
    back = rpc.error_of(caught.value)
    assert type(back) is type(error)
    assert str(back) == str(error)
    if isinstance(error, InvalidInput) and isinstance(back, InvalidInput):
        assert back.field == error.field
    if isinstance(back, Overloaded | Unhelpful):
        assert back.retry_after_s == 2.5
        assert ("grpc-retry-pushback-ms", "2500") in tuple(caught.value.trailing_metadata())


async def test_an_unexpected_exception_is_logged_and_not_told(raises: Any, caplog: pytest.LogCaptureFixture) -> None:
    servicer, call, _ = raises
    servicer.error = KeyError("the secret")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value)
    assert "the secret" in caplog.text


async def test_health_and_reflection_know_the_service(raises: Any) -> None:
    port = raises[2]
    async with rpc.connect(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        reply = await check(health_pb2.HealthCheckRequest(service=NAME), timeout=5)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5
        )
        names = [service.name async for reply in call for service in reply.list_services_response.service]
        assert {NAME, "grpc.health.v1.Health"} <= set(names)


async def test_a_port_in_use_is_refused_by_name(raises: Any) -> None:
    with pytest.raises(InvalidInput, match=f"port={raises[2]}"):
        await rpc.start_server([], "127.0.0.1", raises[2])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_leave(host: str) -> None:
    rpc.check_bind(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_other_hosts_need_leave(host: str) -> None:
    with pytest.raises(InvalidInput, match="--insecure"):
        rpc.check_bind(host)
    rpc.check_bind(host, insecure=True)


async def test_a_signal_runs_the_shutdown_once() -> None:
    calls: list[str] = []

    async def shutdown() -> None:
        calls.append("shutdown")

    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
    assert await rpc.run_until_signalled(shutdown) == 0
    assert calls == ["shutdown"]


async def test_a_shutdown_that_hangs_is_cut_short() -> None:
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    ended.set_result(0)
    assert await rpc.run_until_signalled(asyncio.Event().wait, within_s=0.01, ended=ended) == 1


def test_a_second_signal_ends_the_process_at_once() -> None:
    code = (
        "import asyncio, os, signal\n"
        "from paceline import rpc\n"
        "async def shutdown():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    await asyncio.Event().wait()\n"
        "async def main():\n"
        "    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)\n"
        "    await rpc.run_until_signalled(shutdown, within_s=60)\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 128 + signal.SIGINT
