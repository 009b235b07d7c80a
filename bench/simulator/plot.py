"""Pictures of a sweep: speed-up against distance, throughput against drafters per verifier. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.simulator.sweep import Grid, Row
from paceline.errors import InvalidInput


def check_plot(file: str) -> None:
    """Raises InvalidInput at once where drawing would fail after the worlds have run."""
    if not file.endswith(".png"):
        raise InvalidInput("--plot", file, "must end in .png")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InvalidInput("--plot", file, "needs matplotlib: pip install 'paceline[plots]'") from None


def draw(rows: Sequence[Row], grid: Grid, file: str) -> None:
    """One panel for each of the two that was varied; the first if none was."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [_distance] * (len(grid.rtts_ms) > 1 or len(grid.num_drafters) == 1) + [_drafters] * (
        len(grid.num_drafters) > 1
    )
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes, rows, grid)
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
        axes.legend()
    base = grid.base
    title = f"simulated, seed {base.seed}: {base.load.num_requests} requests, drafts of {base.length}"
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=150)


def _distance(axes: Any, rows: Sequence[Row], grid: Grid) -> None:
    num_drafters = grid.num_drafters[0]
    here = [row for row in rows if row.point.num_drafters == num_drafters]
    if any(row.speed_up is None for row in here):
        _lines(axes, here, lambda row: row.point.rtt_ms, lambda row: row.outcome.tokens_per_s)
        axes.set(ylabel="tokens/s")
    else:
        _lines(axes, here, lambda row: row.point.rtt_ms, lambda row: row.speed_up or 0.0)
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set(ylabel="speed-up over off")
    axes.set(xlabel="round trip to the drafter (ms)")


def _drafters(axes: Any, rows: Sequence[Row], grid: Grid) -> None:
    rtt_ms, num_verifiers = grid.rtts_ms[0], grid.base.verifiers.num_workers
    here = [row for row in rows if row.point.rtt_ms == rtt_ms]
    _lines(axes, here, lambda row: row.point.num_drafters / num_verifiers, lambda row: row.outcome.tokens_per_s)
    axes.set(xlabel="drafters per verifier", ylabel="tokens/s of all requests")


def _lines(axes: Any, rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row], float]) -> None:
    for name in dict.fromkeys(row.point.mode_name for row in rows):
        line = [row for row in rows if row.point.mode_name == name]
        axes.plot([x(row) for row in line], [y(row) for row in line], marker="o", label=name)
