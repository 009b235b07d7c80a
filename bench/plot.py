"""Acceptance and accepted length against the draft's entropy, as in the papers on draft length.

Drawn from what `bench/calibration.py` computed offline. Needs matplotlib (`pip install paceline[plots]`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paceline.errors import InvalidInput

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
LAST_BUCKET_NATS = 1.0  # where the bucket without an upper end is drawn: this far beyond its lower one


def check_plot(file: str) -> None:
    """Makes the folder; raises InvalidInput at once where drawing would fail after the measurements."""
    if not file.endswith(".png"):
        raise InvalidInput("--plot", file, "must end in .png")
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput("--plot", file, f"its folder cannot be made: {error.strerror}") from None
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InvalidInput("--plot", file, "needs matplotlib: pip install 'paceline[plots]'") from None


def draw(calibrations: Mapping[str, Mapping[str, Any]], title: str, file: str) -> None:
    """Two panels, one line for each of `calibrations` (by label, as `calibration.figures` gives them)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    acceptance, length = figure.subplots(1, 2)
    for (label, found), colour in zip(calibrations.items(), COLOURS, strict=False):
        buckets = found["by_entropy"]
        _line(acceptance, buckets, "acceptance", "num_tested", label, colour)
        _line(length, buckets, "accepted_length", "num_drafts", label, colour)
    acceptance.set(xlabel="entropy of the draft row (nats)", ylabel="accepted / tested", ylim=(0, 1.05))
    length.set(xlabel="entropy of a draft's first row (nats)", ylabel="accepted tokens of the draft", ylim=(0, None))
    for axes in (acceptance, length):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{title}; entropy computed offline on the recorded output; markers grow with counts", fontsize=9)
    figure.savefig(file, dpi=150)


def _line(axes: Any, buckets: Sequence[Mapping[str, Any]], value: str, count: str, label: str, colour: str) -> None:
    shown = [bucket for bucket in buckets if bucket[value] is not None]
    if not shown:
        return
    places = [_middle(bucket) for bucket in shown]
    values = [bucket[value] for bucket in shown]
    most = max(bucket[count] for bucket in shown)
    axes.plot(places, values, color=colour, label=label)
    axes.scatter(places, values, s=[10 + 90 * bucket[count] / most for bucket in shown], color=colour)


def _middle(bucket: Mapping[str, Any]) -> float:
    low, high = float(bucket["from_nats"]), bucket["to_nats"]
    return (low + (low + 2 * LAST_BUCKET_NATS if high is None else float(high))) / 2
