"""Many worlds in a row: every mode at every distance, or with every number of drafters, on the same requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.simulator.outcome import Outcome
from bench.simulator.scenario import Pool, Scenario, run
from bench.simulator.world import Client
from paceline.types import Mode


@dataclass(frozen=True, slots=True)
class Grid:
    """The worlds: `base` with every combination of these."""

    base: Scenario
    modes: tuple[Mode | None, ...]  # None = auto
    rtts_ms: tuple[float, ...]  # between the coordinator and the drafters, beyond what `base` has
    num_drafters: tuple[int, ...]  # of the first kind

    @property
    def num_requests(self) -> int:
        """Over all worlds."""
        return len(self.modes) * len(self.rtts_ms) * len(self.num_drafters) * self.base.load.num_requests

    def points(self) -> Iterator[tuple[Point, Scenario]]:
        for rtt_ms in self.rtts_ms:
            for num_drafters in self.num_drafters:
                for mode in self.modes:
                    scenario = self.scenario(mode, rtt_ms, num_drafters)
                    yield Point(mode, rtt_ms, scenario.num_drafters), scenario

    def scenario(self, mode: Mode | None, rtt_ms: float, num_drafters: int) -> Scenario:
        drafters = replace(_farther(self.base.drafters, rtt_ms), num_workers=num_drafters)
        others = tuple(_farther(pool, rtt_ms) for pool in self.base.other_drafters)
        return replace(self.base, mode=mode, drafters=drafters, other_drafters=others)


def _farther(pool: Pool, rtt_ms: float) -> Pool:
    return replace(pool, network=replace(pool.network, delay_s=pool.network.delay_s + rtt_ms / 2e3))


@dataclass(frozen=True, slots=True)
class Point:
    """Where a world stands in a grid."""

    mode: Mode | None
    rtt_ms: float
    num_drafters: int

    @property
    def mode_name(self) -> str:
        return self.mode or "auto"


@dataclass(frozen=True, slots=True)
class Row:
    point: Point
    outcome: Outcome
    speed_up: float | None  # over `off` in the same place, if that was simulated

    def figures(self) -> dict[str, Any]:
        place = {
            "mode": self.point.mode_name,
            "rtt_ms": self.point.rtt_ms,
            "num_drafters": self.point.num_drafters,
            "speed_up": self.speed_up,
        }
        return place | self.outcome.figures()


def sweep(grid: Grid, advance: Callable[[Client], None] | None = None) -> list[Row]:
    """Run every world of `grid`. Raises Broken if one breaks a promise."""
    outcomes = {point: run(scenario, advance) for point, scenario in grid.points()}
    return [Row(point, outcome, _speed_up(point, outcomes)) for point, outcome in outcomes.items()]


def _speed_up(point: Point, outcomes: dict[Point, Outcome]) -> float | None:
    off = outcomes.get(replace(point, mode=Mode.OFF))
    return outcomes[point].tokens_per_s / off.tokens_per_s if off and off.tokens_per_s else None


def best(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: row.outcome.tokens_per_s)
