"""A real drafter behind the proxy: distance and cuts change no token, and the run's trace replays exactly."""

from __future__ import annotations

from pathlib import Path

from bench.processes import free_port
from bench.proxy import Proxy, Shape
from bench.simulator.recorded import measure
from bench.simulator.replay import replay
from paceline.kind import Place
from paceline.trace import read
from paceline.types import Role
from tests.system.cluster import cluster, until

ROOT = Path(__file__).parents[2]
TARGET, DRAFTER = ROOT / "models/demo-target", ROOT / "models/demo-drafter"
NUM_TOKENS = 48
RTT_MS = 20


async def test_a_link_that_is_slow_and_cut_costs_speed_and_nothing_else(tmp_path: Path) -> None:
    trace = str(tmp_path / "run.trace")
    port = free_port()
    proxy = Proxy(("127.0.0.1", port), Shape(rtt_ms=RTT_MS))
    where = f"127.0.0.1:{await proxy.start()}"
    try:
        async with cluster(TARGET, trace=trace) as it, it.client() as client:
            await it.add("v", Role.VERIFIER, TARGET)
            await it.add("d", Role.DRAFTER, DRAFTER, place=Place(port=port, advertise=where))
            expected = await client.complete("One two", max_tokens=NUM_TOKENS, mode="off", ignore_eos=True)
            tokens: list[int] = []
            async for chunk in client.generate("One two", max_tokens=NUM_TOKENS, mode="pearl", ignore_eos=True):
                if not tokens and chunk.token_ids:
                    proxy.cut()
                tokens += chunk.token_ids
            assert tuple(tokens) == expected.token_ids
            pools = it.server.coordinator.pipeline.pools
            await until(lambda: any(member.info.role is Role.DRAFTER for member in pools))
            again = await client.complete("One two", max_tokens=NUM_TOKENS, mode="sequential", ignore_eos=True)
            assert again.token_ids == expected.token_ids
            assert again.metrics["num_accepted_tokens"] > 0
    finally:
        await proxy.stop()
    steps = list(replay(read(trace)))
    assert len(steps) > 20
    assert not any(steps), "the core would do something else now"
    profile = measure(read(trace), lambda spec: spec["mode"] == "sequential")
    assert profile.requests[0].num_generated_tokens == NUM_TOKENS
    assert profile.drafter_hop_s >= RTT_MS / 2e3
