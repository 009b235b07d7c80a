"""Drafters that are judged when they register: real processes' shells around engines that only say their cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.api import CoordinatorServer
from coordinator.config import CoordinatorConfig
from drafter.server import DRAFTER
from paceline.types import Role, StepCost
from paceline.worker import WorkerServer
from tests.paceline.test_worker import INFO, Toy
from tests.system.cluster import until
from tests.tiny import write_pair
from verifier.server import VERIFIER


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[CoordinatorServer]:
    target, _ = write_pair(tmp_path)
    it = CoordinatorServer(CoordinatorConfig(str(target), grpc_port=0, lease_s=1.0))
    await it.start()
    yield it
    await it.stop()


async def started(server: CoordinatorServer, role: Role, ms: float, *, exits: bool = False) -> WorkerServer[Any, Any]:
    tokenizer_hash = server.coordinator.tokenizer.hash
    engine = Toy(replace(INFO, role=role, tokenizer_hash=tokenizer_hash, cost=StepCost(ms, 0.0, 0.0, 0.0)))
    kind: Any = VERIFIER if role is Role.VERIFIER else DRAFTER
    worker: WorkerServer[Any, Any] = WorkerServer(engine, kind)
    await worker.start(coordinators=[f"127.0.0.1:{server.port}"], exits_if_refused=exits)
    return worker


def states(server: CoordinatorServer) -> list[tuple[Role, str]]:
    return sorted((link.info.role, link.state) for link in server.coordinator.links.values())


async def test_a_drafter_waits_for_a_verifier_and_is_taken_in_with_the_way_to_it_measured(
    server: CoordinatorServer,
) -> None:
    drafter = await started(server, Role.DRAFTER, 1.0)
    await until(lambda: states(server) == [(Role.DRAFTER, "probation")])
    assert not list(server.coordinator.pipeline.pools)
    verifier = await started(server, Role.VERIFIER, 10.0)
    await until(lambda: states(server) == [(Role.DRAFTER, "healthy"), (Role.VERIFIER, "healthy")])
    (member,) = [worker for worker in server.coordinator.pipeline.pools if worker.info.role is Role.DRAFTER]
    assert member.rtt_s
    await drafter.stop(2)
    await verifier.stop(2)


async def test_one_that_can_help_nobody_is_not_taken_in_and_asks_again_when_the_verifiers_have_changed(
    server: CoordinatorServer, caplog: pytest.LogCaptureFixture
) -> None:
    verifier = await started(server, Role.VERIFIER, 10.0)
    await until(lambda: states(server) == [(Role.VERIFIER, "healthy")])
    drafter = await started(server, Role.DRAFTER, 60.0)
    await until(lambda: "has no use for it now" in caplog.text)
    assert "takes 60.0 ms a token" in caplog.text
    assert states(server) == [(Role.VERIFIER, "healthy")]
    assert not drafter.ended.done()
    hasty = await started(server, Role.DRAFTER, 60.0, exits=True)
    assert await hasty.ended == 2
    for worker in (verifier, drafter, hasty):
        await worker.stop(2)
