"""The sweep's points, pairs and report, with runs that only say how fast they were."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from bench.rate import Arrivals
from bench.sweep import DEATHS, Point, Report, Row, draw, grid, measure
from paceline.errors import InvalidInput


def given(**options: object) -> argparse.Namespace:
    settings = {"target": "t", "drafter": "d", "parameters": "0", "prompts": "p", "pairs": 2, "seconds": 1.0}
    return argparse.Namespace(**settings | {"dtype": "a", "drafter_dtype": "b", "json": None} | options)


def measured(point: Point, num_pairs: int) -> tuple[Row, list[tuple[str, str | None]]]:
    """The row, and what was run for it; every run is a token a second faster than the one before."""
    runs: list[tuple[str, str | None]] = []

    async def run(mode: str, death: str | None) -> tuple[float, Counter[str]]:
        runs.append((mode, death))
        return float(len(runs)), Counter({"pearl": 1})

    return asyncio.run(measure(point, num_pairs, run)), runs


def test_the_grid_has_every_combination_and_changes_drafters_least() -> None:
    points = grid(given(drafters=("good", "dead"), rtt_ms=(0.0, 10.0), concurrency=(1, 4)))
    assert len(set(points)) == 8
    assert [point.drafter for point in points] == ["good"] * 4 + ["dead"] * 4


def test_pairs_take_turns_behind_a_run_that_does_not_count() -> None:
    row, runs = measured(Point("good", 0, 1), 2)
    assert [mode for mode, _ in runs] == ["auto", "off", "auto", "auto", "off"]
    assert (row.off, row.auto) == ([2.0, 5.0], [3.0, 4.0]), "the first run is in neither"
    assert row.ratios == [3 / 2, 4 / 5]
    assert row.modes == Counter(pearl=2)


def test_a_dead_drafter_dies_in_every_way_and_only_beside_auto() -> None:
    row, runs = measured(Point("dead", 0, 1), 3)
    assert tuple(row.deaths) == DEATHS
    assert [death for mode, death in runs if mode == "auto"] == list(DEATHS)
    assert not any(death for mode, death in runs if mode == "off")


def test_a_sweep_that_was_cut_short_goes_on_and_one_of_other_settings_does_not(tmp_path: Path) -> None:
    options = given(json=str(tmp_path / "sweep.json"))
    row = measured(Point("random", 10.0, 4), 2)[0]
    Report(options).add(row)
    assert Report(options).rows == {row.point: row}
    held = json.loads((tmp_path / "sweep.json").read_text())
    assert held["rows"][0]["ratio"] == pytest.approx((3 / 2 + 4 / 5) / 2)
    with pytest.raises(InvalidInput, match="other settings"):
        Report(given(json=options.json, seconds=2.0))


def test_the_rate_goes_from_arrival_to_arrival() -> None:
    """Ten tokens every second, in one piece: a window that is no whole number of seconds must not show."""
    came = Arrivals([(float(second), 10) for second in range(9)])
    assert came.rate(1.5, 4.4) == 10.0
    assert came.rate(1.5, 4.9) == 10.0
    assert came.rate(8.1, 9.0) == 0.0, "nothing came"


def test_a_sweep_is_drawn_with_a_panel_for_each_drafter(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = measured(Point("good", 0.0, 1), 2)[0]
    draw([row, measured(Point("dead", 0.0, 1), 3)[0]], str(tmp_path / "two.png"))
    draw([row], str(tmp_path / "one.png"))
    assert (tmp_path / "two.png").read_bytes() != (tmp_path / "one.png").read_bytes()
