"""A verifier of two ranks as a real process, which loses one of them in the middle of a request."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from paceline.client import Client
from paceline.types import Role, WorkerInfo
from tests.engine.test_parallel import needs_accelerate
from tests.system import processes
from tests.tiny import write_model

NUM_TOKENS = 300
RESTART_WITHIN_S = 90.0


def follower_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (found,) = [
        child for child in children if b"paceline.engine.parallel" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return int(found)


def verifier_info(client: Client, *, unlike: int = 0) -> WorkerInfo:
    """The verifier, once it is registered as another incarnation than `unlike`."""
    deadline_s = time.monotonic() + RESTART_WITHIN_S
    while time.monotonic() < deadline_s:
        for worker in client.server_info().workers:
            if worker.role is Role.VERIFIER and worker.incarnation != unlike:
                return worker
        time.sleep(0.05)
    raise AssertionError("no other incarnation of the verifier has come")


@needs_accelerate
@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_lost_rank_costs_a_restart_of_the_group_and_no_request(sent: signal.Signals, tmp_path: Path) -> None:
    """The same process becomes a new incarnation, and the request goes on there with the same tokens."""
    target = write_model(tmp_path / "target", seed=1)
    it = processes.coordinator(target)
    verifier = processes.worker(Role.VERIFIER, target, it.address, "--tensor-parallel-size", "2")
    with processes.running(it, verifier), Client(it.address) as client:
        expected = client.complete("hello", max_tokens=NUM_TOKENS, mode="off", ignore_eos=True)
        before = verifier_info(client)
        rank = follower_of(verifier.pid)
        tokens: list[int] = []
        for chunk in client.generate("hello", max_tokens=NUM_TOKENS, mode="off", ignore_eos=True, timeout_s=150):
            if not tokens and chunk.token_ids:
                os.kill(rank, sent)
            tokens += chunk.token_ids
        assert tuple(tokens) == expected.token_ids
        assert verifier_info(client, unlike=before.incarnation).model_hash == before.model_hash
        assert follower_of(verifier.pid) != rank, "the same process leads another group"
        assert not Path(f"/proc/{rank}").exists()
