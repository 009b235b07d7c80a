"""The length policies side by side, in the served system: each one's best parameter is found on one half of the
prompts and reported on the other, in turns, next to plain decoding and to an oracle that stops a draft exactly before
its first rejection (computed, not run).

  paceline bench policies --target models/demo-target --drafter models/demo-drafter --prompts FILE.jsonl
  paceline bench policies --ratio 6,12,25 --temperature 0,1 --max-minutes 30 --plot entropy.png --json > sweep.json
  paceline bench policies --rules token,block --lengths 4,8,16

--ratio expands the target (extra weights that contribute nothing, models/expand.py) until verifying a draft takes
about so many times what drafting a token takes; what was reached is printed. Every prompt is prefilled before the
settings take turns on it, so times are decoding times. Time is shared evenly between ratios and temperatures; what did
not fit into --max-minutes is left out and said so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import calibration, grids, options, oracle, output, plot, policy_report, rules, system
from bench.options import Parser
from bench.row import Row, Sample, Setting, complete, take_turns
from bench.target import DRAFT_LENGTH, Sizer, step_ms
from bench.tuning import Halves, Timer, groups, num_runs, sweep
from paceline.client import Client
from paceline.errors import InvalidInput, PacelineError
from paceline.length_policy import LengthPolicy
from paceline.prompts import read_prompts
from paceline.tokenizer import Tokenizer
from paceline.types import Mode, Role, Rule, Tokens

PROBE_TOKENS = 8
PRIMING_TOKENS = 24  # some four drafts: by then the usual turnaround is theirs
FIXED_SEED = 1  # for the one rule whose output is a function of it


@dataclass(frozen=True, slots=True)
class Target:
    """The folder to serve, and the ratio it stands for, as the report has it."""

    folder: str
    ratio: dict[str, Any] | None = None


@dataclass(slots=True)
class Bench:
    """One run of this program: what was asked for, and where it is shown."""

    given: argparse.Namespace
    prompts: list[Tokens]
    console: Console
    progress: Progress
    timer: Timer
    left_out: list[str]

    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("--dtype", self.given.dtype, "--drafter-dtype", self.given.drafter_dtype)


# --- the sweep


def cells(bench: Bench) -> Iterator[dict[str, Any]]:
    """One cell a ratio and temperature, each with its even share of the time that is left."""
    given = bench.given
    grid = grids.candidates(given.policies)
    num_left = max(1, len(given.ratio)) * len(given.temperature)
    with tempfile.TemporaryDirectory() as folder:
        for target in targets(bench, Path(folder)):
            if bench.timer.left_s <= 0:
                bench.left_out.append(f"{_name(target)}: no time")
                num_left -= len(given.temperature)
                continue
            with (
                system.serve(target.folder, given.drafter, *bench.dtypes) as address,
                Client(address) as client,
            ):
                offered = dict(probed(bench, client, grid))
                for temperature in given.temperature:
                    share = bench.timer.part(1 / num_left)
                    num_left -= 1
                    if share.left_s <= 0:
                        bench.left_out.append(f"{_name(target)}, temperature {temperature:g}: no time")
                        continue
                    yield cell(bench, client, target, temperature, offered, share)


def cell(
    bench: Bench,
    client: Client,
    target: Target,
    temperature: float,
    grid: Mapping[str, Sequence[LengthPolicy]],
    timer: Timer,
) -> dict[str, Any]:
    """All policies at one ratio and temperature."""
    given = bench.given
    halves = Halves.of(bench.prompts)
    rows = groups(grid, given.mode, given.window)
    task = bench.progress.add_task(f"{_name(target)}, T={temperature:g}", total=num_runs(rows, halves))

    def sample(setting: Setting, prompt: Tokens) -> Sample:
        bench.progress.advance(task)
        if setting == oracle.long_drafts():
            # The coordinator waits three usual turnarounds for a draft, and those before were shorter ones.
            client.complete(
                prompt, max_tokens=PRIMING_TOKENS, mode=setting.mode, length_policy=f"fixed:length={oracle.LENGTH // 2}"
            )
        return _complete(bench, client, setting, prompt, temperature)

    def turn(of: Sequence[Row[Setting]], prompt: Tokens, number: int) -> None:
        _prefill(client, prompt)
        take_turns(of, prompt, number, sample)

    found = sweep(rows, oracle.long_drafts(), halves, turn, timer)
    bench.progress.stop_task(task)  # there may have been no time for all
    found_calibration = None
    if found.long and found.long.total("num_tested_tokens"):
        found_calibration = calibrated(bench, found.long, halves.report)
    else:
        found.left_out.append("oracle and calibration: no long draft came in time")
    return {
        "ratio": target.ratio,
        "served": policy_report.served_of(found.best),
        "temperature": temperature,
        "num_prompts": len(found.off.samples),
        "rows": policy_report.rows_of(found, _verify_ms_per_token(client)),
        "tuning": policy_report.tuning_of(found),
        "calibration": found_calibration,
        "left_out": found.left_out,
    }


def targets(bench: Bench, folder: Path) -> Iterator[Target]:
    """The target as it is, or one for each ratio, made when its turn comes."""
    given = bench.given
    if not given.ratio:
        yield Target(given.target)
        return
    draft_ms = step_ms(given.drafter, given.drafter_dtype, 1)
    verify_ms = partial(step_ms, dtype=given.dtype, num_tokens=1 + DRAFT_LENGTH)
    sizer = Sizer(given.target, draft_ms, folder, verify_ms)
    for wanted in given.ratio:
        task = bench.progress.add_task(f"ratio {wanted:g}: sizing the target", total=None)
        near = sizer.near(wanted)
        bench.progress.remove_task(task)
        ratio = {
            "wanted": wanted,
            "reached": near.verify_ms / draft_ms,
            "verify_ms": near.verify_ms,
            "draft_ms": draft_ms,
            "num_parameters": near.num_parameters,
        }
        yield Target(near.folder, ratio)


def probed(
    bench: Bench, client: Client, grid: Mapping[str, Sequence[LengthPolicy]]
) -> Iterator[tuple[str, Sequence[LengthPolicy]]]:
    """The policies that the running drafter offers; what it does not is noted. Also warms the processes up."""
    for name, points in grid.items():
        setting = Setting(name, "sequential", str(points[0]))
        try:
            answer = complete(client, setting, bench.prompts[0], max_tokens=PROBE_TOKENS, temperature=0)
        except InvalidInput as error:
            reason = str(error)
        else:
            if answer.completion and answer.completion.metrics["num_draft_tokens"]:
                yield name, points
                continue
            reason = "the drafter sent nothing under it"
        if (note := f"policy {name}: not offered here: {reason}") not in bench.left_out:
            bench.left_out.append(note)


def calibrated(bench: Bench, long: Row[Setting], prompts: Sequence[Tokens]) -> dict[str, Any] | None:
    """What the draft model's rows say of the outcomes of the long drafts; None where there is no such model."""
    try:
        model = calibration.load_drafter(bench.given.drafter)
    except (OSError, ValueError):
        bench.left_out.append(f"calibration: {bench.given.drafter} is no model whose rows can be computed")
        return None
    pairs = zip(prompts, long.completions(), strict=False)  # there may have been no time for all prompts
    return calibration.figures([calibration.record(model, prompt, completion) for prompt, completion in pairs])


def _complete(
    bench: Bench, client: Client, setting: Setting, prompt: Tokens, temperature: float, rule: str = "", seed: int = 0
) -> Sample:
    rule = rule or bench.given.rule
    if rule == Rule.COUPLED:
        seed = FIXED_SEED
    return complete(
        client,
        setting,
        prompt,
        max_tokens=bench.given.max_tokens,
        temperature=temperature,
        rule=rule,
        seed=seed or None,
    )


def _prefill(client: Client, prompt: Tokens) -> None:
    """Both workers cache the prompt, so that whoever is first in turn does not pay for the others."""
    client.complete(prompt, max_tokens=2, mode=Mode.SEQUENTIAL, length_policy="fixed:length=1")


def _verify_ms_per_token(client: Client) -> float:
    """What a token more in a pass takes, as the verifier has measured by now."""
    costs = [worker.cost for worker in client.server_info().workers if worker.role is Role.VERIFIER]
    return costs[0].per_token_ms if costs and costs[0] else 0.0


def _name(target: Target) -> str:
    return f"ratio {target.ratio['wanted']:g}" if target.ratio else "target as it is"


# --- block against token


def compare_rules(bench: Bench) -> list[dict[str, Any]]:
    """The figures of `bench/rules.py`; acceptance does not depend on what the target costs, so it is taken as it is."""
    given = bench.given
    temperature = max(given.temperature)
    if given.ratio:
        fix = "acceptance does not depend on what the target costs; leave it out with --rules"
        raise InvalidInput("--ratio", given.ratio, fix)
    if temperature == 0:
        raise InvalidInput("--temperature", "0", "rules differ in sampling only; give one over 0, such as 1")
    total = len(bench.prompts) * given.num_seeds * len(given.rules) * len(given.lengths)
    task = bench.progress.add_task("rules", total=total)
    with system.serve(given.target, given.drafter, *bench.dtypes) as address, Client(address) as client:

        def judge(setting: rules.RuleSetting, prompt: Tokens, seed: int) -> Sample:
            bench.progress.advance(task)
            return _complete(bench, client, setting, prompt, temperature, setting.rule, seed)

        found = rules.compare(given.rules, given.lengths, bench.prompts, given.num_seeds, judge, bench.timer)
    if found.num_left_out:
        bench.left_out.append(f"rules: no time for {found.num_left_out} of {len(bench.prompts)} prompts")
    entries = rules.figures(found)
    policy_report.show_rules(entries, temperature, bench.console)
    return entries


# --- the program


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.plot:
        plot.check_plot(given.plot)
    grids.candidates(given.policies)
    errors = Console(stderr=True, width=190)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as progress:
        timer = Timer.lasting(time.perf_counter, 60 * given.max_minutes)
        console = output.console(given.json, 190)
        bench = Bench(given, prompts_of(given), console, progress, timer, [])
        document: dict[str, Any] = {
            "commit": system.commit(),
            "machine": system.machine(),
            "arguments": vars(given),
            "cells": [],
            "rules": [],
            "left_out": bench.left_out,
        }
        console.print(f"commit {document['commit']}; {document['machine']}", highlight=False)
        try:
            if given.rules:
                document["rules"] = compare_rules(bench)
            for found in () if given.rules else cells(bench):
                document["cells"].append(found)
                policy_report.show_cell(found, console)
        except (PacelineError, KeyboardInterrupt) as error:
            if not document["cells"]:
                raise
            # What was measured in half an hour is worth having, with the reason why the rest is missing.
            bench.left_out.append(f"ended early: {error or 'interrupted'}")
    for line in bench.left_out:
        console.print(f"left out: {line}", highlight=False)
    if given.plot:
        draw(document, given.plot)
    output.save(given.json, policy_report.rounded(document))
    is_whole = document["rules"] or len(document["cells"]) == max(1, len(given.ratio)) * len(given.temperature)
    return 0 if is_whole else 1


def draw(document: Mapping[str, Any], file: str) -> None:
    """The first cell of each temperature: what the target costs changes nothing about acceptance."""
    chosen: dict[str, Any] = {}
    for found in document["cells"]:
        if found["calibration"]:
            chosen.setdefault(f"T={found['temperature']:g}", found["calibration"])
    if chosen:
        plot.draw(chosen, f"{document['arguments']['drafter']}, commit {document['commit']}", file)


def prompts_of(given: argparse.Namespace) -> list[Tokens]:
    """The first `--num-prompts` that leave room for the output. Raises InvalidInput if fewer than two do."""
    tokenizer = Tokenizer.load(given.target)
    encoded = (tokenizer.encode(text) for text in read_prompts(given.prompts))
    longest = tokenizer.max_model_len - given.max_tokens
    fitting = [token_ids for token_ids in encoded if 0 < len(token_ids) <= longest][: given.num_prompts]
    if len(fitting) < 2:
        fix = f"needs two prompts of at most {longest} tokens: one half tunes, the other is reported"
        raise InvalidInput("--prompts", given.prompts, fix)
    return fitting


def _parser() -> Parser:
    parser = Parser("policies", __doc__, policy_report.KEYS)
    add = parser.add_argument
    add("--target", default="models/demo-target", help="folder of the target (%(default)s)")
    add("--drafter", default="models/demo-drafter", help="folder of the drafter (%(default)s)")
    add("--prompts", default="tests/data/gsm8k_dev_12.jsonl", help="JSONL, one prompt a line (%(default)s)")
    add("--num-prompts", type=options.count(2), default=24, help="of the file, both halves together (%(default)s)")
    add("--max-tokens", type=options.count(2), default=64, help="of one output (%(default)s)")
    add("--temperature", type=options.values(0, 10), default=(0.0, 1.0), help="comma separated (0,1)")
    add(
        "--ratio",
        type=options.values(1, 1000),
        default=(),
        help="verify/draft times to expand to; none: the target as it is",
    )
    modes = options.names(("sequential", "pearl", "branch"))
    add("--mode", type=modes, default=("sequential", "pearl"), help="comma separated (sequential,pearl)")
    add("--policies", type=options.names(tuple(grids.GRIDS)), default=(), help="comma separated (all that exist)")
    add("--window", type=options.count(1), default=4, help="drafts unverified at a time in pearl (%(default)s)")
    add("--rule", choices=("auto", *Rule), default="auto", help="how drafts are judged (%(default)s)")
    add("--dtype", type=options.dtype, default="auto", help="of the target (auto: what is fast here)")
    add("--drafter-dtype", default="float32", help="of the drafter (%(default)s, the faster one for 1 M parameters)")
    add(
        "--max-minutes",
        type=options.positive,
        default=30.0,
        help="bound of the whole run, but for the prompt under way (%(default)s)",
    )
    parser.add_json("write the figures there, with the keys below")
    add("--plot", metavar="FILE.png", help="draw acceptance and accepted length against entropy (needs matplotlib)")
    only = parser.add_argument_group("block against token, instead of the sweep")
    only.add_argument(
        "--rules", type=options.names(("token", "block")), default=(), help="rules to compare: token,block"
    )
    only.add_argument("--lengths", type=options.counts, default=(4, 8, 16), help="fixed draft lengths (4,8,16)")
    only.add_argument("--num-seeds", type=options.count(1), default=2, help="runs a prompt (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
