"""Real processes that are asked to go, and one that is killed: nobody's tokens are lost."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from paceline.client import Client, Completion
from paceline.errors import TimedOut, Unavailable
from paceline.types import Role
from tests.system import processes
from tests.tiny import write_pair

NUM_TOKENS = 300
PROMPTS = [tuple(range(start, start + 8)) for start in range(20, 28)]
GREEDY: dict[str, Any] = {"temperature": 0.0}
SEEDED: dict[str, Any] = {"temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


class Load:
    """Requests under way, each in a thread of its own; `wait_for` returns when that many tokens have come for each."""

    def __init__(self, threads: ThreadPoolExecutor, address: str | Sequence[str], settings: Sequence[Any]) -> None:
        self._counts = [0] * len(settings)
        self._changed = threading.Condition()
        self.results: list[Future[tuple[int, ...]]] = [
            threads.submit(self._run, i, address, prompt, given) for i, (prompt, given) in enumerate(settings)
        ]

    def _run(self, i: int, address: str | Sequence[str], prompt: Sequence[int], given: Any) -> tuple[int, ...]:
        tokens: list[int] = []
        with Client(address) as client:
            for chunk in client.generate(prompt, max_tokens=NUM_TOKENS, ignore_eos=True, timeout_s=120, **given):
                tokens += chunk.token_ids
                with self._changed:
                    self._counts[i] = len(tokens)
                    self._changed.notify_all()
        return tuple(tokens)

    def wait_for(self, num_tokens: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: min(self._counts) >= num_tokens, 60)
        assert not any(result.done() for result in self.results), "too early for this test: nothing runs any more"

    def tokens(self) -> list[tuple[int, ...]]:
        return [result.result(120) for result in self.results]


def expected(address: str, settings: Sequence[Any]) -> list[tuple[int, ...]]:
    """What plain decoding writes."""
    with Client(address) as client:
        answers: list[Completion] = [
            client.complete(prompt, max_tokens=NUM_TOKENS, ignore_eos=True, mode="off", **given)
            for prompt, given in settings
        ]
    return [answer.token_ids for answer in answers]


def refusal(client: Client) -> str:
    """Why a new request is refused: a server hears a signal only after a moment, and takes requests till then."""
    while True:
        try:
            client.complete(PROMPTS[0], max_tokens=1, timeout_s=1)
        except TimedOut:
            continue
        except Unavailable as error:
            return str(error)


def test_a_rolling_restart_of_the_workers_loses_no_token(pair: tuple[Path, Path]) -> None:
    """The drafter's requests detach, the verifier's move to another one; both end with 0; so does the last verifier,
    which lets what it holds end first."""
    target, drafter = pair
    settings = [(prompt, GREEDY if i % 2 else SEEDED) for i, prompt in enumerate(PROMPTS)]
    it = processes.coordinator(target)
    first, second = (processes.worker(Role.VERIFIER, target, it.address) for _ in range(2))
    draft = processes.worker(Role.DRAFTER, drafter, it.address)
    with processes.running(it, first, second, draft), ThreadPoolExecutor(len(settings)) as threads:
        want = expected(it.address, settings)
        load = Load(threads, it.address, settings)
        load.wait_for(5)
        draft.terminate()
        load.wait_for(20)
        first.terminate()
        load.wait_for(40)
        assert load.tokens() == want
        assert (draft.code(), first.code()) == (0, 0)
        load = Load(threads, it.address, settings)
        load.wait_for(5)
        second.terminate()
        with Client(it.address) as client:
            while not all(worker.is_draining for worker in client.server_info().workers):
                time.sleep(0.01)
            with pytest.raises(Unavailable):
                client.complete(PROMPTS[0], max_tokens=4, timeout_s=0.5)
        assert load.tokens() == want
        assert second.code() == 0


def test_clients_go_on_at_another_coordinator_when_theirs_is_killed_or_has_no_time(pair: tuple[Path, Path]) -> None:
    """Killed, or drained within no time at all: the next one goes on; drained with time, it lets them end."""
    target, _ = pair
    settings = [(prompt, GREEDY if i % 2 else SEEDED) for i, prompt in enumerate(PROMPTS[:4])]
    killed, hasty, last = (processes.coordinator(target, "--drain-s", bound) for bound in ("0", "0", "20"))
    everywhere = [killed.address, hasty.address, last.address]
    verifier = processes.worker(Role.VERIFIER, target, ",".join(everywhere))
    with processes.running(killed, hasty, last, verifier), ThreadPoolExecutor(len(settings)) as threads:
        want = expected(last.address, settings)
        load = Load(threads, everywhere, settings)
        load.wait_for(10)
        killed.kill()
        load.wait_for(50)
        assert hasty.stop() == 0
        assert load.tokens() == want
        load = Load(threads, last.address, settings)
        load.wait_for(10)
        last.terminate()
        with Client(last.address) as client:
            assert "shutting down" in refusal(client)
        assert load.tokens() == want
        assert last.code() == 0


def test_a_second_signal_ends_a_drain_at_once(pair: tuple[Path, Path]) -> None:
    """Nobody serves the request, so that the first signal would wait for a minute."""
    it = processes.coordinator(pair[0], "--drain-s", "60")
    with processes.running(it), ThreadPoolExecutor(1) as threads, Client(it.address) as client:
        waiting = threads.submit(client.complete, PROMPTS[0], max_tokens=1)
        while not client.server_info().num_requests_waiting:
            time.sleep(0.01)
        it.terminate()
        assert "shutting down" in refusal(client)
        assert not waiting.done()
        it.terminate()
        assert it.code() == 128 + signal.SIGTERM
        with pytest.raises(Unavailable):
            waiting.result(60)
