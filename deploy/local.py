"""The roles as child processes of this one: started, waited for, restarted when they die, ended together.

Rules. A child leads its own process group, so that Ctrl-C in a terminal reaches only the supervisor, and so that
whatever a child has started can be ended with it. A child's standard input is a pipe from here that never carries
anything: when the supervisor goes, however it goes, the pipe closes and the child ends itself. Until everything is
ready, any child that ends is an error; after that it is restarted, later and later while it keeps failing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from deploy.options import UsageError
from deploy.roles import SUPERVISED, THREADS
from paceline.client import AsyncClient
from paceline.errors import PacelineError, Unavailable
from paceline.types import Role

FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.2, 10.0
MAX_FAILURES = 10  # starts in a row that never became ready: by then about a minute has passed, and nobody looks
STOP_S = 12.0  # a worker takes up to 12 s for a clean end; after that it is killed
POLL_S = 0.1
MAX_LINE_BYTES = 1 << 20
_READY = re.compile(r"paceline \w+ ready on (\S+)(?:.* HTTP on (https?://\S+))?")

Log = Callable[[str], None]


def log_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child's process ended."""

    code: int  # negative: killed by that signal
    lived_s: float
    was_ready: bool

    def __str__(self) -> str:
        how = f"ended with exit code {self.code}" if self.code >= 0 else f"was ended by signal {-self.code}"
        return f"{how} after {self.lived_s:.1f} s"


class Child:
    """One role's process, and the next one when it dies."""

    def __init__(
        self, name: str, arguments: Sequence[str], log: Log, environment: Mapping[str, str] | None = None
    ) -> None:
        """`environment`: beside what every child gets."""
        self.name = name
        self.arguments = tuple(arguments)
        self.environment = dict(environment or {})
        self.pid = 0  # of the current process; 0 between two
        self.address = ""  # where it serves, from its ready line
        self.http_url = ""  # likewise; empty if it serves no HTTP
        self.is_ready = asyncio.Event()
        self.last_line = ""
        self._log = log

    async def run(self) -> Exit:
        """Start the process, pass its output on, and wait for its end."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "deploy.cli", *self.arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=_environment(os.environ) | self.environment,
            start_new_session=True,
            limit=MAX_LINE_BYTES,
        )
        self.pid = process.pid
        started_s = time.monotonic()
        assert process.stdout
        reader = asyncio.create_task(self._pass_on(process.stdout))
        try:
            code = await process.wait()
        finally:
            self.kill()  # the process, if this task was cancelled, and whatever it has started
            self.pid = 0
            # The last words; a bound, since a grandchild may have taken the pipe with it.
            await asyncio.wait((reader,), timeout=1)
            reader.cancel()
            was_ready = self.is_ready.is_set()
            self.is_ready.clear()
        return Exit(code, time.monotonic() - started_s, was_ready)

    async def _pass_on(self, output: asyncio.StreamReader) -> None:
        while True:
            try:
                raw = await output.readline()
            except ValueError:  # a line over the limit; its rest follows
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip()
            if match := _READY.match(line):
                self.address, self.http_url = match[1], match[2] or ""
                self.is_ready.set()
            elif line:
                self.last_line = line
                self._log(f"[{self.name}] {line}")

    def terminate(self) -> None:
        """Ask for a clean end; what the process has started is its own to end."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the process and all that it has started, now."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


class Supervisor:
    """See the top of the file. An async context manager; leaving it ends every child."""

    def __init__(self, *, log: Log = log_to_stderr) -> None:
        self.children: list[Child] = []
        self.failed: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()  # only ever an error
        self._log = log
        self._tasks: list[asyncio.Task[None]] = []
        self._is_up = False  # from then on children are restarted
        self._is_stopping = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Begin to run `paceline ARGUMENTS` as `name`."""
        child = Child(name, arguments, self._log_unless_stopping, environment)
        self.children.append(child)
        self._tasks.append(asyncio.create_task(self._keep(child), name=name))
        return child

    async def wait_for(self, child: Child, *, within_s: float) -> None:
        """Until the child serves. Raises Unavailable, or InvalidInput if it refused what it was given."""
        await self._unless_failed(child.is_ready.wait(), f"{child.name} to serve", within_s)

    async def wait_for_workers(self, client: AsyncClient, *, num_drafters: int, within_s: float) -> None:
        """Until a verifier and all drafters are registered with the coordinator that `client` asks; closes it."""

        async def registered() -> None:
            async with client:
                while True:
                    roles = [worker.role for worker in (await client.server_info()).workers]
                    if roles.count(Role.VERIFIER) >= 1 and roles.count(Role.DRAFTER) >= num_drafters:
                        return
                    await asyncio.sleep(POLL_S)

        await self._unless_failed(registered(), "the workers to register", within_s)
        self.settle()

    def settle(self) -> None:
        """All is ready: from now on a child that ends is restarted."""
        self._is_up = True

    async def drain(self, child: Child, within_s: float) -> None:
        """End one child ahead of the others, which it needs to end well; what is left of it is left to `stop`."""
        self._is_stopping = True
        child.terminate()
        await asyncio.wait((self._tasks[self.children.index(child)],), timeout=within_s)

    async def stop(self, within_s: float = STOP_S) -> None:
        """End all children: SIGTERM, and SIGKILL for those that are there still after `within_s`. May be repeated."""
        self._is_stopping = True
        for child, task in zip(self.children, self._tasks, strict=True):
            child.terminate()
            if not child.pid:  # not started, or waiting for its restart
                task.cancel()
        late = set[asyncio.Task[None]]()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=within_s)
        for child, task in zip(self.children, self._tasks, strict=True):
            if task in late:
                self._log(f"paceline: {child.name} did not end within {within_s:g} s and is killed")
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.failed.cancel()

    async def _keep(self, child: Child) -> None:
        """Run the child, and again when it dies."""
        failures = 0
        while True:
            end = await child.run()
            if self._is_stopping:
                return
            if not self._is_up:
                self._fail(_start_error(child, end))
                return
            failures = 0 if end.was_ready else failures + 1
            if failures == MAX_FAILURES:
                self._fail(Unavailable(f"{child.name} failed to start {failures} times in a row; its messages say why"))
                return
            backoff_s = min(FIRST_BACKOFF_S * 2**failures, MAX_BACKOFF_S)
            self._log(f"paceline: {child.name} {end} and is restarted in {backoff_s:.1f} s")
            await asyncio.sleep(backoff_s)

    async def _unless_failed(self, what: Coroutine[None, None, object], description: str, within_s: float) -> None:
        task = asyncio.ensure_future(what)
        try:
            waiting: tuple[asyncio.Future[Any], ...] = (task, self.failed)
            await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            if self.failed.done():
                self.failed.result()
            if not task.done():
                raise Unavailable(f"waited {within_s:g} s for {description}; the messages above may say why")
            task.result()
        finally:
            task.cancel()

    def _fail(self, error: PacelineError) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    def _log_unless_stopping(self, line: str) -> None:
        # Roles that are ended together complain about the loss of one another.
        if not self._is_stopping:
            self._log(line)


def _start_error(child: Child, end: Exit) -> PacelineError:
    """What to say of a child that ended before all were ready; one with exit code 2 has said it itself."""
    if end.code == 2 and child.last_line:
        return UsageError(f"{child.name}: {child.last_line.removeprefix('paceline').lstrip(': ')}")
    return Unavailable(f"{child.name} {end} before it was ready: {child.last_line or 'it said nothing'}")


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """A child's environment: the twins of this command's options are not meant for it."""
    kept = {name: value for name, value in environ.items() if not name.startswith("PACELINE_")}
    return kept | THREADS | {SUPERVISED: "1"}
