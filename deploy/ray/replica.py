"""What every replica does: it keeps one role's process, the same that the role's own command is.

A child process, not a thread of the actor. A forward pass in the actor's process would take turns with the actor's
event loop for the interpreter, OpenMP must be told of its threads before torch is loaded, a lost tensor parallel group
ends with the process becoming a fresh one, and what is measured through Ray is then what is measured without. The
child ends when the actor does, however that ends, since it holds the other end of a pipe; it drains when the replica
is told to go. Serve replaces the replica if the child cannot be kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from deploy.local import STOP_S, Child, Supervisor
from deploy.ray import directory
from deploy.ray.arguments import THIS_NODE, Arguments
from deploy.ray.directory import Entry
from paceline.errors import Unavailable

log = logging.getLogger("ray.serve")

ROOT = Path(__file__).parents[2]  # where the packages are, if they are not installed


class Replica:
    """A role's process: `become`, again to start anew with other arguments, then `end`."""

    def __init__(self) -> None:
        self._supervisor: Supervisor | None = None
        self.child: Child | None = None
        self.drain_s = 0.0

    async def become(
        self, arguments: Arguments, words: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Child:
        """Run `paceline WORDS` from now on, in place of what ran before; returns when it serves."""
        await self.end()
        self.drain_s = arguments.drain_s
        supervisor = self._supervisor = Supervisor(log=log.warning)
        child = self.child = supervisor.start(
            words[0], (*words, *common(arguments)), {**own_path(), **(environment or {})}
        )
        try:
            await supervisor.wait_for(child, within_s=arguments.start_timeout_s)
        except BaseException:
            await self.end()
            raise
        supervisor.settle()
        return child

    def check(self) -> None:
        """Raises Unavailable once the process cannot be kept any more."""
        if self._supervisor is None:
            raise Unavailable("this replica has no process")
        if self._supervisor.failed.done():
            self._supervisor.failed.result()

    async def end(self) -> None:
        """Let the process drain, and end it."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            await supervisor.stop(self.drain_s + STOP_S)


def own_path() -> dict[str, str]:
    """So that children find this code wherever the actor found it, as in a runtime environment's working directory."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def own_host(arguments: Arguments) -> str:
    if arguments.host != THIS_NODE:
        return arguments.host
    return str(ray.util.get_node_ip_address())


def common(arguments: Arguments) -> tuple[str, ...]:
    """What every role is told."""
    tls = {"--tls-cert": arguments.tls_cert, "--tls-key": arguments.tls_key, "--tls-ca": arguments.tls_ca}
    return (
        *("--host", own_host(arguments), "--drain-s", str(arguments.drain_s), "--log-level", arguments.log_level),
        *(("--insecure",) if arguments.insecure else ()),
        *(word for flag, path in tls.items() if path is not None for word in (flag, path)),
    )


async def coordinators(application: str) -> list[Entry]:
    """Those that are there; none while the directory is away."""
    found = directory.find(application)
    if found is None:
        return []
    try:
        async with asyncio.timeout(directory.CALL_TIMEOUT_S):
            entries: list[Entry] = await found.coordinators.remote()
            return entries
    except (RayError, TimeoutError):
        return []


async def cancelled(*tasks: asyncio.Task[Any] | None) -> None:
    """End the tasks that there are."""
    there = [task for task in tasks if task is not None]
    for task in there:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*there, return_exceptions=True)
