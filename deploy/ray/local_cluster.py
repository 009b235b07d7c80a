"""A Ray cluster of this machine alone, in a process of its own, for `paceline ray up` where there is no cluster yet.

`ray start` would leave processes that only `ray stop` ends, and that ends every Ray process of the host. This one is
known by its process id, and takes its cluster with it when it is told to end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline.errors import Unavailable

START_S = 90.0
STOP_S = 30.0
POLL_S = 0.1


def folder() -> Path:
    """Where this user's cluster is written down; nobody else can enter it."""
    path = Path(tempfile.gettempdir()) / f"paceline-ray-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise Unavailable(f"{path} belongs to somebody else; set TMPDIR to a folder of your own")
    return path


def known() -> Mapping[str, Any] | None:
    """The cluster that `start` has started and that still runs: its process id and its address."""
    try:
        told: Mapping[str, Any] = json.loads((folder() / "cluster.json").read_text())
        return told if "deploy.ray.local_cluster" in _command(told["pid"]) else None
    except (OSError, ValueError, KeyError):
        return None


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def start(num_cpus: int | None) -> str:
    """The address of a cluster of this machine, begun now unless it runs. `num_cpus`: as it is to count; None = all."""
    if found := known():
        return str(found["address"])
    file = folder() / "cluster.json"
    file.unlink(missing_ok=True)
    with (folder() / "cluster.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.ray.local_cluster", str(num_cpus or 0)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_paths())},
        )
    deadline_s = time.monotonic() + START_S
    while not (found := known()):
        if process.poll() is not None or time.monotonic() > deadline_s:
            process.kill()
            raise Unavailable(f"no Ray cluster came up on this machine; {folder() / 'cluster.log'} says why")
        time.sleep(POLL_S)
    return str(found["address"])


def _paths() -> list[str]:
    own = str(Path(__file__).resolve().parents[2])
    return list(dict.fromkeys([own, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))


def stop(address: str) -> bool:
    """End the cluster that `start` has started; False if there is none, or it is not the one at `address`."""
    found = known()
    if not found or found["address"] != address:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(found["pid"], signal.SIGTERM)
    deadline_s = time.monotonic() + STOP_S
    while known():
        if time.monotonic() > deadline_s:
            raise Unavailable(f"the Ray cluster of process {found['pid']} did not end within {STOP_S:g} s")
        time.sleep(POLL_S)
    (folder() / "cluster.json").unlink(missing_ok=True)
    return True


def main(num_cpus: int) -> None:
    """Be the cluster, until SIGTERM."""
    import ray

    stopped = []
    # `local` begins a new one, whatever else runs on this machine.
    # Its dashboard is on loopback, where Serve's own commands reach it; where none comes up, `None` goes on without.
    context: Any = ray.init(address="local", num_cpus=num_cpus or None, include_dashboard=None, log_to_driver=False)
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    file = folder() / "cluster.json"
    fresh = file.with_suffix(".new")
    dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else ""
    told = {"pid": os.getpid(), "address": context.address_info["gcs_address"], "dashboard": dashboard}
    fresh.write_text(json.dumps(told))
    os.replace(fresh, file)
    while not stopped:
        time.sleep(POLL_S)
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
