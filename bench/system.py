"""The system under test: `paceline serve` as its own processes, started and ended by the benchmark."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

from paceline.errors import Unavailable

READY_WITHIN_S = 120.0
STOP_WITHIN_S = 20.0


@contextlib.contextmanager
def serve(target: str, drafter: str, *options: str) -> Iterator[str]:
    """The coordinator's HOST:PORT of a served pair; every process has ended when the context does."""
    command = [sys.executable, "-m", "deploy.cli", "serve", "--target", target, "--drafter", drafter]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--grpc-port", "0", "--port", "off", *options], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield _address(process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _address(process: subprocess.Popen[str]) -> str:
    """Read until the ready line, which names the gRPC address."""
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"ready.*?(127\.0\.0\.1:\d+)", line)
        if found:
            return found.group(1)
    raise Unavailable(f"paceline serve ended with code {process.wait()} before it was ready; its message says why")


def machine() -> str:
    """One line on where this ran, for the record."""
    model = "unknown processor"
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    return f"{os.cpu_count()} cores, {model}, Python {sys.version.split()[0]}"


def commit() -> str:
    """The short commit of this checkout, with a mark if something is uncommitted."""
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def command(arguments: Sequence[str]) -> str:
    return " ".join(["python", "-m", *arguments])
