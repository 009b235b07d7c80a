"""The roles as the real processes that a user starts, on loopback, each ended by its own pid."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from paceline.client import Client
from paceline.types import Role

START_WITHIN_S = 120.0
STOP_WITHIN_S = 20.0


class Process:
    """One role; `address` is where it serves gRPC, `url` where HTTP, if it does."""

    def __init__(self, role: str, *options: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", role, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r"ready.*?(127\.0\.0\.1:\d+)", line):
                self.address = found.group(1)
                http = re.search(r"HTTP on (\S+)", line)
                self.url = http.group(1) if http else ""
                return
        raise RuntimeError(f"paceline {role} ended with code {self._process.wait()} before it was ready")

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """As `kill -9` does."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def hang(self) -> None:
        """Stopped, not dead: its connections stay open and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def terminate(self) -> None:
        """SIGTERM, without waiting for the end."""
        self._process.terminate()

    def code(self) -> int:
        """The exit code of a process that is ending by itself: a second signal would cut that short."""
        return self._process.wait(2 * STOP_WITHIN_S)

    def stop(self) -> int:
        """The exit code after SIGTERM."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        if self._process.stdout:
            self._process.stdout.close()
        return self._process.wait()


@contextlib.contextmanager
def running(*processes: Process) -> Iterator[None]:
    try:
        yield
    finally:
        for process in reversed(processes):
            process.stop()


def coordinator(target: Path, *options: str) -> Process:
    # Tiny drafters are as slow as tiny targets: none of them would be taken in.
    shared = ("--grpc-port", "0", "--port", "off", "--admit-any")
    return Process("coordinator", "--tokenizer", str(target), *shared, *options)


def worker(role: Role, model: Path, coordinator_address: str, *options: str) -> Process:
    """A worker that the coordinator (or each of several, with commas between) uses already when this returns."""
    process = Process(role, "--model", str(model), "--coordinator", coordinator_address, "--dtype", "float32", *options)
    deadline_s = time.monotonic() + START_WITHIN_S
    for address in coordinator_address.split(","):
        with Client(address) as client:
            while all(member.address != process.address for member in client.server_info().workers):
                assert time.monotonic() < deadline_s, f"{role} was not taken in"
                time.sleep(0.02)
    return process
