"""A coordinator and its workers, each a process of its own that can be killed, hung and started again.

    with Pools(setup) as pools:
        pools.start("drafter-1")
        pools.kill("drafter-1")

Workers go by names of ours, `ROLE-NUMBER`. Methods block; a program with an event loop calls them in a thread.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

from bench.processes import Child, free_port
from paceline.client import Client
from paceline.errors import Unavailable
from paceline.holdings import Figures
from paceline.types import Role

TAKEN_IN_WITHIN_S = 120.0
POLL_S = 0.05
LINKS = {"bytes": "bench.proxy", "messages": "bench.relay"}  # what may stand between a coordinator and a worker


@dataclass(frozen=True, slots=True)
class Setup:
    """What is started. Options are those of the command line."""

    target: str
    drafter: str
    coordinator: Sequence[str] = ()
    verifier: Sequence[str] = ("--dtype", "float32")
    drafting: Sequence[str] = ("--dtype", "float32")
    behind: Mapping[str, str] = field(default_factory=dict)  # by role, the kind of link; none = a direct one
    logs: bool = False  # of the processes, on our standard error


class Pools:
    """See the top of the file."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._log = None if setup.logs else subprocess.DEVNULL
        options = ("--tokenizer", setup.target, "--grpc-port", "0", *setup.coordinator)
        http = () if "--port" in setup.coordinator else ("--port", "off")
        self.coordinator = Child("deploy.cli", ("coordinator", *options, *http), log=self._log)
        self.workers: dict[str, Child] = {}
        self.links: dict[str, Child] = {}  # by the worker's name

    @property
    def address(self) -> str:
        return self.coordinator.address

    def start(self, *names: str) -> None:
        """Start workers, and wait until the coordinator uses them."""
        with ThreadPoolExecutor() as threads:
            list(threads.map(self.launch, names))
        for name in names:
            self.wait_for(name)

    def launch(self, name: str) -> None:
        """Start a worker; it need not be taken in when this returns."""
        role, setup = name.partition("-")[0], self._setup
        model, options = (setup.target, setup.verifier) if role == Role.VERIFIER else (setup.drafter, setup.drafting)
        where: tuple[str, ...] = ("--coordinator", self.address)
        if kind := setup.behind.get(role):
            port = free_port()
            link = Child(LINKS[kind], ("--to", f"127.0.0.1:{port}", "--control"), log=self._log)
            self.links[name] = link
            where += ("--port", str(port), "--advertise", link.address)
        self.workers[name] = Child("deploy.cli", (role, "--model", model, *where, *options), log=self._log)

    def wait_for(self, name: str) -> None:
        address = (self.links.get(name) or self.workers[name]).address
        deadline_s = time.monotonic() + TAKEN_IN_WITHIN_S
        with Client(self.address) as client:
            while all(worker.address != address for worker in client.server_info().workers):
                if time.monotonic() > deadline_s:
                    raise Unavailable(f"{name} was not taken in within {TAKEN_IN_WITHIN_S:g} s")
                time.sleep(POLL_S)

    def named(self, role: Role) -> list[str]:
        """The workers of a role that are there."""
        return [name for name in self.workers if name.startswith(role)]

    def kill(self, *names: str) -> None:
        """As `kill -9` does."""
        for name in names:
            self.workers.pop(name).kill()
            self._unlink(name)

    def hang(self, name: str) -> None:
        """Stopped, not dead: its connections stay open and nothing answers."""
        self.workers[name].signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        self.workers[name].signal(signal.SIGCONT)

    def stop(self, name: str) -> int:
        """SIGTERM; the exit code."""
        code = self.workers.pop(name).stop()
        self._unlink(name)
        return code

    def _unlink(self, name: str) -> None:
        if link := self.links.pop(name, None):
            link.stop()

    def holds(self) -> dict[str, Figures]:
        """What each process says it holds."""
        return {name: child.holds() for name, child in (("coordinator", self.coordinator), *self.workers.items())}

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # all of them, even if one does not end as it should
            for child in (self.coordinator, *self.links.values(), *self.workers.values()):
                stack.callback(child.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
