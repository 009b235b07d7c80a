"""`paceline simulate`: how fast would it be? The production core in virtual time, workers and network as told."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.simulator.network import Network
from bench.simulator.plot import check_plot, draw
from bench.simulator.recorded import Profile, measure
from bench.simulator.scenario import DEMO_DRAFT, DEMO_VERIFY, Load, Pool, Scenario
from bench.simulator.sweep import Grid, Row, sweep
from deploy import options
from deploy.options import Parser, UsageError
from deploy.simulate_options import add_load, add_network, add_report, add_workers, cost_file
from paceline.trace import read
from paceline.types import Mode, Rule, StepCost

_WIDTH = 128  # of the table; narrower terminals wrap it
_NUM_REQUESTS, _LENGTH = 32, 6


def run(argv: Sequence[str]) -> int:
    values = parser().parse(argv, os.environ)
    if values.plot:
        check_plot(values.plot)
    if values.length_policy and values.length_policy.name != "fixed":
        fix = "the toy drafters have no entropies to stop at: use fixed:length=N"
        raise UsageError(f"--length-policy={values.length_policy}: {fix}")
    grid = _grid(values)
    console = Console(stderr=values.json, highlight=False, markup=False, emoji=False, width=_WIDTH)
    started_s = time.process_time()
    rows = _run(grid, Console(stderr=True))
    core_s = time.process_time() - started_s
    if values.json:
        print(json.dumps({"seed": grid.base.seed, "rows": [row.figures() for row in rows]}, indent=1))
    console.print(_table(rows, grid))
    num_events = sum(row.outcome.num_events for row in rows)
    cost = f"{num_events:,} events in {core_s:.1f} s of one core ({num_events / core_s:,.0f} a second)"
    console.print(
        f"seed {grid.base.seed}: {cost}; every output was checked against the target's own, and nothing leaked",
        soft_wrap=True,
    )
    if values.plot:
        draw(rows, grid, values.plot)
        console.print(f"drawn to {values.plot}")
    return 0


def _run(grid: Grid, console: Console) -> list[Row]:
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=grid.num_requests)
        return sweep(grid, lambda _: progress.advance(task))


def _grid(values: argparse.Namespace) -> Grid:
    scenario = _scenario(values)
    num_drafters = values.num_drafters or (1,)
    if values.trace:
        profile = measure(read(values.trace))
        print(_say(profile), file=sys.stderr)
        scenario = _with_costs(profile.apply(scenario), values)
        num_drafters = values.num_drafters or (scenario.drafters.num_workers,)
        num_requests = values.num_requests or len(profile.requests)
        scenario = replace(scenario, load=replace(scenario.load, num_requests=num_requests))
        if values.length_policy is None and profile.draft_length:
            scenario = replace(scenario, length=profile.draft_length)
        if values.window is None:
            scenario = replace(scenario, window=profile.window)
    if values.drafters:
        scenario = _with_kinds(scenario, values)
        num_drafters = (scenario.drafters.num_workers,)
    return Grid(scenario, values.modes, values.rtt_ms, num_drafters)


def _with_kinds(scenario: Scenario, values: argparse.Namespace) -> Scenario:
    """The scenario with the kinds of drafters that were given."""
    for name in ("num_drafters", "draft_ms"):
        if getattr(values, name):
            raise UsageError(f"--drafters: says it all; leave --{name.replace('_', '-')} out")
    pools = []
    for kind in values.drafters:
        network = replace(scenario.drafters.network, delay_s=scenario.drafters.network.delay_s + kind.rtt_ms / 2e3)
        cost = replace(scenario.drafters.cost, base_ms=kind.base_ms)
        pools.append(
            replace(
                scenario.drafters,
                num_workers=kind.num_workers,
                cost=cost,
                network=network,
                acceptance=kind.acceptance,
            )
        )
    return replace(scenario, drafters=pools[0], other_drafters=tuple(pools[1:]))


def _say(profile: Profile) -> str:
    verify, draft = profile.verify, profile.draft
    return (
        f"from the trace: {len(profile.requests)} requests, {profile.acceptance:.2f} of tested tokens kept; a pass "
        f"takes {verify.base_ms:.1f} ms + {verify.per_token_ms:.2f} a token, a drafted token {draft.ms(1, 1, 0):.2f} "
        f"ms; one way takes {1e3 * profile.verifier_hop_s:.2f} ms to a verifier, "
        f"{1e3 * profile.drafter_hop_s:.2f} to a drafter"
    )


def _scenario(values: argparse.Namespace) -> Scenario:
    def network(rtt_ms: float) -> Network:
        return Network(
            delay_s=rtt_ms / 2e3,
            jitter_s=values.jitter_ms / 1e3,
            loss=values.drop,
            duplication=values.duplicate,
            stall=values.loss,
            is_ordered=not values.reorder,
        )

    later = (values.restart_s, values.seen_s)
    pools = [
        Pool(num_workers, StepCost(0, 0, 0, 0), places, network(2 * values.hop_ms + rtt_ms), life_s, *later)
        for num_workers, places, rtt_ms, life_s in (
            (values.num_verifiers, values.verifier_places, values.verifier_rtt_ms, values.verifier_life_s),
            (1, values.drafter_places, 0.0, values.drafter_life_s),
        )
    ]
    load = Load(
        num_requests=values.num_requests or _NUM_REQUESTS,
        concurrency=values.concurrency,
        rate_per_s=values.rate,
        burst=values.burst,
        prompt_tokens=values.prompt_tokens,
        max_tokens=values.max_tokens,
    )
    scenario = Scenario(
        seed=values.seed,
        rule=None if values.rule == "auto" else Rule(values.rule),
        length=int(values.length_policy["length"]) if values.length_policy else _LENGTH,
        window=values.window,
        acceptance=values.acceptance,
        verifiers=pools[0],
        drafters=pools[1],
        load=load,
        coordinator_s=values.coordinator_ms / 1e3,
        max_events=values.max_events,
    )
    return _with_costs(scenario, values, verify=DEMO_VERIFY, draft=DEMO_DRAFT)


def _with_costs(
    scenario: Scenario, values: argparse.Namespace, verify: StepCost | None = None, draft: StepCost | None = None
) -> Scenario:
    """The scenario with the costs that were given; else with `verify` and `draft`; else with those it has."""
    given = cost_file(values.cost) if values.cost else {}
    verify = _cost(values.verify_ms) or given.get("verifier") or verify or scenario.verifiers.cost
    draft = _cost(values.draft_ms) or given.get("drafter") or draft or scenario.drafters.cost
    return replace(
        scenario,
        verifiers=replace(scenario.verifiers, cost=verify),
        drafters=replace(scenario.drafters, cost=draft),
    )


def _cost(numbers: tuple[float, ...] | None) -> StepCost | None:
    return StepCost(*(*numbers, 0.0, 0.0, 0.0)[:4]) if numbers else None


def _table(rows: Sequence[Row], grid: Grid) -> Table:
    load = grid.base.load
    how = f"{load.rate_per_s:g} a second" if load.rate_per_s else f"{load.concurrency} at a time"
    view = Table(
        title=f"{load.num_requests} requests, {how}; verifiers: {grid.base.verifiers.num_workers}; drafts of "
        f"{grid.base.length} tokens; virtual time",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    names: tuple[str, ...] = (
        "RTT ms",
        "drafters",
        "mode",
        "tokens/s",
        "speed-up",
        "of oracle",
        "kept/\ntested",
        "passes/\ntoken",
    )
    names += ("ttft ms\np50", "e2e ms\np50", "e2e ms\np99", "verifier\nbusy", "drafter\nbusy", "not\nserved")
    for name in names:
        view.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    for row in rows:
        view.add_row(*_cells(row, grid))
    return view


def _cells(row: Row, grid: Grid) -> list[str]:
    point, outcome, figures = row.point, row.outcome, row.outcome.figures()
    ttft, e2e = figures["ttft_ms"] or {}, figures["e2e_ms"] or {}
    verifier_s = outcome.seconds * grid.base.verifiers.num_workers
    return [
        f"{point.rtt_ms:g}",
        f"{point.num_drafters}",
        point.mode_name,
        f"{outcome.tokens_per_s:,.1f}",
        _number(row.speed_up, ".2f"),
        _number(outcome.oracle_share, ".2f"),
        _number(figures["accepted_per_tested"], ".2f"),
        _number(figures["passes_per_token"], ".2f"),
        _number(ttft.get("p50"), ".0f"),
        _number(e2e.get("p50"), ".0f"),
        _number(e2e.get("p99"), ".0f"),
        _number(outcome.busy_s["v"] / verifier_s if verifier_s else None, ".0%"),
        _number(outcome.busy_s["d"] / (outcome.seconds * point.num_drafters) if outcome.seconds else None, ".0%"),
        f"{outcome.num_refused + outcome.num_failed}",
    ]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def parser() -> Parser:
    it = Parser(
        "simulate",
        """How fast would it be? Simulates a deployment in virtual time, before you build it.

The coordinator's core, the placement, the batching and both sessions are the ones that serve; only models, network and
clock are made up. So a world shows what the protocol does under distance, load, loss and death, in seconds instead of
hours, and the same seed shows the same world again. Every output is checked against the target's own.

What you must know of your pair: how long a pass of the target and of the drafter takes, and how often a drafted token
is kept. `paceline serve --trace FILE` writes it all down while it serves, and --trace FILE here takes it from there.

  paceline simulate --verify-ms 16,0.33 --draft-ms 1.3 --acceptance 0.81 --rtt-ms 0,10,30,100
  paceline simulate --trace run.trace --rtt-ms 0,50 --plot distance.png
  paceline simulate --num-drafters 1,2,4,8 --concurrency 64 --num-requests 500 --modes off,pearl --plot pool.png
  paceline simulate --drafters 2x1.3,4x8,1x1.3@60:0.5 --concurrency 64 --num-requests 500 --modes off,auto
  paceline simulate --rate 40 --burst 8 --num-requests 2000 --drafter-life-s 20 --loss 0.001 --jitter-ms 3

What it leaves out: processes that share cores, memory for the KV cache, prompts that share a beginning.""",
    )
    add_workers(it)
    add_network(it)
    add_load(it)
    group = it.group("decoding")
    group.add(
        "--modes",
        kind=_modes,
        default=(Mode.OFF, Mode.SEQUENTIAL, Mode.PEARL, Mode.BRANCH),
        shown="off,sequential,pearl,branch",
        metavar="MODE,…",
        help="modes to compare, auto among them; off is what the others are measured against",
    )
    group.add("--rule", kind=options.rule, default="auto", metavar="RULE", help="how drafts are judged")
    group.add(
        "--length-policy",
        kind=options.policy,
        shown="fixed:length=6, or as usual in the trace",
        metavar="fixed:length=N",
        help="tokens of a draft",
    )
    group.add(
        "--window",
        kind=options.auto_or(options.whole(1, 64)),
        shown="auto, or as usual in the trace",
        metavar="N",
        help="drafts in flight",
    )
    add_report(it)
    return it


def _modes(value: str) -> tuple[Mode | None, ...]:
    return tuple(None if name == "auto" else Mode(name) for name in map(options.mode, map(str.strip, value.split(","))))
