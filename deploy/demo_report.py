"""What the demo was asked to do, and how it says what came of it: a table, two sentences, one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from deploy.checks import num_parameters
from deploy.comparison import Figures, Run, Setting
from deploy.model_free import is_model_free
from paceline.types import Mode

_SHORT = ("accepted/\ntested", "accepted\nlength", "overlap", "passes/\ntoken")


@dataclass(frozen=True, slots=True)
class Job:
    """What to show, and with what."""

    target: Path
    drafter: Path
    prompts: tuple[str, ...]
    settings: tuple[Setting, ...]
    max_tokens: int
    dtype: str
    size: str
    cache: Path


@dataclass(frozen=True, slots=True)
class Pass:
    """All prompts in all modes on one set of processes."""

    runs: dict[Mode, list[Run]]
    num_processes: int


def table(rows: dict[Mode, Figures], job: Job, expanded: Path, num_prompts: int) -> Table:
    title = (
        f"{num_prompts} prompts, up to {job.max_tokens} tokens each, greedy, {job.dtype},\n"
        f"target expanded to {millions(expanded)} parameters; speed-ups: median over the prompts"
    )
    view = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for column in ("mode", "tokens/s", "speed-up", "min–max", *_SHORT):
        view.add_column(column, justify="left" if column == "mode" else "right")
    for mode, one in rows.items():
        is_off = mode is Mode.OFF
        view.add_row(
            mode,
            f"{one.tokens_per_s:.1f}",
            f"{one.speed_up:.2f}",
            "–" if is_off else f"{one.speed_up_min:.2f}–{one.speed_up_max:.2f}",
            "–" if one.accepted_per_tested is None else f"{one.accepted_per_tested:.2f}",
            "–" if one.mean_accepted_length is None else f"{one.mean_accepted_length:.2f}",
            "–" if is_off else f"{one.overlap_share:.0%}",
            f"{one.target_passes_per_token:.2f}",
        )
    return view


def tell_flips(console: Console, flipped: Sequence[int], dtype: str) -> None:
    if flipped:
        which = ", ".join(str(i + 1) for i in flipped)
        console.print(
            f"In {dtype} the modes differ on prompt {which}: two tokens nearly tied, and rounding, which depends on "
            "how many tokens a pass has, chose. float32 below is the proof.",
            soft_wrap=True,
        )
    else:
        console.print(f"In {dtype}, too, all modes wrote the same tokens.")


def report(
    job: Job,
    fast: Pass,
    rows: dict[Mode, Figures],
    expanded: Path,
    wrong: Sequence[int],
    flipped: Sequence[int],
    seconds: float,
) -> dict[str, object]:
    return {
        "modes": {str(mode): one.to_json() for mode, one in rows.items()},
        "identical_greedy": not wrong,
        f"identical_in_{job.dtype}": not flipped,
        "processes": fast.num_processes,
        "target_parameters": num_parameters(expanded),
        "target_expanded_from": num_parameters(job.target),
        "drafter_parameters": 0 if is_model_free(str(job.drafter)) else num_parameters(job.drafter),
        "dtype": job.dtype,
        "num_prompts": len(fast.runs[Mode.OFF]),
        "max_tokens": job.max_tokens,
        "seconds": round(seconds, 1),
    }


def millions(folder: Path) -> str:
    return f"{num_parameters(folder) / 1e6:.1f} M"
