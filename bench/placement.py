"""What placement is worth in a pool of unlike drafters, and what finding a place costs.

    paceline bench placement

The first table is simulated: the same requests on the same workers, placed by expected gain (as the coordinator does)
and by load alone (the emptiest worker that fits, and no moves). The second is measured: microseconds of the processor
for giving a place and taking it back, with all workers half full, and for looking in vain while a request waits for a
drafter that nobody here is.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from unittest.mock import patch

from rich.table import Table

from bench import output, system
from bench.options import Parser
from bench.simulator.network import Network
from bench.simulator.scenario import Load, Pool, Scenario, run
from coordinator.core.passes import PassTimes
from coordinator.core.placement import VERIFIER, Pools, Wish
from coordinator.core.worker import Worker
from paceline.types import Mode, Role, StepCost, WorkerInfo

SPAN = 500  # places timed together
VERIFY = StepCost(16.0, 0.33, 0.0, 0.0)  # a target whose pass is mostly the reading of its weights


def _drafters(num: int, ms: float, *, rtt_ms: float = 0.2, acceptance: float = 0.8) -> Pool:
    return Pool(num, StepCost(ms, 0, 0, 0), 8, Network(delay_s=rtt_ms / 2e3), acceptance=acceptance)


# Eight places a drafter, so that each pool has more of them than there are requests.
POOLS = {
    "4 alike": (_drafters(4, 1.3),),
    "2 fast, 2 six times slower": (_drafters(2, 1.3), _drafters(2, 8.0)),
    "2 near, 2 at 60 ms": (_drafters(2, 1.3), _drafters(2, 1.3, rtt_ms=60)),
    "2 good, 2 mostly wrong": (_drafters(2, 1.3), _drafters(2, 1.3, acceptance=0.3)),
    "1 fast, 2 slow and far, 1 wrong": (
        _drafters(1, 1.3),
        _drafters(2, 8.0, rtt_ms=60),
        _drafters(1, 1.3, acceptance=0.3),
    ),
}


@contextlib.contextmanager
def by_load() -> Iterator[None]:
    """Every worker costs what is taken of it, and no request moves."""

    def load(worker: Worker, _: PassTimes) -> float:
        return worker.load

    with patch.object(Worker, "cost", load), patch.object(Pools, "better", lambda *_, **__: False):
        yield


def scenario(pools: tuple[Pool, ...], mode: Mode | None, concurrency: int, seed: int) -> Scenario:
    load = Load(num_requests=6 * concurrency, concurrency=concurrency, max_tokens=128)
    verifiers = Pool(2, VERIFY)
    it = Scenario(seed=seed, mode=mode, length=4, verifiers=verifiers, load=load)
    return replace(it, drafters=pools[0], other_drafters=pools[1:])


def compare(mode: Mode | None, concurrency: int, seeds: int) -> dict[str, list[tuple[float, float]]]:
    """By pool and seed, tokens/s by load and by gain."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, pools in POOLS.items():
        found[name] = []
        for seed in range(seeds):
            it = scenario(pools, mode, concurrency, seed)
            with by_load():
                loaded = run(it).tokens_per_s
            found[name].append((loaded, run(it).tokens_per_s))
    return found


def _info(role: Role, ms: float, places: int) -> WorkerInfo:
    cost = StepCost(ms, 0.1, 0.0, 0.0)
    return WorkerInfo(role, "", 1, "toy", "", "", 50, 4096, places, (), "float32", "cpu", cost)


def places_us(num_drafters: int, num_places: int, *, in_vain: bool) -> list[float]:
    """Microseconds a place, or a look in vain, over spans of `SPAN`."""
    pools = Pools()
    for i in range(max(1, num_drafters // 10)):
        pools.join(f"v{i}", _info(Role.VERIFIER, 28.0, 1024))
    for i in range(num_drafters):
        pools.join(f"d{i}", _info(Role.DRAFTER, 1.0 + i % 7, 64))
    wish, held, spans = Wish(Role.DRAFTER), [], []
    for i in range(32 * num_drafters):
        worker = pools.take(wish, f"r{i}", 0.0)
        assert worker
        held.append((worker.name, f"r{i}"))
    strict = Wish(Role.DRAFTER, trusted_only=True)
    for first in range(0, num_places, SPAN):
        started_s = time.process_time()
        for i in range(first, first + SPAN):
            if in_vain:
                assert pools.take(strict, "waits", 0.0) is None
                continue
            pools.release(*held[i % len(held)])
            verifier, drafter = pools.take(VERIFIER, f"n{i}", 0.0), pools.take(wish, f"n{i}", 0.0)
            assert verifier
            assert drafter
            held[i % len(held)] = (drafter.name, f"n{i}")
            pools.release(verifier.name, f"n{i}")
        spans.append(1e6 * (time.process_time() - started_s) / SPAN)
    return spans


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("placement", __doc__)
    parser.add_argument("--mode", default="pearl", choices=("pearl", "sequential", "auto"))
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time (4)")
    parser.add_argument("--seeds", type=int, default=5, help="worlds of each pool (5)")
    parser.add_argument("--drafters", default="10,100,1000", help="of the second table, comma separated")
    parser.add_argument("--places", type=int, default=20_000, help="given in it (20000)")
    parser.add_json()
    given = parser.parse_args(arguments)
    found = compare(None if given.mode == "auto" else Mode(given.mode), given.concurrency, given.seeds)
    table = Table(title=f"simulated, {given.mode}, {given.concurrency} at a time; commit {system.commit()}")
    for column in ("pool", "by load, tokens/s", "by gain, tokens/s", "ratio, median", "range"):
        table.add_column(column, justify="left" if column == "pool" else "right")
    for name, pairs in found.items():
        ratios = sorted(gain / load for load, gain in pairs)
        load, gain = (statistics.median(column) for column in zip(*pairs, strict=True))
        spread = f"{ratios[0]:.2f}–{ratios[-1]:.2f}"
        table.add_row(name, f"{load:.0f}", f"{gain:.0f}", f"{statistics.median(ratios):.2f}", spread)
    console = output.console(given.json, 110)
    console.print(table)
    costs = {
        number: [places_us(number, given.places, in_vain=in_vain) for in_vain in (False, True)]
        for number in map(int, given.drafters.split(","))
    }
    table = Table(title=f"{given.places} places; {system.machine()}")
    for column in ("drafters", "verifiers", "µs a place on each, median", "µs a look in vain, median"):
        table.add_column(column, justify="right")
    for number, (places, looks) in costs.items():
        cells = (f"{statistics.median(places):.1f}", f"{statistics.median(looks):.2f}")
        table.add_row(f"{number:,}", f"{max(1, number // 10):,}", *cells)
    console.print(table)
    if given.json:
        figures = {"commit": system.commit(), "tokens_per_s": found, "us": costs}
        output.save(given.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
