"""`paceline bench`: the group of benchmarks."""

from __future__ import annotations

import pytest

from deploy.bench import BENCHMARKS
from deploy.cli import main


def test_the_group_lists_its_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in BENCHMARKS)
    assert main(["bench"]) == 2


def test_an_unknown_benchmark_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "policy"]) == 2
    assert "did you mean policies?" in capsys.readouterr().err


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_explains_itself_under_the_name_it_is_called_by(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: paceline bench {name} " in out
    assert "--json" in out
