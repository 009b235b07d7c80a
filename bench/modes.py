"""The modes side by side: the served system in every mode and draft length, against plain decoding and against
transformers' assisted generation, prompt by prompt in turn, so that a noisy minute falls on all of them alike.

    paceline bench modes --target models/demo-target --prompts FILE.jsonl

Every row is the same work on the same two cores: the target is expanded to `--parameters` first (extra weights that
contribute nothing, models/expand.py), so that verifying costs what it costs with real pairs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import options, output, row, system
from bench.assisted import SETTINGS, Assisted, Knobs
from bench.options import Parser
from bench.row import Row, Sample, quartiles, ratios, take_turns
from bench.target import expanded
from paceline.client import Client
from paceline.prompts import read_prompts
from paceline.tokenizer import Tokenizer
from paceline.types import Tokens

FIXED = (4, 6, 8, 12)
SVIP = (0.6, 1.2)


@dataclass(frozen=True, slots=True)
class Setting(row.Setting):
    """One row: a mode of ours with its policy, or transformers with its knobs."""

    knobs: Knobs | None = None


def summary(of: Row[Setting], off: Row[Setting]) -> dict[str, Any]:
    """The row's figures; the speed-up over `off` is the median of paired ratios, with the quartiles beside it."""
    first, median, third = quartiles(ratios(of, off))
    out: dict[str, Any] = {
        "setting": asdict(of.setting),
        "tokens_per_s": of.tokens_per_s,
        "speed_up": median,
        "speed_up_quartiles": [first, third],
    }
    if of.completions() and of.total("num_tested_tokens"):
        out |= of.figures()
    return out


def settings(given: argparse.Namespace) -> list[Setting]:
    """What is compared: `off` first, it is what the others are measured against."""
    policies = [f"fixed:length={n}" for n in given.lengths] + [f"svip:threshold_nats={t:g}" for t in given.svip]
    rows = [Setting("off", "off")]
    rows += [Setting(f"sequential {policy}", "sequential", policy) for policy in policies]
    rows += [
        Setting(f"{mode} {policy} window={window}", mode, policy, window)
        for mode in ("pearl", "branch")
        for policy in policies
        for window in given.windows
    ]
    rows.append(Setting("auto", "auto"))
    if not given.no_assisted:
        rows.append(Setting("transformers plain", knobs=None))
        rows += [Setting(f"transformers assisted {knobs}", knobs=knobs) for knobs in SETTINGS]
    return rows


def run(given: argparse.Namespace, target: str, temperature: float) -> list[Row[Setting]]:
    """Every setting on every prompt, in an order that moves on with each prompt."""
    rows = [Row(setting) for setting in settings(given)]
    token_ids = [Tokenizer.load(target).encode(text) for text in read_prompts(given.prompts)[: given.num_prompts]]
    dtypes = ("--dtype", given.dtype, "--drafter-dtype", given.drafter_dtype)
    with (
        system.serve(target, given.drafter, *dtypes) as address,
        Assisted(target, given.drafter, given.dtype, given.drafter_dtype) as assisted,
        Client(address) as client,
        Progress(console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task(f"T={temperature:g}", total=(len(token_ids) + 1) * len(rows))

        def sample(setting: Setting, prompt: Tokens) -> Sample:
            progress.advance(task)
            if not setting.mode:
                return Sample(*assisted.generate(prompt, given.max_tokens, temperature, setting.knobs))
            return row.complete(client, setting, prompt, max_tokens=given.max_tokens, temperature=temperature)

        for number, prompt in enumerate([token_ids[0], *token_ids]):
            take_turns(rows, prompt, number, sample, keep=number > 0)
    return rows


def show(rows: Sequence[Row[Setting]], temperature: float, console: Console) -> None:
    table = Table(
        title=f"temperature {temperature:g}: speed-up is the median of paired ratios over off, with quartiles"
    )
    for column in (
        "setting",
        "tokens/s",
        "speed-up",
        "accepted/tested",
        "passes/token",
        "overlap",
        "verify ms",
        "draft ms",
    ):
        table.add_column(column, justify="left" if column == "setting" else "right", no_wrap=True)
    for of in rows:
        figures = summary(of, rows[0])
        low, high = figures["speed_up_quartiles"]
        names = ("accepted_per_tested", "passes_per_token", "overlap_share", "verify_ms_per_pass", "draft_ms_per_token")
        cells = [f"{figures[name]:.2f}" if name in figures else "" for name in names]
        speed_up = f"{figures['speed_up']:.2f} ({low:.2f}–{high:.2f})"
        table.add_row(of.setting.name, f"{of.tokens_per_s:.1f}", speed_up, *cells)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("modes", __doc__)
    parser.add_argument("--target", default="models/demo-target", help="unexpanded target")
    parser.add_argument("--drafter", default="models/demo-drafter")
    parser.add_argument("--parameters", default="90M", help="expand the target to about this; 0 = leave it")
    parser.add_argument("--prompts", default="tests/data/gsm8k_dev_12.jsonl")
    parser.add_argument("--num-prompts", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--temperatures", type=options.numbers, default=(0.0, 1.0), help="comma separated (0,1)")
    parser.add_argument("--lengths", type=options.integers, default=FIXED, help="fixed draft lengths (4,6,8,12)")
    parser.add_argument("--svip", type=options.numbers, default=SVIP, help="svip thresholds in nats (0.6,1.2)")
    parser.add_argument("--windows", type=options.integers, default=(2,), help="pearl windows in drafts (2)")
    parser.add_argument("--dtype", type=options.dtype, default="auto", help="of the target (auto: what is fast here)")
    parser.add_argument("--drafter-dtype", default="float32", help="float32 is the faster one for 1 M parameters")
    parser.add_argument("--no-assisted", action="store_true", help="leave transformers out")
    parser.add_json()
    given = parser.parse_args(arguments)
    console = output.console(given.json, 170)
    with tempfile.TemporaryDirectory() as folder:
        target = expanded(given.target, given.parameters, Path(folder) / "target")
        report: dict[str, Any] = {"commit": system.commit(), "machine": system.machine(), "arguments": vars(given)}
        console.print(f"commit {report['commit']}; {report['machine']}; target expanded to {given.parameters}")
        for temperature in given.temperatures:
            rows = run(given, target, temperature)
            show(rows, temperature, console)
            report[f"T={temperature:g}"] = [summary(of, rows[0]) for of in rows]
    output.save(given.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
