"""What a process holds at this moment, said when it is asked: `kill -USR1 PID` prints one line of figures.

    paceline verifier holds: requests=3 kv_blocks=41 streams=1 tasks=9 threads=4 files=23 memory_bytes=311427072

For whoever suspects that something is kept for ever. A signal reaches nobody but the owner of the process, so this
opens no door, and the line has counts only: no id, no token.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping

Figures = Mapping[str, int]


def of_process() -> Figures:
    """What every process of asyncio has. Files and memory are those that Linux tells of, else 0."""
    figures = {"tasks": len(asyncio.all_tasks()), "threads": threading.active_count(), "files": 0, "memory_bytes": 0}
    with contextlib.suppress(OSError):
        figures["files"] = len(os.listdir("/proc/self/fd"))
        with open("/proc/self/statm", encoding="ascii") as file:
            figures["memory_bytes"] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return figures


def line(role: str, figures: Figures) -> str:
    """What `read` reads."""
    return f"paceline {role} holds: " + " ".join(f"{name}={count}" for name, count in figures.items())


def read(text: str) -> Figures | None:
    """The figures of such a line; None if it is another one."""
    _, found, figures = text.partition(" holds: ")
    if not found:
        return None
    return {name: int(count) for name, _, count in (item.partition("=") for item in figures.split())}


@contextlib.contextmanager
def told_on_signal(role: str, figures: Callable[[], Figures]) -> Iterator[None]:
    """Within it, SIGUSR1 prints what `figures()` and the process itself hold."""
    loop = asyncio.get_running_loop()

    def tell() -> None:
        print(line(role, {**figures(), **of_process()}), flush=True)

    loop.add_signal_handler(signal.SIGUSR1, tell)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
