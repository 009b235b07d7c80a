"""Workers come and go under load, clients leave in the middle, and in the end nothing may have been kept.

    paceline bench soak --seconds 3600

Every few seconds one thing happens by chance: a worker is killed, or asked to go, and another started in its place, a
drafter hangs for a while, or a client leaves, runs out of time or aborts in the middle of its answer. One verifier is
always left. Every so often the load stops, and once all is quiet each process must hold what it held when it was new:
no request, no KV block, no client, no more streams, tasks, threads and open files than then. Memory is compared with
that at the second such moment, by when caches are warm.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import options, report
from bench.load import Ask, Load, asks
from bench.pools import Pools, Setup
from paceline.client import AsyncClient
from paceline.errors import PacelineError
from paceline.holdings import Figures
from paceline.prompts import read_prompts
from paceline.types import Role

QUIET_WITHIN_S = 30.0
POLL_S = 0.25
# What must be as it was when the process was new. A coordinator's channel to a worker that is gone lingers a moment.
KEPT = ("requests", "kv_blocks", "clients", "timed", "asks", "streams", "links", "tasks", "threads", "files")
SHOWN = ("requests", "kv_blocks", "clients", "streams", "links", "tasks", "threads", "files")
SLACK = {"threads": 2, "files": 4}  # gRPC's and asyncio's own pools grow to what was once needed at a time
GROWTH = 1.15  # of memory since it was warm
# Its pages count when they are first written, so that a large cache would look like growth until it has been full once.
CACHE = ("--kv-cache-memory", "128MiB")


@dataclass
class Soak:
    """What happened, and what every process held at the quiet moments."""

    happened: Counter[str] = field(default_factory=Counter)
    num_whole: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    num_different: int = 0
    moments: list[dict[str, Figures]] = field(default_factory=list)  # by process, named with its pid
    leaks: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.leaks or self.failed or self.num_different)


class Chaos:
    """One thing after another."""

    def __init__(self, pools: Pools, wanted: Sequence[Ask], rng: random.Random, soak: Soak) -> None:
        self._pools, self._wanted, self._rng, self._soak = pools, wanted, rng, soak
        self._numbers = Counter({Role.VERIFIER: len(pools.named(Role.VERIFIER)), Role.DRAFTER: 0})
        self._numbers[Role.DRAFTER] = len(pools.named(Role.DRAFTER))

    async def run(self, until_s: float, every_s: float) -> None:
        """Until then, on the monotonic clock."""
        while time.monotonic() < until_s:
            name, do = self._rng.choice(self._events)
            self._soak.happened[name] += 1
            await do()
            await asyncio.sleep(every_s * self._rng.random() * 2)

    @property
    def _events(self) -> Sequence[tuple[str, Callable[[], Awaitable[None]]]]:
        pools = self._pools
        return (
            ("drafter killed", lambda: self._replace(Role.DRAFTER, pools.kill)),
            ("drafter drained", lambda: self._replace(Role.DRAFTER, pools.stop)),
            ("drafter hung", self._hang),
            ("verifier killed", lambda: self._replace(Role.VERIFIER, pools.kill)),
            ("verifier drained", lambda: self._replace(Role.VERIFIER, pools.stop)),
            ("client left", lambda: self._ask("leave")),
            ("client out of time", lambda: self._ask("deadline")),
            ("request aborted", lambda: self._ask("abort")),
        )

    async def _replace(self, role: Role, end: Callable[[str], object]) -> None:
        gone = self._rng.choice(self._pools.named(role))
        self._numbers[role] += 1
        fresh = f"{role}-{self._numbers[role]}"
        if role is Role.VERIFIER:  # the others may have no room for all
            await asyncio.to_thread(self._pools.start, fresh)
            await asyncio.to_thread(end, gone)
        else:
            await asyncio.to_thread(end, gone)
            await asyncio.to_thread(self._pools.start, fresh)

    async def _hang(self) -> None:
        name = self._rng.choice(self._pools.named(Role.DRAFTER))
        self._pools.hang(name)
        await asyncio.sleep(self._rng.random() * 2)
        self._pools.go_on(name)

    async def _ask(self, how: str) -> None:
        """A client that does not wait for the end."""
        ask = self._rng.choice(self._wanted)
        given: dict[str, Any] = {**ask.options, "request_id": f"soak-{self._rng.random()}"}
        if how == "deadline":
            given["timeout_s"] = 0.05 + self._rng.random() * 0.3
        async with AsyncClient(self._pools.address, max_retries=0) as client:
            with contextlib.suppress(PacelineError):
                async for _ in client.generate(ask.prompt, **given):
                    if how == "abort":
                        await client.abort(given["request_id"])
                    if how == "leave":
                        break


async def soak(given: argparse.Namespace) -> Soak:
    """The whole of it."""
    it, rng = Soak(), random.Random(given.seed)
    engine = ("--dtype", "float32", *CACHE)
    setup = Setup(given.target, given.drafter, verifier=engine, drafting=engine, logs=given.logs)
    with await asyncio.to_thread(Pools, setup) as pools:
        await asyncio.to_thread(pools.start, "verifier-1", "verifier-2", "drafter-1", "drafter-2")
        wanted = asks(read_prompts(given.prompts), given.requests, max_tokens=given.max_tokens, ignore_eos=True)
        new: dict[str, Figures] = {}
        until_s = time.monotonic() + given.seconds
        expected = await _plain(pools.address, wanted)
        chaos = Chaos(pools, wanted, rng, it)
        while True:
            it.moments.append(await _quiet(pools, new, it))
            if (left_s := until_s - time.monotonic()) <= 0:
                break
            async with Load(pools.address, wanted) as load:
                await chaos.run(time.monotonic() + min(left_s, given.round_s), given.every_s)
            for answer in load.answers:
                it.num_whole += answer.is_whole
                if answer.error:
                    it.failed[f"{type(answer.error).__name__}: {answer.error}"] += 1
                it.num_different += answer.tokens != expected[answer.number][: len(answer.tokens)]
    it.leaks += growth(it.moments)
    return it


async def _plain(address: str, wanted: Sequence[Ask]) -> list[list[int]]:
    """What each ask's output is to be, from the verifiers alone."""
    plain = [Ask(ask.prompt, {**ask.options, "mode": "off"}) for ask in wanted]
    async with Load(address, plain, again=False) as load:
        answers = sorted(await load.finished(), key=lambda answer: answer.number)
    return [answer.tokens for answer in answers]


async def _quiet(pools: Pools, new: dict[str, Figures], it: Soak) -> dict[str, Figures]:
    """What the processes hold once no more than `new`; what is over it after a while is a leak. Learns who is new."""
    deadline_s = time.monotonic() + QUIET_WITHIN_S
    while True:
        held = {_key(pools, name): figures for name, figures in (await asyncio.to_thread(pools.holds)).items()}
        leaks = [leak for name, figures in held.items() if name in new for leak in over(name, new[name], figures)]
        leaks += [leak for name, figures in held.items() for leak in over(name, _EMPTY, figures)]
        if not leaks:
            break
        if time.monotonic() > deadline_s:
            it.leaks += leaks
            break
        await asyncio.sleep(POLL_S)
    for name, figures in held.items():
        new.setdefault(name, figures)
    return held


_EMPTY: Figures = {"requests": 0, "kv_blocks": 0, "clients": 0, "timed": 0, "asks": 0}


def _key(pools: Pools, name: str) -> str:
    """A process, for ever: names are used once, but for the coordinator's, which stays."""
    child = pools.workers.get(name, pools.coordinator)
    return f"{name} ({child.pid})"


def over(name: str, allowed: Figures, figures: Figures) -> list[str]:
    return [
        f"{name} holds {figures[what]} {what}, {allowed[what]} at first"
        for what in KEPT
        if what in figures and what in allowed and figures[what] > allowed[what] + SLACK.get(what, 0)
    ]


def growth(moments: Sequence[Mapping[str, Figures]]) -> list[str]:
    """Processes whose memory grew between their second moment and the last."""
    leaks = []
    for name, figures in moments[-1].items():
        warm = [moment[name]["memory_bytes"] for moment in moments if name in moment][1:]
        if warm and figures["memory_bytes"] > GROWTH * warm[0]:
            leaks.append(f"{name} grew from {warm[0] >> 20} to {figures['memory_bytes'] >> 20} MiB")
    return leaks


def show(it: Soak, console: Console) -> None:
    happened = ", ".join(f"{name} {count}" for name, count in sorted(it.happened.items()))
    console.print(f"{it.num_whole} requests ended well, {it.failed.total()} failed, {it.num_different} differed")
    console.print(f"{it.happened.total()} events: {happened}")
    table = Table(title=f"held at the last of {len(it.moments)} quiet moments")
    for column in ("process", "moments", *SHOWN, "MiB at first", "at last"):
        table.add_column(column.replace("_", " "), justify="left" if column == "process" else "right", no_wrap=True)
    for process, figures in it.moments[-1].items():
        seen = [moment[process]["memory_bytes"] >> 20 for moment in it.moments if process in moment]
        counts = (str(figures.get(name, "–")) for name in SHOWN)
        table.add_row(process, str(len(seen)), *counts, str(seen[0]), str(seen[-1]))
    console.print(table)
    for what in (*it.leaks, *(f"{count} x {error}" for error, count in it.failed.items())):
        console.print(what, markup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    console = report.console(given)
    it = asyncio.run(soak(given))
    show(it, console)
    report.write(given, vars(it))
    return 0 if it.is_good else 1


def parser() -> argparse.ArgumentParser:
    it = report.parser("soak", __doc__)
    it.add_argument("--seconds", type=options.positive, default=3600.0)
    it.add_argument("--round-s", type=options.positive, default=30.0, help="of load between two quiet moments")
    it.add_argument("--every-s", type=options.positive, default=2.0, help="between two events, on average")
    it.add_argument("--requests", type=options.count(1), default=8, help="at a time")
    it.add_argument("--max-tokens", type=options.count(1), default=64, help="of each")
    it.add_argument("--seed", type=int, default=0)
    return it


if __name__ == "__main__":
    sys.exit(main())
