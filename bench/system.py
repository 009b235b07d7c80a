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


_INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bfloat16", "amx_bf16": "AMX"}  # the best last


def machine() -> str:
    """One line on where this ran, for the record. Processors of one name may differ in what decides: instructions."""
    model, flags = "unknown processor", set[str]()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        known = dict(line.split(":", 1) for line in map(str.rstrip, file) if ":" in line)
        told = {name.strip(): value.strip() for name, value in known.items()}
        model, flags = told.get("model name", model), set(told.get("flags", "").split())
    best = [name for flag, name in _INSTRUCTIONS.items() if flag in flags][-2:]
    fast = f" ({', '.join(best)})" if best else ""
    return f"{os.cpu_count()} cores, {model}{fast}, Python {sys.version.split()[0]}"


def commit() -> str:
    """The short commit of this checkout, with a mark if something is uncommitted."""
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def command(arguments: Sequence[str]) -> str:
    return " ".join(["python", "-m", *arguments])
