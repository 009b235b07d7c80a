"""The benchmarks' clients on a real coordinator: they read, hang up, and leave nothing."""

from __future__ import annotations

from pathlib import Path

from bench import rate
from paceline.types import Role
from tests.system.cluster import cluster

TARGET = Path(__file__).parents[2] / "models/demo-target"


async def test_clients_that_hang_up_were_counted_and_leave_nothing() -> None:
    struck: list[bool] = []
    async with cluster(TARGET) as it:
        await it.add("v", Role.VERIFIER, TARGET)
        tokens_per_s, _ = await rate.run(it.address, ["One two", "Three"], "off", 3, 0.5, lambda: struck.append(True))
        assert tokens_per_s > 0
        assert struck == [True]
        async with it.client() as client:
            assert (await client.server_info()).num_requests_running == 0
