"""Every mode at every distance: real processes, the drafter behind a proxy that delays what passes (bench/proxy.py).

    python -m bench.distance --rtts 0,5,20,50,100 --num-prompts 8

Coordinator and verifier are next to each other, the drafter is RTT milliseconds away. At each distance every prompt
runs in every mode in turn, so that a noisy minute falls on all of them alike; a speed-up is the ratio to `off` on the
same prompt. The first distance is also what the simulator is told, mode by mode: how long passes and drafted tokens
took, and which were kept. What it then predicts for all distances stands beside what was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import system
from bench.options import numbers
from bench.processes import Child, child, free_port
from bench.simulator.network import Network
from bench.simulator.recorded import Profile, measure
from bench.simulator.scenario import Pool, Scenario, run
from bench.target import expanded
from paceline.client import Client
from paceline.errors import Unavailable
from paceline.prompts import read_prompts
from paceline.trace import Record, read
from paceline.types import Mode, Role, StepCost

MODES = ("off", "sequential", "pearl", "branch", "auto")
REGISTERED_WITHIN_S = 60.0
SETTLE_S = 0.3  # until what was sent at the old distance has arrived


@dataclass
class Row:
    """One mode at one distance."""

    rtt_ms: float
    mode: str
    num_tokens: int = 0
    seconds: float = 0.0
    ratios: list[float] = field(default_factory=list)  # tokens/s over those of `off` on the same prompt
    fallbacks: int = 0
    chosen: list[str] = field(default_factory=list)  # the mode that each request ran in
    simulated: float | None = None  # tokens/s

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds

    def figures(self) -> dict[str, Any]:
        quartiles = statistics.quantiles(self.ratios, n=4) if len(self.ratios) > 1 else [self.ratios[0]] * 3
        return {
            "rtt_ms": self.rtt_ms,
            "mode": self.mode,
            "tokens_per_s": self.tokens_per_s,
            "speed_up": statistics.median(self.ratios),
            "speed_up_quartiles": [quartiles[0], quartiles[2]],
            "fallbacks": self.fallbacks,
            "chosen": {mode: self.chosen.count(mode) for mode in sorted(set(self.chosen))},
            "simulated_tokens_per_s": self.simulated,
            "simulated_over_measured": self.simulated / self.tokens_per_s if self.simulated else None,
        }


@contextmanager
def distant(target: str, given: argparse.Namespace, trace: str) -> Iterator[tuple[Client, Child]]:
    """The served pair with its drafter behind a proxy: a client, and the proxy, whose distance can be changed."""
    with ExitStack() as stack:
        options = ("--dtype", given.dtype, "--num-drafters", "0", "--trace", trace)
        server = stack.enter_context(system.serve(target, given.drafter, *options))
        port = free_port()
        proxy = stack.enter_context(child("bench.proxy", "--to", f"127.0.0.1:{port}", "--control"))
        where = ("--coordinator", server, "--port", str(port), "--advertise", proxy.address)
        stack.enter_context(
            child("deploy.cli", "drafter", "--model", given.drafter, "--dtype", given.drafter_dtype, *where)
        )
        client = stack.enter_context(Client(server))
        deadline_s = time.monotonic() + REGISTERED_WITHIN_S
        while all(worker.role is not Role.DRAFTER for worker in client.server_info().workers):
            if time.monotonic() > deadline_s:
                raise Unavailable(f"the drafter was not taken in within {REGISTERED_WITHIN_S:g} s")
            time.sleep(0.05)
        yield client, proxy


def run_all(given: argparse.Namespace, target: str, trace: str) -> list[Row]:
    """Every mode on every prompt at every distance."""
    rows = [Row(rtt_ms, mode) for rtt_ms in given.rtts for mode in given.modes]
    prompts = read_prompts(given.prompts)[: given.num_prompts]
    with distant(target, given, trace) as (client, proxy), Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("distances", total=len(rows) * (len(prompts) + 1))
        for rtt_ms in given.rtts:
            proxy.tell(f"rtt_ms={rtt_ms:g} jitter_ms={given.jitter_ms:g}")
            time.sleep(SETTLE_S)
            here = [row for row in rows if row.rtt_ms == rtt_ms]
            for number, prompt in enumerate([prompts[0], *prompts]):  # the first one warms up and is not counted
                rates = {}
                for row in here[number % len(here) :] + here[: number % len(here)]:
                    rates[row.mode] = _measure(client, prompt, row, given, number)
                    progress.advance(task)
                for row in here if number else ():
                    row.ratios.append(rates[row.mode] / rates["off"])
    return rows


def _measure(client: Client, prompt: str, row: Row, given: argparse.Namespace, number: int) -> float:
    """Tokens/s of prompt `number`, counted into `row` unless that is 0."""
    answer = client.complete(
        prompt,
        max_tokens=given.max_tokens,
        mode=None if row.mode == "auto" else row.mode,
        length_policy=None if row.mode == "auto" else given.length_policy,
        window=given.window,
        request_id=f"{_prefix(row)}{number}",
    )
    seconds: float = answer.metrics["e2e_ms"] / 1e3
    if number:
        row.num_tokens += len(answer.token_ids)
        row.seconds += seconds
        row.fallbacks += sum(answer.metrics["fallbacks"].values())
        row.chosen.append(answer.metrics["mode"])
    return len(answer.token_ids) / seconds


def _prefix(row: Row) -> str:
    """What the ids of a row's requests begin with, so that a trace tells them apart."""
    return f"{row.mode}-{row.rtt_ms:g}-"


def simulate(rows: Sequence[Row], given: argparse.Namespace, records: Sequence[Record]) -> None:
    """Let the simulator predict every row from what the trace says of the same mode at the first distance."""
    for first in (row for row in rows if row.rtt_ms == given.rtts[0]):
        wanted = {f"{_prefix(first)}{number + 1}" for number in range(given.num_prompts)}
        profile = measure(records, lambda spec, wanted=wanted: spec["request_id"] in wanted)  # type: ignore[misc]
        for row in rows:
            if row.mode == first.mode:
                row.simulated = run(_scenario(profile, row, given)).tokens_per_s


def _scenario(profile: Profile, row: Row, given: argparse.Namespace) -> Scenario:
    """One request at a time, as it was measured, with the drafter as much further away than it was for `profile`."""
    nothing = StepCost(0, 0, 0, 0)
    far = Network((row.rtt_ms - given.rtts[0]) / 2e3, given.jitter_ms / 1e3, is_ordered=True)
    scenario = profile.apply(
        Scenario(
            mode=None if row.mode == "auto" else Mode(row.mode),
            length=int(given.length_policy.rpartition("=")[2]),
            window=given.window,
            verifiers=Pool(1, nothing, network=Network(0.0, is_ordered=True)),
            drafters=Pool(1, nothing, network=far),
        )
    )
    return replace(scenario, load=replace(scenario.load, num_requests=len(profile.requests)))


def show(rows: Sequence[Row], console: Console) -> None:
    table = Table(title="speed-up: median of paired ratios over off at the same distance, with quartiles")
    for column in ("RTT ms", "mode", "tokens/s", "speed-up", "fallbacks", "ran in", "simulated", "simulated/measured"):
        table.add_column(column, justify="left" if column in ("mode", "ran in") else "right", no_wrap=True)
    for row in rows:
        figures = row.figures()
        low, high = figures["speed_up_quartiles"]
        table.add_row(
            f"{row.rtt_ms:g}",
            row.mode,
            f"{row.tokens_per_s:.1f}",
            f"{figures['speed_up']:.2f} ({low:.2f}–{high:.2f})",
            f"{row.fallbacks}",
            ", ".join(figures["chosen"]),
            f"{row.simulated:.1f}" if row.simulated else "–",
            f"{figures['simulated_over_measured']:.2f}" if row.simulated else "–",
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if "off" not in given.modes:
        given.modes = ("off", *given.modes)
    console = Console(width=130)
    console.print(f"commit {system.commit()}; {system.machine()}; target expanded to {given.parameters}")
    with tempfile.TemporaryDirectory() as folder:
        target = expanded(given.target, given.parameters, Path(folder) / "target")
        trace = given.trace or str(Path(folder) / "run.trace")
        rows = run_all(given, target, trace)
        simulate(rows, given, list(read(trace)))
    show(rows, console)
    if given.json:
        report = {"commit": system.commit(), "machine": system.machine(), "arguments": vars(given)}
        Path(given.json).write_text(json.dumps(report | {"rows": [row.figures() for row in rows]}, indent=1))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paceline bench distance", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", default="models/demo-target", help="unexpanded target")
    parser.add_argument("--drafter", default="models/demo-drafter")
    parser.add_argument("--parameters", default="90M", help="expand the target to about this; 0 = leave it")
    parser.add_argument("--prompts", default="tests/data/gsm8k_dev_12.jsonl")
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=96)
    help = "ms, nearest first (0,5,20,50,100)"
    parser.add_argument("--rtts", type=numbers, default=(0.0, 5.0, 20.0, 50.0, 100.0), help=help)
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="each direction adds up to so much")
    parser.add_argument("--modes", type=_modes, default=MODES, help=",".join(MODES))
    parser.add_argument("--length-policy", default="fixed:length=6", help="the simulator knows fixed:length=N only")
    parser.add_argument("--window", type=int, default=4, help="drafts in flight in pearl and branch")
    parser.add_argument("--dtype", default="bfloat16", help="of the target")
    parser.add_argument("--drafter-dtype", default="float32", help="float32 is the faster one for 1 M parameters")
    parser.add_argument("--trace", metavar="FILE", help="keep the trace there, for paceline simulate --trace FILE")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    return parser


def _modes(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in (*Mode, "auto"):
            raise argparse.ArgumentTypeError(f"{name}: unknown; choose from auto, {', '.join(Mode)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
