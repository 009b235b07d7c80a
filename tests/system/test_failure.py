"""Real processes, really killed, in the middle of a request."""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench import failure
from bench.pools import Pools, Setup
from coordinator.config import CoordinatorConfig
from paceline.client import Client
from paceline.errors import Unavailable
from paceline.types import Role
from tests.system import processes
from tests.tiny import write_pair

ROOT = Path(__file__).parents[2]
TARGET, DRAFTER = ROOT / "models/demo-target", ROOT / "models/demo-drafter"
NUM_TOKENS = 160
LEASE_S = CoordinatorConfig("").lease_s
KEPT = ("requests", "kv_blocks", "streams", "asks")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


def prompt() -> str:
    line = (ROOT / "tests/data/gsm8k_dev_12.jsonl").read_text().splitlines()[0]
    return f"Question: {json.loads(line)['question']}\nAnswer:"


@pytest.mark.parametrize("fault", ["kill", "hang"])
def test_a_drafter_lost_mid_request_costs_speed_and_nothing_else(fault: str) -> None:
    """Same greedy tokens, no error; and one that comes back is used again, in the same coordinator."""
    it = processes.coordinator(TARGET, "--max-draft-wait-ms", "50")
    verifier = processes.worker(Role.VERIFIER, TARGET, it.address)
    drafter = processes.worker(Role.DRAFTER, DRAFTER, it.address)
    with (
        processes.running(it, verifier, drafter),
        Client(
            it.address,
        ) as client,
    ):
        expected = client.complete(prompt(), max_tokens=NUM_TOKENS, mode="off", ignore_eos=True)
        tokens: list[int] = []
        for chunk in client.generate(prompt(), max_tokens=NUM_TOKENS, mode="pearl", ignore_eos=True):
            if not tokens and chunk.token_ids:
                getattr(drafter, fault)()
            tokens += chunk.token_ids
            metrics = chunk.metrics or {}
        assert tuple(tokens) == expected.token_ids
        assert metrics["num_self_decoded_tokens"] > NUM_TOKENS / 2
        assert sum(metrics["fallbacks"].values()) > 0
        drafter.stop()
        replacement = processes.worker(Role.DRAFTER, DRAFTER, it.address)
        with processes.running(replacement):
            again = client.complete(prompt(), max_tokens=NUM_TOKENS, mode="pearl", ignore_eos=True)
        assert again.token_ids == expected.token_ids
        assert again.metrics["num_accepted_tokens"] > 0


def test_a_verifier_lost_mid_request_is_replaced_and_the_tokens_go_on() -> None:
    it = processes.coordinator(TARGET)
    first, second = (processes.worker(Role.VERIFIER, TARGET, it.address) for _ in range(2))
    drafter = processes.worker(Role.DRAFTER, DRAFTER, it.address)
    with processes.running(it, first, second, drafter), Client(it.address) as client:
        expected = client.complete(prompt(), max_tokens=NUM_TOKENS, mode="off", ignore_eos=True)
        tokens: list[int] = []
        for chunk in client.generate(prompt(), max_tokens=NUM_TOKENS, mode="pearl", ignore_eos=True):
            if not tokens and chunk.token_ids:
                first.kill()  # the pool is empty, so ties go to the one that came first
            tokens += chunk.token_ids
        assert tuple(tokens) == expected.token_ids


def test_roles_start_in_any_order_and_end_cleanly_on_sigterm() -> None:
    it = processes.coordinator(TARGET)
    port = it.address.rpartition(":")[2]
    verifier = processes.worker(Role.VERIFIER, TARGET, it.address)
    assert it.stop() == 0
    again = processes.Process("coordinator", "--tokenizer", str(TARGET), "--grpc-port", port, "--port", "off")
    with processes.running(again, verifier), Client(again.address) as client:
        answer = client.complete(prompt(), max_tokens=4, ignore_eos=True, timeout_s=60)
        assert len(answer.token_ids) == 4
        assert verifier.stop() == 0


def options(target: Path, drafter: Path) -> argparse.Namespace:
    """Of `paceline bench failure`, for seconds; in the mode that waits for drafts, since the target is fast."""
    sizes = ("--requests", "6", "--max-tokens", "120", "--pause-s", "1", "--mode", "sequential")
    return failure.parser().parse_args([*sizes, "--target", str(target), "--drafter", str(drafter)])


@pytest.mark.parametrize("kind", ["drafters", "verifiers"])
async def test_workers_killed_and_hung_under_load_cost_no_request_and_change_no_token(
    kind: str, pair: tuple[Path, Path]
) -> None:
    stretches = await failure.measure(kind, options(*pair))
    assert sum(stretch.num_whole for stretch in stretches) >= 6
    assert [(each.name, each.num_failed, each.num_different) for each in stretches if each.num_failed] == []
    assert [each.name for each in stretches if each.num_different] == []
    first, last = stretches[0].acceptance, stretches[-1].acceptance
    assert first, "drafts are judged before"
    assert last, "and after"
    assert last > first - 0.2, "and as good as they were"


@pytest.mark.parametrize("end", ["kill", "drain in no time"])
def test_what_a_lost_coordinator_had_at_its_workers_is_freed(end: str, pair: tuple[Path, Path]) -> None:
    """Its streams end with it, and with them all that came over them, down to the last block."""
    with Pools(Setup(str(pair[0]), str(pair[1]), coordinator=("--drain-s", "0"))) as pools:
        pools.start("verifier-1", "drafter-1")
        with Client(pools.address, max_retries=0) as client, ThreadPoolExecutor(4) as threads:
            given: Any = {"max_tokens": 460, "ignore_eos": True, "mode": "pearl", "temperature": 1.0}
            asked = [threads.submit(client.complete, list(range(20, 60)), seed=i, **given) for i in range(4)]
            while not all(child.holds()["kv_blocks"] for child in pools.workers.values()):
                assert not any(each.done() for each in asked), "too early for this test"
            if end == "kill":
                pools.coordinator.kill()
            else:
                assert pools.coordinator.stop() == 0
            for each in asked:
                assert isinstance(each.exception(60), Unavailable)
        deadline_s = time.monotonic() + LEASE_S
        while any(child.holds()[it] for child in pools.workers.values() for it in KEPT):
            assert time.monotonic() < deadline_s, f"still held: {[child.holds() for child in pools.workers.values()]}"
