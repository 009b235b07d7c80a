"""A child process of a benchmark: started, waited for, ended by its pid."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import IO

from paceline.errors import Unavailable
from paceline.holdings import Figures, read

STOP_WITHIN_S = 20.0


class Child:
    """`python -m MODULE …`, from the line that says it is ready on."""

    def __init__(self, module: str, arguments: Sequence[str], *, log: int | IO[str] | None = None) -> None:
        """Waits for `… ready on HOST:PORT`. Raises Unavailable if the process ends before.

        `log` takes its standard error; None is our own.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        while line := self.line():
            if found := re.search(r"ready.*?(127\.0\.0\.1:\d+)", line):
                self.address = found.group(1)
                http = re.search(r"HTTP on (\S+)", line)
                self.url = http.group(1) if http else ""
                return
        raise Unavailable(f"{module} ended with code {self._process.wait()} before it was ready; its message says why")

    def line(self) -> str:
        """The next line that it prints; empty at the end."""
        assert self._process.stdout
        return self._process.stdout.readline()

    def tell(self, line: str) -> str:
        """Write a line to its standard input; the line it answers with."""
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.line()

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """As `kill -9` does."""
        self._process.kill()
        self._process.wait()
        self._close()

    def holds(self) -> Figures:
        """What the process says it holds. Raises Unavailable if it has ended."""
        self.signal(signal.SIGUSR1)
        while line := self.line():
            if figures := read(line):
                return figures
        raise Unavailable("the process ended before it had said what it holds")

    def stop(self) -> int:
        """SIGTERM, and the exit code; SIGKILL if it is still there after a while."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        try:
            self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._close()
        return self._process.wait()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


@contextlib.contextmanager
def child(module: str, *arguments: str) -> Iterator[Child]:
    it = Child(module, arguments)
    try:
        yield it
    finally:
        it.stop()


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
