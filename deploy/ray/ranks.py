"""The other ranks of a verifier's group: an actor each, in a bundle of the replica's placement group.

Rank 0 is the replica itself, whose process leads the group. Each of the others is a process of
`paceline.engine.parallel` that comes to the leader's socket, so a group is put together anew by nobody in particular:
a rank that dies ends the group, the leader's process becomes a fresh one (`deploy.restart`) and waits at its socket,
and `keep`, asked every second, sees to it that a process of every rank is there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from deploy.ray.arguments import VerifierPool

log = logging.getLogger(__name__)

LOOK_S = 1.0
STOP_S = 2.0
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Rank:
    """One rank. An actor that owns a GPU, and the process that uses it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def gpus(self) -> list[str]:
        return [str(number) for number in ray.get_gpu_ids()]

    def pid(self) -> int:
        """Of this actor; its end is the end of the process that it keeps."""
        return os.getpid()

    def keep(self, socket: str, environment: Mapping[str, str]) -> int:
        """See that the process runs; its id."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "paceline.engine.parallel", socket],
                stdin=subprocess.PIPE,  # it ends with this actor
                env={**os.environ, **environment},
                start_new_session=True,
            )
        return self._process.pid


class Ranks:
    """All but the first. Belongs to the replica's event loop."""

    def __init__(self, socket: str, environment: Mapping[str, str]) -> None:
        self._socket, self._environment = socket, dict(environment)
        self.actors: list[Any] = []  # of ranks 1 and up
        self._watch: asyncio.Task[None] | None = None

    async def start(self, pool: VerifierPool) -> dict[str, str]:
        """Make the actors and keep their processes; what the leader's environment is to hold."""
        group = get_current_placement_group()
        assert group is not None, "Serve makes one for each replica"
        for index in range(1, pool.tensor_parallel_size):
            strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            options = {**pool.actor_options, "scheduling_strategy": strategy, "max_restarts": -1}
            self.actors.append(ray.remote(Rank).options(**options).remote())
        visible: dict[str, str] = {}
        if pool.num_gpus:
            # Every rank must see all GPUs of its group, in the same order: ranks name them by number.
            theirs = await asyncio.gather(*(actor.gpus.remote() for actor in self.actors))
            own = [str(number) for number in ray.get_gpu_ids()]
            visible[VISIBLE] = ",".join(number for numbers in (own, *theirs) for number in numbers)
        self._environment |= visible
        self._watch = asyncio.create_task(self._keep(), name="ranks")
        return visible

    async def _keep(self) -> None:
        while True:
            calls = (self._keep_one(rank, actor) for rank, actor in enumerate(self.actors, 1))
            await asyncio.gather(*calls)
            await asyncio.sleep(LOOK_S)

    async def _keep_one(self, rank: int, actor: Any) -> None:
        try:
            await actor.keep.remote(self._socket, self._environment)
        except RayError as error:  # it is being restarted
            log.warning("rank %d: %s", rank, str(error).partition("\n")[0])

    async def stop(self) -> None:
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        for actor in self.actors:
            ray.kill(actor)
