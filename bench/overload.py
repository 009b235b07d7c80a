"""Ask for ten times as much as is there, and see that those who are taken in are served as well as before.

    paceline bench overload --seconds 60 --times 10

First as many requests as the verifier takes at a time run without a pause: that is the capacity. Then come so many
times as many clients, who, when they are told to come back, do so after the time that they were told. The coordinator
queues what it may and refuses the rest. Goodput is tokens a second of requests that ended well; memory is what each
process says of itself. The exit code is 1 if the goodput under overload is more than a tenth below capacity, if a
process grew meanwhile, or if a request failed otherwise than by being told to come back.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from bench import options, report
from bench.load import Answer, Load, asks
from bench.pools import Pools, Setup
from paceline.errors import Overloaded
from paceline.prompts import read_prompts

SETTLE_S = 2.0  # until the batch is full
SAMPLE_S = 2.0
WAITING = 2  # times the verifier's places: what the queue holds
LEAST_KEPT = 0.9  # of the goodput at capacity
GROWTH = 1.15  # of a process's memory from the start of the overload to its end; the allocator's pools settle first
# Its pages count when they are first written, so that a large cache would look like growth until it has been full once.
KV_CACHE = "128MiB"


@dataclass
class Stretch:
    """One load for a while."""

    name: str
    num_clients: int
    tokens_per_s: float = 0.0
    goodput: float = 0.0  # tokens/s of requests that ended well
    num_whole: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    median_s: float = 0.0  # from a request's being asked for to its end
    memory_bytes: dict[str, list[int]] = field(default_factory=dict)  # by process, at the start and at the end
    most: dict[str, int] = field(default_factory=dict)  # requests that the coordinator had at a time, and its clients

    @property
    def num_failed(self) -> int:
        """Those that were not merely told to come back."""
        return sum(count for name, count in self.refused.items() if name != Overloaded.__name__)


async def stretch(pools: Pools, name: str, num_clients: int, given: argparse.Namespace) -> Stretch:
    """So many clients for `given.seconds`."""
    it = Stretch(name, num_clients)
    wanted = asks(
        read_prompts(given.prompts), num_clients, max_tokens=given.max_tokens, ignore_eos=True, mode=given.mode
    )
    async with Load(pools.address, wanted, clients=4) as load:
        await asyncio.sleep(SETTLE_S)
        began_s = time.monotonic()
        await _sample(pools, it)
        while (left_s := began_s + given.seconds - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, SAMPLE_S))
            await _sample(pools, it)
        ended_s = time.monotonic()
    _count(it, load.answers, began_s, ended_s)
    return it


async def _sample(pools: Pools, it: Stretch) -> None:
    held = await asyncio.to_thread(pools.holds)
    for name, figures in held.items():
        it.memory_bytes.setdefault(name, []).append(figures["memory_bytes"])
    for name in ("requests", "clients", "tasks"):
        it.most[name] = max(it.most.get(name, 0), held["coordinator"][name])


def _count(it: Stretch, answers: Sequence[Answer], began_s: float, ended_s: float) -> None:
    """What came between the two. Tokens of a request count while they come, if it was not refused later."""
    seconds = ended_s - began_s
    tokens = good = 0.0
    took_s = []
    for answer in answers:
        share = sum(began_s <= came_s < ended_s for came_s in answer.came_s) / max(1, len(answer.came_s))
        tokens += share * len(answer.tokens)
        good += share * len(answer.tokens) * (answer.error is None)
        if began_s <= answer.ended_s < ended_s:
            if answer.error:
                it.refused[type(answer.error).__name__] += 1
            else:
                it.num_whole += 1
                took_s.append(answer.ended_s - answer.started_s)
    it.tokens_per_s, it.goodput = tokens / seconds, good / seconds
    it.median_s = statistics.median(took_s) if took_s else 0.0


async def measure(given: argparse.Namespace) -> list[Stretch]:
    """Capacity, overload, and capacity again, which says what drifts by itself."""
    places = ("--max-num-seqs", str(given.places))
    setup = Setup(
        given.target,
        given.drafter,
        coordinator=("--max-waiting", str(WAITING * given.places)),
        verifier=("--dtype", "float32", "--kv-cache-memory", KV_CACHE, *places),
        drafting=("--dtype", "float32", "--kv-cache-memory", KV_CACHE, *places),
        logs=given.logs,
    )
    with await asyncio.to_thread(Pools, setup) as pools:
        await asyncio.to_thread(pools.start, "verifier-1", *(["drafter-1"] if given.mode != "off" else []))
        return [
            await stretch(pools, name, num_clients, given)
            for name, num_clients in (
                ("capacity", given.places),
                (f"{given.times} times", given.times * given.places),
                ("capacity again", given.places),
            )
        ]


def goodput_kept(stretches: Sequence[Stretch]) -> float:
    """Goodput under overload over that at capacity, before and after."""
    before, over, after = stretches
    return over.goodput / statistics.mean((before.goodput, after.goodput))


def missed(stretches: Sequence[Stretch]) -> list[str]:
    """Which aims were."""
    found = [f"{it.name}: {it.num_failed} requests failed" for it in stretches if it.num_failed]
    kept, over = goodput_kept(stretches), stretches[1]
    if kept < LEAST_KEPT:
        found.append(f"goodput under overload is {kept:.2f} of that at capacity, less than {LEAST_KEPT:g}")
    for name, sizes in over.memory_bytes.items():
        if sizes[-1] > GROWTH * sizes[0]:
            found.append(f"{over.name}: {name} grew from {sizes[0] >> 20} to {sizes[-1] >> 20} MiB")
    return found


def show(stretches: Sequence[Stretch], console: Console) -> None:
    table = Table(title=f"goodput under overload is {goodput_kept(stretches):.2f} of that at capacity")
    columns = ("clients", "tokens/s", "goodput", "whole", "told to come back", "failed", "median s")
    for column in ("", *columns, "most requests", "memory MiB, first and last"):
        table.add_column(column, justify="right" if column in columns else "left")
    for it in stretches:
        memory = ", ".join(f"{name} {sizes[0] >> 20}–{sizes[-1] >> 20}" for name, sizes in it.memory_bytes.items())
        row = (
            *(it.name, str(it.num_clients), f"{it.tokens_per_s:.0f}", f"{it.goodput:.0f}", str(it.num_whole)),
            *(str(it.refused[Overloaded.__name__]), str(it.num_failed), f"{it.median_s:.1f}"),
            *(str(it.most["requests"]), memory),
        )
        table.add_row(*row)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    console = report.console(given)
    stretches = asyncio.run(measure(given))
    show(stretches, console)
    misses = missed(stretches)
    report.tell_missed(misses, console)
    figures = {
        "missed": misses,
        "goodput_kept": goodput_kept(stretches),
        "stretches": [vars(each) for each in stretches],
    }
    report.write(given, figures)
    return 1 if misses else 0


def parser() -> argparse.ArgumentParser:
    it = report.parser("overload", __doc__)
    it.add_argument("--seconds", type=options.positive, default=60.0, help="of each of the three loads")
    it.add_argument("--times", type=options.count(1), default=10, help="as many clients as places")
    it.add_argument("--places", type=options.count(1), default=16, help="requests that the verifier takes at a time")
    it.add_argument("--max-tokens", type=options.count(1), default=64, help="of each request")
    it.add_argument("--mode", default="pearl")
    return it


if __name__ == "__main__":
    sys.exit(main())
