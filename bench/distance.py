"""Every mode at every distance: real processes, the drafter behind a proxy that delays what passes (bench/proxy.py).

    paceline bench distance --rtts 0,10,30,100 --lengths 4,8 --num-prompts 8 --plot distance.png

Coordinator and verifier are next to each other, the drafter is RTT milliseconds away. At each distance every prompt
runs in every mode and draft length in turn, so that a noisy minute falls on all of them alike; a speed-up is the ratio
to `off` on the same prompt. The simulator is told, for every point, how long passes and drafted tokens took in it and
which were kept, and what hops cost at the first distance: so beside what was measured stands what the protocol yields
at that distance, whatever else the machine had to do. Of each mode the best length is picked from these same figures,
which flatters all modes alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import lines, output, system
from bench.distant import distant
from bench.options import Parser, counts, dtype, values
from bench.plot import check_plot
from bench.simulator.network import Network
from bench.simulator.recorded import Profile, measure
from bench.simulator.scenario import Pool, Scenario, run
from bench.target import expanded
from paceline.client import Client
from paceline.prompts import read_prompts
from paceline.trace import Record, read
from paceline.types import Mode, Rule, StepCost

MODES = ("off", "sequential", "pearl", "branch", "auto")
DRAFTING = ("sequential", "pearl", "branch")  # in which a draft's length is given
CLOSE = 0.15  # of what was measured: so near the simulator is to be


@dataclass
class Row:
    """One mode at one distance."""

    rtt_ms: float
    mode: str
    length: int = 0  # tokens a draft; 0 where the mode needs none, or chooses
    num_tokens: int = 0
    seconds: float = 0.0
    ratios: list[float] = field(default_factory=list)  # tokens/s over those of `off` on the same prompt
    fallbacks: int = 0
    chosen: list[str] = field(default_factory=list)  # the mode that each request ran in
    simulated: float | None = None  # tokens/s
    oracle: float | None = None  # likewise: a free drafter next door that stops before each rejection

    @property
    def name(self) -> str:
        return f"{self.mode} {self.length}" if self.length else self.mode

    @property
    def speed_up(self) -> float:
        return statistics.median(self.ratios)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds

    def figures(self) -> dict[str, Any]:
        quartiles = statistics.quantiles(self.ratios, n=4) if len(self.ratios) > 1 else [self.ratios[0]] * 3
        return {
            "rtt_ms": self.rtt_ms,
            "mode": self.mode,
            "length": self.length,
            "tokens_per_s": self.tokens_per_s,
            "speed_up": self.speed_up,
            "speed_up_quartiles": [quartiles[0], quartiles[2]],
            "fallbacks": self.fallbacks,
            "chosen": {mode: self.chosen.count(mode) for mode in sorted(set(self.chosen))},
            "simulated_tokens_per_s": self.simulated,
            "simulated_over_measured": self.simulated / self.tokens_per_s if self.simulated else None,
            "oracle_share": self.tokens_per_s / self.oracle if self.oracle else None,
        }


def lay_out(given: argparse.Namespace) -> list[Row]:
    """The rows to be measured: `off` first at every distance, it is what the others are held against."""
    return [
        Row(rtt_ms, mode, length)
        for rtt_ms in given.rtts
        for mode in given.modes
        for length in (given.lengths if mode in DRAFTING else (0,))
    ]


def run_all(given: argparse.Namespace, target: str, trace: str) -> list[Row]:
    """Every row on every prompt at its distance."""
    rows = lay_out(given)
    prompts = read_prompts(given.prompts)[: given.num_prompts]
    with (
        distant(target, "--dtype", given.dtype, "--trace", trace) as far,
        Client(far.server) as client,
        Progress(console=Console(stderr=True)) as progress,
    ):
        far.start("--model", given.drafter, "--dtype", given.drafter_dtype)
        task = progress.add_task("distances", total=len(rows) * (len(prompts) + 1))
        for rtt_ms in given.rtts:
            far.distance(rtt_ms, given.jitter_ms)
            here = [row for row in rows if row.rtt_ms == rtt_ms]
            for number, prompt in enumerate([prompts[0], *prompts]):  # the first one warms up and is not counted
                rates = {}
                for row in here[number % len(here) :] + here[: number % len(here)]:
                    rates[row.name] = _measure(client, prompt, row, given, number)
                    progress.advance(task)
                for row in here if number else ():
                    row.ratios.append(rates[row.name] / rates["off"])
    return rows


def _measure(client: Client, prompt: str, row: Row, given: argparse.Namespace, number: int) -> float:
    """Tokens/s of prompt `number`, counted into `row` unless that is 0."""
    answer = client.complete(
        prompt,
        max_tokens=given.max_tokens,
        temperature=given.temperature,
        mode=None if row.mode == "auto" else row.mode,
        length_policy=f"fixed:length={row.length}" if row.length else None,
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
    return f"{row.mode}-{row.length}-{row.rtt_ms:g}-"


def simulate(rows: Sequence[Row], given: argparse.Namespace, records: Sequence[Record]) -> None:
    """Let the simulator say what every row yields, from its own passes and drafts and the first distance's hops.

    What a drafted token takes beside branches is the simulator's to find: it is told what one takes in `pearl` there.
    """

    def profile(row: Row) -> Profile:
        wanted = {f"{_prefix(row)}{number + 1}" for number in range(given.num_prompts)}
        return measure(records, lambda spec: spec["request_id"] in wanted)

    nearest = {row.name: profile(row) for row in rows if row.rtt_ms == given.rtts[0]}
    for row in rows:
        near = nearest[row.name]
        own = replace(profile(row), verifier_hop_s=near.verifier_hop_s, drafter_hop_s=near.drafter_hop_s)
        plain = [other for other in rows if other.name == f"pearl {row.length}" and other.rtt_ms == row.rtt_ms]
        if row.mode == Mode.BRANCH and plain:
            own = replace(own, draft=profile(plain[0]).draft)
        outcome = run(_scenario(own, row, given))
        row.simulated = outcome.tokens_per_s
        row.oracle = outcome.num_tokens / outcome.oracle_s if outcome.oracle_s else None


def _scenario(profile: Profile, row: Row, given: argparse.Namespace) -> Scenario:
    """One request at a time, as it was measured, with the drafter as much further away than at the first distance."""
    nothing = StepCost(0, 0, 0, 0)
    far = Network((row.rtt_ms - given.rtts[0]) / 2e3, given.jitter_ms / 1e3, is_ordered=True)
    scenario = profile.apply(
        Scenario(
            mode=None if row.mode == "auto" else Mode(row.mode),
            rule=Rule.BLOCK if given.temperature else None,  # as `auto` takes it with a trusted drafter
            length=row.length or 1,
            window=given.window or None,
            verifiers=Pool(1, nothing, network=Network(0.0, is_ordered=True)),
            drafters=Pool(1, nothing, network=far),
        )
    )
    return replace(scenario, load=replace(scenario.load, num_requests=len(profile.requests)))


def best(rows: Sequence[Row], rtt_ms: float, mode: str) -> Row | None:
    """The mode at its own best length there."""
    here = [row for row in rows if (row.rtt_ms, row.mode) == (rtt_ms, mode)]
    return max(here, key=lambda row: row.speed_up, default=None)


def summary(rows: Sequence[Row], pass_ms: float) -> dict[str, Any]:
    """What the aims ask for: modes at their best lengths, held against one another, the oracle and the simulator."""
    places = []
    for rtt_ms in dict.fromkeys(row.rtt_ms for row in rows):
        found = {mode: row for mode in MODES if (row := best(rows, rtt_ms, mode)) is not None}
        sequential, pearl, branch = (found.get(mode) for mode in DRAFTING)
        place: dict[str, Any] = {"rtt_ms": rtt_ms, "best": {mode: row.name for mode, row in found.items()}}
        place["speed_up"] = {mode: row.speed_up for mode, row in found.items()}
        place["oracle_share"] = {mode: row.figures()["oracle_share"] for mode, row in found.items()}
        if sequential and pearl:
            place["pearl_over_sequential"] = _over(pearl, sequential)
        if pearl and branch:
            place["branch_over_pearl"] = _over(branch, pearl)
        places.append(place)
    near = max(places[0]["speed_up"].values())
    like_pass = min(places, key=lambda place: abs(place["rtt_ms"] - pass_ms))
    ratios = [row.simulated / row.tokens_per_s for row in rows if row.simulated]
    return {
        "places": places,
        "pass_ms": pass_ms,
        "rtt_ms_nearest_a_pass": like_pass["rtt_ms"],
        "keeps_of_nearest": max(like_pass["speed_up"].values()) / near,
        "num_simulated": len(ratios),
        "num_simulated_close": sum(abs(ratio - 1) <= CLOSE for ratio in ratios),
    }


def _over(row: Row, other: Row) -> float:
    """The median of the ratios of their rates, prompt by prompt."""
    return statistics.median(a / b for a, b in zip(row.ratios, other.ratios, strict=True))


def say(found: dict[str, Any], console: Console) -> None:
    """The summary in sentences."""
    for place in found["places"]:
        shares, speed_ups = place["oracle_share"], place["speed_up"]
        modes = [f"{name} {speed_ups[mode]:.2f} ({shares[mode] or 0:.2f})" for mode, name in place["best"].items()]
        pairs = [f"; {name.replace('_', ' ')} {place[name]:.2f}" for name in place if "_over_" in name]
        console.print(f"{place['rtt_ms']:g} ms: speed-up (share of the oracle): {', '.join(modes)}{''.join(pairs)}")
    console.print(
        f"a pass takes {found['pass_ms']:.1f} ms; at {found['rtt_ms_nearest_a_pass']:g} ms the best mode keeps "
        f"{found['keeps_of_nearest']:.2f} of its speed-up at the first distance"
    )
    close, num = found["num_simulated_close"], found["num_simulated"]
    console.print(f"simulated within {CLOSE:.0%} of what was measured: {close} of {num} points")


def draw(rows: Sequence[Row], file: str) -> None:
    panels: dict[str, dict[str, list[lines.Dot]]] = {"measured": {}, "simulated": {}}
    for row in rows:
        off = best(rows, row.rtt_ms, "off")
        if row is not best(rows, row.rtt_ms, row.mode) or off is None:
            continue
        low, high = row.figures()["speed_up_quartiles"]
        panels["measured"].setdefault(row.mode, []).append(lines.Dot(row.rtt_ms, row.speed_up, low, high))
        if row.simulated and off.simulated:
            ratio = row.simulated / off.simulated
            panels["simulated"].setdefault(row.mode, []).append(lines.Dot(row.rtt_ms, ratio, ratio, ratio))
    title = f"speed-up of each mode at its best length, measured on real processes and simulated; {system.commit()}"
    labels = {"xlabel": "round trip to the drafter (ms)", "ylabel": "tokens/s over off"}
    lines.draw(panels, title=title, file=file, **labels)


def show(rows: Sequence[Row], console: Console) -> None:
    table = Table(title="speed-up: median of paired ratios over off at the same distance, with quartiles")
    for column in ("RTT ms", "mode", "tokens/s", "speed-up", "fallbacks", "ran in", "simulated", "simulated/measured"):
        table.add_column(column, justify="left" if column in ("mode", "ran in") else "right", no_wrap=True)
    for row in rows:
        figures = row.figures()
        low, high = figures["speed_up_quartiles"]
        table.add_row(
            f"{row.rtt_ms:g}",
            row.name,
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
    if given.plot:
        check_plot(given.plot)
    console = output.console(given.json, 130)
    console.print(f"commit {system.commit()}; {system.machine()}; target expanded to {given.parameters}")
    with tempfile.TemporaryDirectory() as folder:
        target = expanded(given.target, given.parameters, Path(folder) / "target")
        trace = given.trace or str(Path(folder) / "run.trace")
        rows = run_all(given, target, trace)
        records = list(read(trace))
        simulate(rows, given, records)
    pass_ms = measure(records, lambda spec: spec["mode"] == Mode.OFF).verify.ms(1, 1, 0)
    found = summary(rows, pass_ms)
    show(rows, console)
    say(found, console)
    if given.plot:
        draw(rows, given.plot)
    report = {"commit": system.commit(), "machine": system.machine(), "arguments": vars(given)}
    output.save(given.json, report | {"summary": found, "rows": [row.figures() for row in rows]})
    return 0


def _parser() -> Parser:
    parser = Parser("distance", __doc__)
    parser.add_argument("--target", default="models/demo-target", help="unexpanded target")
    parser.add_argument("--drafter", default="models/demo-drafter")
    parser.add_argument("--parameters", default="90M", help="expand the target to about this; 0 = leave it")
    parser.add_argument("--prompts", default="tests/data/gsm8k_dev_12.jsonl")
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    help = "ms, nearest first (0,10,30,100)"
    parser.add_argument("--rtts", type=values(0, 60_000), default=(0.0, 10.0, 30.0, 100.0), help=help)
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="each direction adds up to so much")
    parser.add_argument("--modes", type=_modes, default=MODES, help=",".join(MODES))
    parser.add_argument("--lengths", type=counts, default=(4, 8), help="draft lengths where drafts are made (4,8)")
    parser.add_argument(
        "--window", type=int, default=0, help="drafts in flight in pearl and branch; 0 = what is measured decides"
    )
    parser.add_argument("--dtype", type=dtype, default="auto", help="of the target (auto: what is fast here)")
    parser.add_argument("--drafter-dtype", default="float32", help="float32 is the faster one for 1 M parameters")
    parser.add_argument("--trace", metavar="FILE", help="keep the trace there, for paceline simulate --trace FILE")
    parser.add_json()
    parser.add_argument("--plot", metavar="FILE.png", help="draw speed-ups against distance (needs matplotlib)")
    return parser


def _modes(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in (*Mode, "auto"):
            raise argparse.ArgumentTypeError(f"{name}: unknown; choose from auto, {', '.join(Mode)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
