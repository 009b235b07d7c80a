from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from bench.plot import check_plot, draw
from paceline.errors import InvalidInput

BUCKETS = [
    {"from_nats": 0.0, "to_nats": 0.1, "num_tested": 9, "acceptance": 1.0, "num_drafts": 0, "accepted_length": None},
    {"from_nats": 3.0, "to_nats": None, "num_tested": 3, "acceptance": 0.4, "num_drafts": 2, "accepted_length": 1.5},
]


def test_a_png_is_written_for_every_temperature_together(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    draw({"T=0": {"by_entropy": BUCKETS}}, "title", str(one))
    draw({"T=0": {"by_entropy": BUCKETS}, "T=1": {"by_entropy": BUCKETS}}, "title", str(two))
    assert one.read_bytes().startswith(b"\x89PNG\r\n")
    assert one.read_bytes() != two.read_bytes()


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check_plot("entropy.png")
    check_plot(str(tmp_path / "new" / "entropy.png"))
    assert (tmp_path / "new").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="its folder cannot be made"):
        check_plot(str(tmp_path / "file" / "entropy.png"))
    with pytest.raises(InvalidInput, match=r"--plot='entropy\.svg': must end in \.png"):
        check_plot("entropy.svg")
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InvalidInput, match=r"pip install 'paceline\[plots\]'"):
        check_plot("entropy.png")
