from __future__ import annotations

from pathlib import Path

import pytest

from bench.target import MAX_TRIALS, Sized, Sizer, expand_to, next_size
from paceline.errors import InvalidInput

TARGET = str(Path(__file__).parents[2] / "models" / "demo-target")
DRAFT_MS = 1.0


class Machine:
    """A pass takes 2 ms and 0.3 ms for every million parameters."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def verify_ms(self, folder: str) -> float:
        size = 5.8e6 if folder == TARGET else float(folder.rpartition("-")[2])
        return 2 + 0.3 * size / 1e6

    def grow(self, _: str, num_parameters: int, output: Path) -> Sized:
        self.made.append(num_parameters)
        return Sized(str(output), num_parameters, 0.0)

    def sizer(self) -> Sizer:
        return Sizer(TARGET, DRAFT_MS, Path("build"), self.verify_ms, grow=self.grow)


@pytest.mark.parametrize("ratio", [6, 12, 25, 40])
def test_a_size_is_found_whose_verify_time_is_about_the_wanted_multiple(ratio: float) -> None:
    machine = Machine()
    found = machine.sizer().near(ratio)
    assert found.verify_ms / DRAFT_MS == pytest.approx(ratio, rel=0.1)
    assert len(machine.made) <= MAX_TRIALS


def test_what_was_measured_for_one_ratio_serves_the_next() -> None:
    machine = Machine()
    sizer = machine.sizer()
    first = sizer.near(12)
    num_made = len(machine.made)
    assert sizer.near(12.5) is first
    assert len(machine.made) == num_made
    sizer.near(25)
    assert len(machine.made) <= num_made + 1


def test_below_the_target_as_it_is_there_is_nothing_to_try() -> None:
    machine = Machine()
    assert machine.sizer().near(1.5).folder == TARGET
    assert machine.made == []


def test_a_size_that_no_shape_has_leaves_the_nearest_known_one(tmp_path: Path) -> None:
    machine = Machine()

    def cannot(target: str, num_parameters: int, output: Path) -> Sized:
        raise InvalidInput("--target", target, "no shape")

    sizer = Sizer(TARGET, DRAFT_MS, tmp_path, machine.verify_ms, grow=cannot)
    assert sizer.near(25).folder == TARGET


def test_a_tiny_target_gets_a_size_of_its_own_order() -> None:
    assert next_size([Sized("tiny", 30_000, 1.0)], 2.0) == 60_000


def test_times_that_contradict_one_another_end_the_search() -> None:
    same = [Sized("a", 10**7, 5.0), Sized("b", 2 * 10**7, 5.0)]
    assert next_size(same, 9.0) is None
    backwards = [Sized("a", 10**7, 5.0), Sized("b", 2 * 10**7, 4.0)]
    guess = next_size(backwards, 9.0)
    assert guess is None or guess >= 10**7


def test_a_target_that_cannot_be_expanded_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"--ratio needs a target that can be expanded.*config\.json"):
        Sizer(str(tmp_path), DRAFT_MS, tmp_path, lambda folder: 1.0)
    with pytest.raises(InvalidInput, match="cannot be expanded to 1,000"):
        expand_to(TARGET, 1000, tmp_path / "out")
