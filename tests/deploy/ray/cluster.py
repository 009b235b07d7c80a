"""A Ray cluster of several logical nodes on this machine, and load on what is deployed there."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from paceline.client import Client

ROOT = Path(__file__).parents[3]
NAME = "paceline"
WITHIN_S = 300.0  # a process takes a minute to come where many others want the same two cores, and they come in turn
PROMPTS = [f"Question: What is {i} + 3?" for i in range(4)]
NUM_TOKENS = 40
# A node that is gone without a word is noticed within three seconds rather than fifteen.
QUICK = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


@contextlib.contextmanager
def running() -> Iterator[Any]:
    """A head, and two nodes named by a resource: `edge` for drafters, `core` for verifiers.

    Without Ray's token, whose mode it reads when it is imported; `test_commands` has a cluster that asks for it.
    """
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    own |= {"RAY_AUTH_MODE": "disabled"}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "_system_config": QUICK})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.add_node(num_cpus=8, resources={"core": 8})
        cluster.edge = cluster.add_node(num_cpus=8, resources={"edge": 8})
        serve.start(proxy_location="Disabled")
        yield cluster
    finally:
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def until(what: str, condition: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """What `condition` says once it is true; raises after `within_s` with `what` did not happen."""
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"{what} did not happen within {within_s:g} s; {state()}"
        time.sleep(0.1)
    return found


def state() -> str:
    """What Serve and the coordinators say of everything, for whoever has waited in vain."""
    from ray import serve

    from deploy.ray import directory

    said = []
    for name, application in serve.status().applications.items():
        said.append(f"{name} {application.status.value} {application.message}")
        for pool, status in application.deployments.items():
            replicas = {state.value: num for state, num in status.replica_states.items() if num}
            said.append(f"  {pool} {status.status.value} {replicas} {status.message}")
        said += [f"  {entry}" for entry in directory.read(name)]
    return "\n".join(said)


def deploy(given: dict[str, Any], name: str = NAME) -> None:
    """As `paceline ray up` does; returns once it serves and its verifiers are known."""
    from ray import serve

    from deploy.ray.app import build
    from deploy.ray.arguments import Arguments

    serve.run(build(Arguments(name=name, **given)), name=name, route_prefix=None)
    until(f"a verifier of {name}", lambda: "verifier" in roles(name))


def entry(name: str = NAME) -> Any:
    """What the one coordinator has reported last; None while there is none."""
    from deploy.ray import directory

    entries = directory.read(name)
    return entries[0] if len(entries) == 1 else None


def address(name: str = NAME) -> str:
    told: str = until("a coordinator", lambda: entry(name))["grpc"]
    return told


def roles(name: str = NAME) -> list[str]:
    """Of the workers that a coordinator uses and that do not drain."""
    told = entry(name)
    return [worker["role"] for worker in told["workers"] if not worker["is_draining"]] if told else []


def num_replicas(pool: str, name: str = NAME) -> int:
    """All that Serve has of a pool, in whatever state."""
    from ray import serve

    states = serve.status().applications[name].deployments[pool].replica_states
    return sum(states.values())


def replicas(pool: str, name: str = NAME) -> dict[str, Any]:
    """The actors of a pool's replicas, by name."""
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    prefix = f"SERVE_REPLICA::{name}#{pool}#"
    found = {}
    for actor in named:
        if actor["name"].startswith(prefix):
            with contextlib.suppress(ValueError):
                found[actor["name"]] = ray.get_actor(actor["name"], namespace=actor["namespace"])
    return found


class Load:
    """Clients in threads, each with one request after another until it is left; every answer is compared."""

    def __init__(self, where: str, num_clients: int, expected: Sequence[str], **settings: Any) -> None:
        self.num_done = 0
        self.wrong: list[str] = []
        self._where, self._expected, self._settings = where, expected, settings
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(num_clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, first: int) -> None:
        with Client(self._where) as client:
            for i in range(first, 1_000_000):
                if self._stopped.is_set():
                    return
                at = i % len(PROMPTS)
                try:
                    text = complete(client, PROMPTS[at], **self._settings)
                except Exception as error:
                    self._note(f"{type(error).__name__}: {error}")
                    return
                self._note("" if text == self._expected[at] else f"{text!r} instead of {self._expected[at]!r}")

    def _note(self, wrong: str) -> None:
        with self._lock:
            self.num_done += 1
            self.wrong += [wrong] if wrong else []

    def wait_for(self, num_more: int) -> None:
        """Until so many more requests are done."""
        goal = self.num_done + num_more
        until(f"{num_more} more requests", lambda: self.num_done >= goal or self.wrong)
        assert not self.wrong

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        """Nothing was lost, and nothing was wrong. After a failure it only ends, so that the next test meets none."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(WITHIN_S)
        if failure is None:
            assert not any(thread.is_alive() for thread in self._threads), "a request hangs"
            assert not self.wrong
            assert self.num_done


def complete(client: Client, prompt: str, **settings: Any) -> str:
    answer = client.complete(
        prompt, max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True, timeout_s=WITHIN_S, **settings
    )
    return answer.text
