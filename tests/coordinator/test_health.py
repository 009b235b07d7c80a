"""gRPC's health says what HTTP's does: whether a request would find a verifier."""

from __future__ import annotations

import asyncio
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.api import CoordinatorServer
from coordinator.config import CoordinatorConfig
from coordinator.core.events import WorkerDown, WorkerUp
from paceline.rpc import connect
from paceline.types import Role, WorkerInfo
from tests.coordinator.toy import write_model

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def up(name: str, role: Role) -> WorkerUp:
    return WorkerUp(name, WorkerInfo(role, "127.0.0.1:1", 1, "toy", "", "", 258, 128, 4, (), "float32", "cpu"))


async def test_the_service_is_served_while_a_verifier_is_here_and_the_process_lives_anyhow(tmp_path: Path) -> None:
    server = CoordinatorServer(CoordinatorConfig(str(write_model(tmp_path / "model")), grpc_port=0))
    await server.start()
    async with connect(f"127.0.0.1:{server.port}") as channel, asyncio.timeout(20):
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="paceline.wire.Coordinator"))
        assert (await watch.read()).status == NOT_SERVING
        server.coordinator.feed(up("d", Role.DRAFTER))
        for name in ("v1", "v2"):
            server.coordinator.feed(up(name, Role.VERIFIER))
        assert (await watch.read()).status == SERVING
        server.coordinator.feed(WorkerDown("v1"))
        server.coordinator.feed(WorkerDown("d"))
        await asyncio.sleep(0.05)
        again = health.Watch(health_pb2.HealthCheckRequest(service="paceline.wire.Coordinator"))
        assert (await again.read()).status == SERVING
        server.coordinator.feed(WorkerDown("v2"))
        assert (await again.read()).status == NOT_SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
        watch.cancel()
        again.cancel()
    await server.stop()
