"""A served target, and a drafter somewhere else: behind a proxy, started, stopped, killed and replaced as wanted.

Coordinator and verifier are next to each other. The drafter advertises the proxy's address, so whatever it and the
coordinator say to one another takes as long as `distance` was told.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

from bench import system
from bench.processes import Child, child, free_port
from paceline.client import Client
from paceline.errors import Unavailable
from paceline.types import Role

REGISTERED_WITHIN_S = 60.0
SETTLE_S = 0.3  # until what was sent at the old distance has arrived


class Distant:
    """See the top of the file. The drafter is a process of its own, ended by its pid."""

    def __init__(self, server: str, proxy: Child, port: int) -> None:
        self.server = server
        self._proxy, self._port = proxy, port
        self._drafter: Child | None = None
        self._is_well = False  # it runs, and was neither stopped nor killed

    def distance(self, rtt_ms: float, jitter_ms: float = 0.0) -> None:
        self._proxy.tell(f"rtt_ms={rtt_ms:g} jitter_ms={jitter_ms:g}")
        time.sleep(SETTLE_S)

    def start(self, *options: str) -> None:
        """A drafter, from when it is registered on. Raises Unavailable if it is not in time."""
        self.end()
        where = ("--coordinator", self.server, "--port", str(self._port), "--advertise", self._proxy.address)
        self._drafter, self._is_well = Child("deploy.cli", ("drafter", *options, *where)), True
        self._await(is_there=True)

    def ensure(self, *options: str) -> None:
        """That a drafter which is well is there: the one that is, or a new one."""
        if not self._is_well:
            self.start(*options)

    def suspend(self) -> None:
        """The drafter stands still: its connections stay open, and it answers nothing."""
        self._signal(signal.SIGSTOP)

    def kill(self) -> None:
        """The drafter is gone from one moment to the next."""
        self._signal(signal.SIGKILL)

    def end(self) -> None:
        """No drafter is left, and the coordinator knows. Raises Unavailable if it does not in time."""
        if self._drafter:
            if not self._is_well:
                self._drafter.signal(signal.SIGKILL)  # it need not drain: nobody waits for it any more
            self._is_well = False
            self._drafter.stop()
            self._drafter = None
            self._await(is_there=False)

    def _signal(self, number: signal.Signals) -> None:
        if self._drafter:
            self._is_well = False
            self._drafter.signal(number)

    def _await(self, *, is_there: bool) -> None:
        deadline_s = time.monotonic() + REGISTERED_WITHIN_S
        with Client(self.server) as client:
            while any(worker.role is Role.DRAFTER for worker in client.server_info().workers) != is_there:
                if time.monotonic() > deadline_s:
                    what = "taken in" if is_there else "given up"
                    raise Unavailable(f"the drafter was not {what} within {REGISTERED_WITHIN_S:g} s")
                time.sleep(0.05)


@contextlib.contextmanager
def distant(target: str, *options: str) -> Iterator[Distant]:
    """`target` served without a drafter, until one is started; `options` are those of `paceline serve`."""
    port = free_port()
    with (
        system.serve(target, target, "--num-drafters", "0", *options) as server,
        child("bench.proxy", "--to", f"127.0.0.1:{port}", "--control") as proxy,
    ):
        it = Distant(server, proxy, port)
        try:
            yield it
        finally:
            it.end()
