"""Mode auto against plain decoding, and against the best that a fixed mode, length and window reach; in virtual time.

    paceline bench controller --concurrency 1,16,64 --draft-ms 0.3,1.3,4 --rtt-ms 0.2,10,30,100
        --acceptance 0.02,0.3,0.6,0.81,0.95

One verifier of 16 + 0.33 n ms a pass, drafters whose token takes 90 % for a pass and 10 % for a request, prompts of 64
and outputs of 96 tokens. Auto learns from the first request on, nothing is left out. Every world is the same in each
mode: the same requests, the same luck.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import output, system
from bench.options import Parser, counts, values
from bench.simulator.network import Network
from bench.simulator.scenario import Load, Pool, Scenario, run
from paceline.types import Mode, StepCost

VERIFY = StepCost(16.0, 0.33, 0.0, 0.0)
HOP = Network(0.0001, is_ordered=True)
NUM_ALONE, NUM_EACH = 16, 4  # requests: one after the other, and of each client in a crowd


@dataclass(frozen=True, slots=True)
class Point:
    """What is met."""

    concurrency: int
    num_drafters: int
    draft_ms: float
    rtt_ms: float
    acceptance: float

    def scenario(self, seed: int) -> Scenario:
        num_requests = NUM_ALONE if self.concurrency == 1 else NUM_EACH * self.concurrency
        draft = StepCost(0.9 * self.draft_ms, 0.0, 0.1 * self.draft_ms, 0.0)
        return Scenario(
            seed=seed,
            mode=None,
            acceptance=self.acceptance,
            verifiers=Pool(1, VERIFY, network=HOP),
            drafters=Pool(self.num_drafters, draft, network=Network(self.rtt_ms / 2e3, is_ordered=True)),
            load=Load(num_requests=num_requests, concurrency=self.concurrency),
        )


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens a second at a point."""

    point: Point
    off: float
    auto: float
    best: float | None  # of the fixed settings; None if they were not run
    best_setting: str = ""

    @property
    def over_off(self) -> float:
        return self.auto / self.off

    @property
    def over_best(self) -> float | None:
        return self.auto / max(self.best, self.off) if self.best else None


def fixed(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    """Settings among which the best is sought: fewer and shorter ones in a crowd, where long drafts never won."""
    is_alone = scenario.load.concurrency == 1
    for length in (2, 4, 8, 16) if is_alone else (2, 4, 8):
        windows = (3, 16) if is_alone else (2, 4)
        kinds = [(Mode.SEQUENTIAL, 1), *((Mode.PEARL, window) for window in windows)]
        for mode, window in [*kinds, (Mode.BRANCH, 8)] if is_alone else kinds:
            yield f"{mode} {length} x {window}", replace(scenario, mode=mode, length=length, window=window)


def measure(point: Point, seed: int, *, is_compared: bool) -> Row:
    scenario = point.scenario(seed)
    off = run(replace(scenario, mode=Mode.OFF)).tokens_per_s
    auto = run(scenario).tokens_per_s
    if not is_compared:
        return Row(point, off, auto, None)
    rates = {name: run(it).tokens_per_s for name, it in fixed(scenario)}
    best = max(rates, key=lambda name: rates[name])
    return Row(point, off, auto, rates[best], best)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("controller", __doc__)
    parser.add_argument("--concurrency", type=counts, default=(1, 16), help="requests at a time (1,16)")
    parser.add_argument("--num-drafters", type=counts, default=(1,), help="beside the one verifier (1)")
    parser.add_argument("--draft-ms", type=values(0, 1e4), default=(0.3, 1.3), help="a drafted token (0.3,1.3)")
    parser.add_argument("--rtt-ms", type=values(0, 1e4), default=(0.2, 30.0), help="to the drafters (0.2,30)")
    parser.add_argument("--acceptance", type=values(0, 1), default=(0.6, 0.81, 0.95), help="(0.6,0.81,0.95)")
    parser.add_argument("--best", action="store_true", help="run the fixed settings, too: ten times as long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_json()
    given = parser.parse_args(arguments)
    axes = (given.concurrency, given.num_drafters, given.draft_ms, given.rtt_ms, given.acceptance)
    points = [Point(*values) for values in itertools.product(*axes)]
    console = output.console(given.json, 110)
    error = Console(stderr=True)
    rows = [measure(point, given.seed, is_compared=given.best) for point in track(points, console=error)]
    table = Table(title=f"simulated, seed {given.seed}; commit {system.commit()}")
    for column in (
        "at a time",
        "drafters",
        "draft ms",
        "RTT ms",
        "acceptance",
        "off",
        "auto / off",
        "auto / best",
        "best",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        at = row.point
        place = (at.concurrency, at.num_drafters, at.draft_ms, at.rtt_ms, at.acceptance)
        shares = (f"{row.off:.0f}", f"{row.over_off:.3f}", _share(row.over_best), row.best_setting)
        table.add_row(*map(str, place), *shares)
    console.print(table)
    for concurrency in given.concurrency:
        here = [row for row in rows if row.point.concurrency == concurrency]
        worst = min(here, key=lambda row: row.over_off)
        shares_of_best = [row.over_best for row in here if row.over_best]
        least = _share(min(shares_of_best, default=None))
        console.print(
            f"{concurrency} at a time: auto / off at worst {worst.over_off:.3f}; auto / best at worst {least}"
        )
    output.save(given.json, {"commit": system.commit(), "rows": [asdict(row) for row in rows]})
    return 0


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.3f}"


if __name__ == "__main__":
    sys.exit(main())
