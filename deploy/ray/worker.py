"""A drafter's or a verifier's replica: the role's process, told of the coordinators through a file.

The file lists those that are there now. A coordinator that comes back elsewhere is in it within a second, and the
worker registers with it without loading its model again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ray import serve

from deploy.ray.arguments import VERIFIERS, Arguments, DrafterPool, VerifierPool, flags, needs_device
from deploy.ray.directory import REPORT_S, Entry
from deploy.ray.ranks import Ranks
from deploy.ray.replica import Replica, cancelled, coordinators, own_path
from paceline.types import Role

log = logging.getLogger("ray.serve")


class WorkerReplica:
    """See the top of the file."""

    def __init__(self, pool: str) -> None:
        self._application, self._pool = serve.get_replica_context().app_name, pool
        self._role = Role.VERIFIER if pool == VERIFIERS else Role.DRAFTER
        self._folder = Path(tempfile.mkdtemp(prefix="paceline-"))  # nobody else can enter it
        self._replica = Replica()
        self._ranks: Ranks | None = None
        self._entries: list[Entry] = []
        self._looking: asyncio.Task[None] | None = None

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Begin, or begin anew as `config` says; what runs here drains first."""
        if self._looking is None:
            await self._look()
            self._looking = asyncio.create_task(self._keep_looking(), name="coordinators")
        arguments = Arguments(**config)
        if self._role is Role.DRAFTER:
            await self._replica.become(arguments, self._words(arguments.drafters[self._pool]))
            return
        await self._end()
        await self._replica.become(arguments, *await self._group(arguments))

    async def _group(self, arguments: Arguments) -> tuple[tuple[str, ...], dict[str, str]]:
        """The leader's command and environment; the other ranks are on their way when this returns."""
        pool = arguments.verifiers
        words = ("verifier", "--model", arguments.target, *self._options(pool))
        if pool.tensor_parallel_size == 1:
            return words, {}
        socket = str(self._folder / "ranks")
        self._ranks = Ranks(socket, own_path())
        visible = await self._ranks.start(pool)
        size = str(pool.tensor_parallel_size)
        return (*words, "--tensor-parallel-size", size, "--ranks-socket", socket), visible

    def _words(self, pool: DrafterPool) -> tuple[str, ...]:
        return ("drafter", "--model", pool.model, *self._options(pool))

    def _options(self, pool: DrafterPool | VerifierPool) -> tuple[str, ...]:
        model = pool.model if isinstance(pool, DrafterPool) else ""
        device = ("--device", "cuda") if needs_device(model, pool) else ()
        return (*device, *flags(pool.options), "--coordinators-file", str(self._file))

    @property
    def _file(self) -> Path:
        return self._folder / "coordinators"

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            await self._look()

    async def _look(self) -> None:
        """Pass on where the coordinators are. While nobody knows of any, the last ones stand."""
        entries = await coordinators(self._application)
        lines = "".join(f"{entry['grpc']}\n" for entry in sorted(entries, key=lambda entry: entry["grpc"]))
        if entries or not self._file.exists():
            self._entries = entries
        if not self._file.exists() or (entries and self._file.read_text() != lines):
            fresh = self._file.with_suffix(".new")
            fresh.write_text(lines)
            os.replace(fresh, self._file)  # a reader sees the old list or the new one

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """This replica's own figures, as its worker has told the coordinators."""
        address = self._replica.child.address if self._replica.child else ""
        known = [worker for entry in self._entries for worker in entry["workers"] if worker["address"] == address]
        if not known:
            return {}
        worker = known[0]
        return {"kv_used": worker["kv_used"], "num_requests": float(worker["num_requests"])}

    async def whereabouts(self) -> dict[str, Any]:
        """For those who watch: where the process serves, its id, and the actors of its other ranks."""
        child = self._replica.child
        return {
            "address": child.address if child else "",
            "pid": child.pid if child else 0,
            "ranks": self._ranks.actors if self._ranks else [],
        }

    async def check_health(self) -> None:
        self._replica.check()

    async def _end(self) -> None:
        await self._replica.end()
        if self._ranks:
            await self._ranks.stop()
            self._ranks = None

    async def __del__(self) -> None:
        await self._end()
        await cancelled(self._looking)
        shutil.rmtree(self._folder, ignore_errors=True)
