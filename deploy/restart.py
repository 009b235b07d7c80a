"""A worker that has lost its tensor parallel group starts anew: its process becomes a fresh one of the same command.

In its own place, so that whoever watches it (`paceline serve`, systemd, Kubernetes) sees a process that goes on, and
nothing of the broken group is left in its memory. It registers again as a new incarnation; the requests that ran on
it have been told, and go on elsewhere, or there once it is back.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping

COUNT = "PACELINE_GROUP_RESTARTS"  # of this command so far, handed on from process to process
MAX_RESTARTS = 5  # by then it is no accident, and whoever started the process should see it end
HEALTHY_S = 600.0  # a group that lived for so long was well: its loss is the first one again
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 10.0

Execute = Callable[[str, list[str], Mapping[str, str]], object]


def restart(
    reason: str,
    lived_s: float,
    *,
    environ: Mapping[str, str] = os.environ,
    execute: Execute = os.execve,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Does not return, unless there were `MAX_RESTARTS` in a row: then the process's exit code, 1."""
    count = 0 if lived_s >= HEALTHY_S else int(environ.get(COUNT) or 0)
    if count >= MAX_RESTARTS:
        print(f"paceline: {reason}; it was started anew {count} times in vain", file=sys.stderr, flush=True)
        return 1
    backoff_s = min(FIRST_BACKOFF_S * 2**count, MAX_BACKOFF_S)
    print(f"paceline: {reason}; the group is started anew in {backoff_s:g} s", file=sys.stderr, flush=True)
    sleep(backoff_s)
    sys.stdout.flush()
    execute(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**environ, COUNT: str(count + 1)})
    return 1
