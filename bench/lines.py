"""Pictures of ratios against distance: a panel for each group, a line for each setting, quartiles as whiskers.

Needs matplotlib; `bench.plot.check_plot` says so before anything is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Panels = Mapping[str, Mapping[str, Sequence["Dot"]]]  # by title, by label


@dataclass(frozen=True, slots=True)
class Dot:
    """A median and its quartiles, or thrice the same where there is one value."""

    x: float
    y: float
    low: float
    high: float


def draw(panels: Panels, *, title: str, xlabel: str, ylabel: str, file: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.8), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    every = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (name, lines) in zip(every, panels.items(), strict=True):
        for label, dots in lines.items():
            whiskers = [[dot.y - dot.low for dot in dots], [dot.high - dot.y for dot in dots]]
            axes.errorbar(
                [dot.x for dot in dots], [dot.y for dot in dots], whiskers, marker="o", capsize=2, label=label
            )
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set(title=name, xlabel=xlabel)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    every[0].set(ylabel=ylabel)
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=110)
