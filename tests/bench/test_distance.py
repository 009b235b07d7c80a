"""What the distances come to, from rows whose rates are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.distance import Row, best, draw, summary


def row(rtt_ms: float, mode: str, length: int, speed_up: float, simulated: float | None = None) -> Row:
    """One whose rate is 10 times its speed-up."""
    return Row(rtt_ms, mode, length, num_tokens=100, seconds=10 / speed_up, ratios=[speed_up], simulated=simulated)


ROWS = [
    row(0, "off", 0, 1.0, 10.0),
    row(0, "sequential", 4, 2.0, 22.0),
    row(0, "sequential", 8, 2.5, 25.0),
    row(0, "pearl", 4, 3.0, 40.0),
    row(20, "off", 0, 1.0, 10.0),
    row(20, "sequential", 8, 1.2, 12.0),
    row(20, "pearl", 4, 1.8, 18.0),
    row(20, "branch", 4, 2.0, 20.0),
]


def test_each_mode_comes_at_its_own_best_length() -> None:
    found = best(ROWS, 0, "sequential")
    assert found is not None
    assert found.length == 8
    assert best(ROWS, 20, "auto") is None


def test_the_summary_holds_modes_against_one_another_and_the_simulator() -> None:
    found = summary(ROWS, pass_ms=16.0)
    assert [place["pearl_over_sequential"] for place in found["places"]] == pytest.approx([3.0 / 2.5, 1.8 / 1.2])
    assert [place.get("branch_over_pearl") for place in found["places"]] == [None, pytest.approx(2.0 / 1.8)]
    assert found["rtt_ms_nearest_a_pass"] == 20
    assert found["keeps_of_nearest"] == pytest.approx(2.0 / 3.0)
    assert (found["num_simulated_close"], found["num_simulated"]) == (7, 8), "40 for 30 is too far off"


def test_ratios_of_modes_are_paired_by_prompt() -> None:
    pearl, branch = row(10, "pearl", 4, 2.0), row(10, "branch", 4, 2.2)
    pearl.ratios, branch.ratios = [1.0, 2.0, 3.0], [1.1, 2.4, 3.0]
    assert summary([row(10, "off", 0, 1.0), pearl, branch], 16.0)["places"][0]["branch_over_pearl"] == 1.1


def test_distances_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(ROWS, str(tmp_path / "distance.png"))
    assert (tmp_path / "distance.png").read_bytes().startswith(b"\x89PNG")
