"""The times of a run as distributions, or the ratios of a comparison with their spread.

Needs matplotlib (`pip install paceline[plots]`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.serving.call import Outcome
from bench.serving.figures import TITLES, times_ms


def draw_times(outcomes: Sequence[Outcome], title: str, file: str) -> None:
    """One panel a time: the share of requests (of tokens for ITL) that took at most so long."""
    figure, panels = _figure(len(TITLES))
    times = times_ms([outcome for outcome in outcomes if not outcome.error])
    for axes, (name, (short, _)) in zip(panels, TITLES.items(), strict=True):
        values = sorted(times[name])
        shares = [(i + 1) / len(values) for i in range(len(values))]
        axes.step(values, shares, where="post")
        axes.set(xlabel=f"{short} (ms)", ylim=(0, 1.02), xlim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="share of requests; of tokens for ITL")
    _save(figure, title, file)


def draw_comparison(figures: Sequence[Mapping[str, Any]], base: str, title: str, file: str) -> None:
    """A box a mode: its rounds' speed over the baseline's; then its tokens a second."""
    figure, (ratios, speeds) = _figure(2)
    modes = [of["mode"] for of in figures]
    places = list(range(len(modes)))
    ratios.boxplot([of["ratios"] for of in figures], positions=places, showfliers=True)
    ratios.axhline(1, color="grey", linewidth=0.8)
    ratios.set(ylabel=f"tokens/s over {base}'s, round by round")
    speeds.bar(places, [of["output_throughput"] for of in figures])
    speeds.set(ylabel="output tokens/s")
    for axes in (ratios, speeds):
        axes.set_xticks(places, modes)
        axes.grid(alpha=0.3, axis="y")
    _save(figure, title, file)


def _figure(num_panels: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * num_panels + 1, 3.8), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    return figure, figure.subplots(1, num_panels)


def _save(figure: Any, title: str, file: str) -> None:
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=150)
