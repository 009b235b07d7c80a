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

from paceline.errors import Unavailable

STOP_WITHIN_S = 20.0


class Child:
    """`python -m MODULE …`, from the line that says it is ready on."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        """Waits for `… ready on HOST:PORT`. Raises Unavailable if the process ends before."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        while line := self.line():
            if found := re.search(r"ready.*?(127\.0\.0\.1:\d+)", line):
                self.address = found.group(1)
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

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGCONT)  # one that stands still could not end
        self._process.terminate()
        try:
            self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
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
