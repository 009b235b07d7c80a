"""With which coordinators a worker keeps itself registered: one task for each, of a list that may change.

The list is fixed, or read from a file that somebody keeps up to date: where coordinators come and go, as on a cluster,
a worker that holds a model for minutes' worth of loading should not have to start anew to hear of it. One address a
line; blank lines and `#` comments are passed over. A file that cannot be read, or whose lines are no addresses, changes
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from paceline.files import stamp

log = logging.getLogger(__name__)

LOOK_S = 0.2  # between two looks at the file
MAX_FILE_BYTES = 2**16
_ADDRESS = re.compile(r"(\[[^\]\s]+\]|[^\s:\[\]]+):\d{1,5}")

Register = Callable[[str], Coroutine[None, None, None]]


class Registrations:
    """`start`, and `stop`. The one owner of the tasks."""

    def __init__(self, register: Register) -> None:
        """`register(address)` keeps this worker registered there for as long as it runs."""
        self._register = register
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._watch: asyncio.Task[None] | None = None

    @property
    def coordinators(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    def start(self, coordinators: Sequence[str], file: str | None = None) -> None:
        """Register with `coordinators`, and with whom `file` names, now and whenever it changes."""
        self._keep(coordinators)
        if file is not None:
            self._watch = asyncio.create_task(self._follow(tuple(coordinators), file), name="coordinators")

    async def stop(self) -> None:
        tasks = [*self._tasks.values(), *filter(None, [self._watch])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, fixed: Sequence[str], file: str) -> None:
        seen: object = None
        while True:
            now = stamp(file)
            if now != seen:
                with contextlib.suppress(OSError, ValueError):
                    self._keep((*fixed, *read_addresses(file)))
                seen = now
            await asyncio.sleep(LOOK_S)

    def _keep(self, wanted: Sequence[str]) -> None:
        """A task for each that is wanted, and none for any other."""
        for address in set(self._tasks) - set(wanted):
            log.info("coordinator %s is not listed any more", address)
            self._tasks.pop(address).cancel()
        for address in wanted:
            if address not in self._tasks:
                self._tasks[address] = asyncio.create_task(self._register(address))


def read_addresses(file: str) -> tuple[str, ...]:
    """The addresses that `file` lists. Raises OSError, and ValueError for a line that is none."""
    with Path(file).open(encoding="utf-8") as stream:
        lines = [line.partition("#")[0].strip() for line in stream.read(MAX_FILE_BYTES).splitlines()]
    addresses = tuple(filter(None, lines))
    for address in addresses:
        if not _ADDRESS.fullmatch(address):
            raise ValueError(f"{address!r} is no HOST:PORT")
    return addresses
