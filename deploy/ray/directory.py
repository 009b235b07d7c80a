"""Who is where: a named actor to which coordinators report, and which everybody else asks.

It holds nothing that is not said again within half a second, so it may die and come back anywhere: whoever finds none
makes one. It carries the coordinators' addresses to the workers, and what they see of the load to the policies that
scale the pools. So a pool without any replica is not without a voice.
"""

from __future__ import annotations

import time
from typing import Any, TypedDict, cast

import ray
from ray.exceptions import RayError

from paceline.client import ServerInfo

NAMESPACE = "paceline"
REPORT_S = 0.5
EXPIRY_S = 5.0  # ten reports: a coordinator that is silent for so long is gone
CALL_TIMEOUT_S = 5.0


class WorkerEntry(TypedDict):
    role: str
    address: str
    model: str
    num_requests: int
    max_num_seqs: int
    kv_used: float
    is_draining: bool


class Entry(TypedDict):
    """What one coordinator reports."""

    grpc: str
    http: str
    num_running: int
    num_waiting: int
    num_undrafted: int
    num_resting: int
    num_speculative: int
    stall_share: float
    verify_ms: float
    workers: list[WorkerEntry]


def entry_of(info: ServerInfo, grpc: str, http: str) -> Entry:
    return Entry(
        grpc=grpc,
        http=http,
        num_running=info.num_requests_running,
        num_waiting=info.num_requests_waiting,
        num_undrafted=info.num_requests_undrafted,
        num_resting=info.num_requests_resting,
        num_speculative=info.num_requests_speculative,
        stall_share=info.stall_share,
        verify_ms=info.verify_ms,
        workers=[
            WorkerEntry(
                role=str(worker.role),
                address=worker.address,
                model=worker.model,
                num_requests=worker.num_requests,
                max_num_seqs=worker.max_num_seqs,
                kv_used=worker.cache.share if worker.cache else 0.0,
                is_draining=worker.is_draining,
            )
            for worker in info.workers
        ],
    )


class Directory:
    """See the top of the file. An actor."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[float, Entry]] = {}  # by replica: when it was said, and what

    def report(self, replica: str, entry: Entry) -> None:
        self._entries[replica] = (time.monotonic(), entry)

    def retire(self, replica: str) -> int:
        """This coordinator is going away; how many are left."""
        self._entries.pop(replica, None)
        return len(self.coordinators())

    def coordinators(self) -> list[Entry]:
        """What those that are there have said last."""
        oldest_s = time.monotonic() - EXPIRY_S
        self._entries = {name: held for name, held in self._entries.items() if held[0] >= oldest_s}
        return [entry for _, entry in self._entries.values()]


def name_of(application: str) -> str:
    return f"{application}-directory"


def make(application: str) -> Any:
    """The directory's handle; it is made if there is none."""
    return (
        ray.remote(Directory)
        .options(
            name=name_of(application),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote()
    )


def find(application: str) -> Any | None:
    """The directory's handle, or None while there is none."""
    try:
        return ray.get_actor(name_of(application), namespace=NAMESPACE)
    except (ValueError, RayError):
        return None


def read(application: str) -> list[Entry]:
    """The coordinators that are there; blocks for `CALL_TIMEOUT_S` at most."""
    directory = find(application)
    if directory is None:
        return []
    try:
        return cast(list[Entry], ray.get(directory.coordinators.remote(), timeout=CALL_TIMEOUT_S))
    except RayError:
        return []


def remove(application: str) -> None:
    directory = find(application)
    if directory is not None:
        ray.kill(directory)
