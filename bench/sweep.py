"""Mode auto against plain decoding wherever it may be put: concurrency by distance by drafter, with real processes.

    paceline bench sweep --max-minutes 30 --json sweep.json --plot sweep.png

Runs of `auto` and `off` take turns, in changing order, each for `--seconds` of closed load (longer with many clients,
whose passes take longer), so that a noisy minute falls on both; a point's figure is the median of their ratios. Before
them `auto` runs once uncounted, as it does in a server that has been up for a minute. The drafters are *good* (the demo
drafter), *random* (weights as initialised), and *dead*: in turn stopped by SIGSTOP, killed by SIGKILL, both as counting
begins, and not there at all.

What is measured is written to `--json` point by point. Run again with the same file and the same settings, a sweep that
was cut short goes on where it ended.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import lines, output, rate, system
from bench.distant import Distant, distant
from bench.equality import random_drafter
from bench.options import Parser, count, counts, dtype, names, positive, values
from bench.plot import check_plot
from bench.row import quartiles
from bench.target import expanded
from paceline.errors import InvalidInput
from paceline.prompts import read_prompts

DRAFTERS = ("good", "random", "dead")
DEATHS = ("stopped", "killed", "absent")
AIM = 0.98  # of plain decoding, at every point
_SETTINGS = ("target", "drafter", "parameters", "prompts", "pairs", "seconds", "dtype", "drafter_dtype")
_CLIENTS_PER_SECOND = 64  # as many clients double the time of a run

Measure = Callable[[str, "str | None"], Awaitable[tuple[float, Counter[str]]]]  # mode, and a death to die meanwhile


@dataclass(frozen=True, slots=True)
class Point:
    """One place in the grid."""

    drafter: str
    rtt_ms: float
    concurrency: int

    def __str__(self) -> str:
        return f"{self.drafter} drafter, {self.rtt_ms:g} ms, {self.concurrency} at a time"


@dataclass
class Row:
    """What came of a point: tokens a second, pair by pair."""

    point: Point
    auto: list[float] = field(default_factory=list)
    off: list[float] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)  # of the drafter, pair by pair; only of a dead one
    modes: Counter[str] = field(default_factory=Counter)  # that finished requests of `auto` ended in

    @property
    def ratios(self) -> list[float]:
        return [auto / off for auto, off in zip(self.auto, self.off, strict=True)]

    def figures(self) -> dict[str, Any]:
        first, median, third = quartiles(self.ratios)
        return {
            **asdict(self.point),
            "ratio": median,
            "ratio_quartiles": [first, third],
            "auto_tokens_per_s": statistics.median(self.auto),
            "off_tokens_per_s": statistics.median(self.off),
            "pairs": [list(pair) for pair in zip(self.auto, self.off, strict=True)],
            "deaths": self.deaths,
            "modes": dict(self.modes),
        }

    @classmethod
    def of(cls, figures: dict[str, Any]) -> Row:
        """The row with these figures."""
        point = Point(figures["drafter"], figures["rtt_ms"], figures["concurrency"])
        auto, off = (list(column) for column in zip(*figures["pairs"], strict=True))
        return cls(point, auto, off, figures["deaths"], Counter(figures["modes"]))


def grid(given: argparse.Namespace) -> list[Point]:
    """Drafters outermost: to change one costs the most."""
    places = itertools.product(given.drafters, given.rtt_ms, given.concurrency)
    return [Point(drafter, rtt_ms, concurrency) for drafter, rtt_ms, concurrency in places]


async def measure(point: Point, num_pairs: int, run: Measure) -> Row:
    """A point's pairs; which mode goes first alternates."""
    row = Row(point)
    if point.drafter != "dead":
        await run("auto", None)
    for number in range(num_pairs):
        death = DEATHS[number % len(DEATHS)] if point.drafter == "dead" else None
        for mode in ("auto", "off") if number % 2 else ("off", "auto"):
            tokens_per_s, modes = await run(mode, death if mode == "auto" else None)
            (row.auto if mode == "auto" else row.off).append(tokens_per_s)
            if mode == "auto":
                row.modes += modes
        if death:
            row.deaths.append(death)
    return row


class Runs:
    """Runs a mode for a while at a point of the real system."""

    def __init__(self, far: Distant, point: Point, given: argparse.Namespace, drafter: Sequence[str]) -> None:
        self._far, self._point, self._drafter = far, point, drafter
        self._prompts = read_prompts(given.prompts)
        self._seconds = given.seconds * (1 + point.concurrency / _CLIENTS_PER_SECOND)
        far.distance(point.rtt_ms)

    async def __call__(self, mode: str, death: str | None) -> tuple[float, Counter[str]]:
        strike = None
        if death == "absent":
            self._far.end()
        elif mode == "auto":
            self._far.ensure(*self._drafter)
            strike = {"stopped": self._far.suspend, "killed": self._far.kill, None: None}[death]
        wanted = None if mode == "auto" else mode
        server, clients = self._far.server, self._point.concurrency
        return await rate.run(server, self._prompts, wanted, clients, self._seconds, strike)


def sweep(given: argparse.Namespace, folder: Path, report: Report) -> None:
    """Measure what `report` lacks, as far as the time allows."""
    (folder / "random").mkdir()
    target = expanded(given.target, given.parameters, folder / "target")
    models = {"good": given.drafter, "random": random_drafter(given.target, folder / "random"), "dead": given.drafter}
    points = [point for point in grid(given) if point not in report.rows]
    deadline_s = time.monotonic() + 60 * given.max_minutes
    before = None
    with distant(target, "--dtype", given.dtype) as far, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("sweep", total=len(points))
        for point in points:
            if time.monotonic() > deadline_s:
                return
            progress.update(task, description=str(point))
            if point.drafter != before:
                far.end()
            before = point.drafter
            drafter = ("--model", models[point.drafter], "--dtype", given.drafter_dtype)
            report.add(asyncio.run(measure(point, given.pairs, Runs(far, point, given, drafter))))
            progress.advance(task)


class Report:
    """What has been measured, kept in a file if there is one."""

    def __init__(self, given: argparse.Namespace) -> None:
        """Takes up what the file holds of the same settings and commit. Raises InvalidInput if it is of others."""
        self._file = Path(given.json) if given.json not in (None, "-") else None
        self._settings = {
            "commit": system.commit(),
            "machine": system.machine(),
            "settings": {name: vars(given)[name] for name in _SETTINGS},
        }
        self.rows: dict[Point, Row] = {}
        if self._file and self._file.exists() and self._file.stat().st_size:
            held = json.loads(self._file.read_text())
            rows = held.pop("rows", [])
            if held != self._settings:
                fix = "holds a sweep of another commit or other settings; name another file, or remove it"
                raise InvalidInput("--json", given.json, fix)
            self.rows = {row.point: row for row in map(Row.of, rows)}

    def add(self, row: Row) -> None:
        self.rows[row.point] = row
        if self._file:
            self._file.write_text(json.dumps(self.figures(), indent=1))

    def figures(self) -> dict[str, Any]:
        return self._settings | {"rows": [row.figures() for row in self.rows.values()]}


def show(rows: Sequence[Row], missing: int, console: Console) -> None:
    table = Table(title="auto over off: median of the pairs' ratios, with quartiles")
    for column in ("drafter", "RTT ms", "at a time", "off tokens/s", "auto tokens/s", "auto/off", "requests ended in"):
        table.add_column(column, justify="right" if column[0] not in "dr" else "left", no_wrap=True)
    for row in rows:
        figures = row.figures()
        low, high = figures["ratio_quartiles"]
        table.add_row(
            row.point.drafter,
            f"{row.point.rtt_ms:g}",
            f"{row.point.concurrency}",
            f"{figures['off_tokens_per_s']:.1f}",
            f"{figures['auto_tokens_per_s']:.1f}",
            f"{figures['ratio']:.2f} ({low:.2f}–{high:.2f})",
            ", ".join(f"{mode} {num}" for mode, num in row.modes.most_common()),
        )
    console.print(table)
    short = [row for row in rows if row.figures()["ratio"] < AIM]
    console.print(
        f"{len(rows) - len(short)} of {len(rows)} points reach {AIM} of plain decoding; {missing} not measured"
    )


def draw(rows: Sequence[Row], file: str) -> None:
    panels: dict[str, dict[str, list[lines.Dot]]] = {}
    for row in rows:
        figures, point = row.figures(), row.point
        dot = lines.Dot(point.rtt_ms, figures["ratio"], *figures["ratio_quartiles"])
        panels.setdefault(f"{point.drafter} drafter", {}).setdefault(f"{point.concurrency} at a time", []).append(dot)
    title = f"mode auto against plain decoding, real processes, commit {system.commit()}"
    labels = {"xlabel": "round trip to the drafter (ms)", "ylabel": "tokens/s over off"}
    lines.draw(panels, title=title, file=file, **labels)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.plot:
        check_plot(given.plot)
    console = output.console(given.json, 130)
    report = Report(given)
    console.print(f"commit {system.commit()}; {system.machine()}; target expanded to {given.parameters}")
    with tempfile.TemporaryDirectory() as folder:
        sweep(given, Path(folder), report)
    points = grid(given)
    rows = [report.rows[point] for point in points if point in report.rows]
    show(rows, len(points) - len(rows), console)
    if given.json == "-":
        output.save("-", report.figures())
    if given.plot and rows:
        draw(rows, given.plot)
    return 0


def _parser() -> Parser:
    parser = Parser("sweep", __doc__)
    parser.add_argument("--target", default="models/demo-target", help="unexpanded target")
    parser.add_argument("--drafter", default="models/demo-drafter", help="the good one")
    parser.add_argument("--parameters", default="90M", help="expand the target to about this; 0 = leave it")
    parser.add_argument("--prompts", default="tests/data/gsm8k_dev_12.jsonl")
    parser.add_argument("--concurrency", type=counts, default=(1, 4, 16, 64), help="clients at a time (1,4,16,64)")
    parser.add_argument("--rtt-ms", type=values(0, 60_000), default=(0.0, 10.0, 30.0, 100.0), help="(0,10,30,100)")
    parser.add_argument("--drafters", type=names(DRAFTERS), default=DRAFTERS, help=",".join(DRAFTERS))
    parser.add_argument("--pairs", type=count(1), default=4, help="runs of auto and of off at every point (4)")
    parser.add_argument(
        "--seconds", type=positive, default=2.0, help="of a run with one client; twice that with 64 (2)"
    )
    parser.add_argument("--max-minutes", type=positive, default=30.0, help="begin no point after so long (30)")
    parser.add_argument("--dtype", type=dtype, default="auto", help="of the target (auto: what is fast here)")
    parser.add_argument("--drafter-dtype", default="float32", help="float32 is the faster one for 1 M parameters")
    parser.add_json("keep the figures there, point by point; go on with what it holds")
    parser.add_argument("--plot", metavar="FILE.png", help="draw ratios against distance (needs matplotlib)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
