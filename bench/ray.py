"""The same pair through Ray and as plain processes: tokens/s side by side, and how long the pools take to follow load.

    paceline bench ray

First both deployments run at once, one drafter and one verifier each, and take turns prompt by prompt: Ray's own
processes idle beside both of them. Then the plain one ends, and the pools under Ray may grow: clients come all at once,
and what is measured is the time until each new worker is registered with the coordinator, which from then on uses it.
Every request is checked, and one that fails is counted as lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import output, row, system
from bench.options import Parser
from bench.row import Row, Sample, Setting, quartiles, ratios, take_turns
from paceline.client import Client
from paceline.errors import PacelineError, Unavailable
from paceline.prompts import read_prompts
from paceline.tokenizer import Tokenizer
from paceline.types import Role, Tokens

KV_CACHE = "128MiB"
SHARES = ("coordinator.num_cpus=0.1", "verifiers.num_cpus=0.1", "pools.drafters.num_cpus=0.1")
ADMIT = "coordinator.options.admit-any=true"  # what is measured is who comes, not who pays
POLL_S = 0.05


def paceline(*arguments: str) -> Any:
    """What `paceline ray … --json` prints. Raises Unavailable."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "ray", *arguments, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Unavailable(f"paceline ray {arguments[0]} ended with code {done.returncode}; its message says why")
    return json.loads(done.stdout.splitlines()[-1])


def up(given: argparse.Namespace, *settings: str) -> str:
    """The coordinator's address of the application as these settings have it."""
    cache = (f"verifiers.options.kv-cache-memory={KV_CACHE}", f"pools.drafters.options.kv-cache-memory={KV_CACHE}")
    pair = ("--target", given.target, "--drafter", given.drafter, "--num-cpus", "8")
    return str(paceline("up", *pair, "--set", *SHARES, ADMIT, *cache, *settings)["grpc"])


@contextlib.contextmanager
def on_ray(given: argparse.Namespace) -> Iterator[str]:
    """A drafter and a verifier on a cluster of this machine, which ends with the context."""
    try:
        yield up(given)
    finally:
        paceline("down")


def side_by_side(given: argparse.Namespace, on: str, prompts: Sequence[Tokens]) -> list[Row[Setting]]:
    """Rows of plain processes, then of Ray, for each mode."""
    rows = [Row(Setting(f"{mode} {how}", mode)) for mode in given.modes for how in ("processes", "ray")]
    options = ("--kv-cache-memory", KV_CACHE)
    with system.serve(given.target, given.drafter, *options) as plain, Client(plain) as one, Client(on) as other:

        def sample(setting: Setting, prompt: Tokens) -> Sample:
            client = one if setting.name.endswith("processes") else other
            return row.complete(client, setting, prompt, max_tokens=given.max_tokens, temperature=0.0)

        for number, prompt in enumerate([prompts[0], *prompts]):
            take_turns(rows, prompt, number, sample, keep=number > 0)
    return rows


class Clients:
    """So many at once, each with one request after another until `stop`."""

    def __init__(self, address: str, num: int, prompts: Sequence[Tokens], mode: str, max_tokens: int) -> None:
        self.num_done, self.num_lost = 0, 0
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._ask = (address, prompts, mode, max_tokens)
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(num)]
        for thread in self._threads:
            thread.start()

    def _run(self, first: int) -> None:
        address, prompts, mode, max_tokens = self._ask
        with Client(address) as client:
            at = first
            while not self._stopped.is_set():
                try:
                    client.complete(prompts[at % len(prompts)], max_tokens=max_tokens, mode=mode, ignore_eos=True)
                except PacelineError:
                    self._count(lost=1)
                self._count(done=1)
                at += 1

    def _count(self, *, done: int = 0, lost: int = 0) -> None:
        with self._lock:
            self.num_done += done
            self.num_lost += lost

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def follow(address: str, role: Role, counts: Sequence[int], within_s: float) -> list[float]:
    """Seconds from now until the coordinator has so many workers of the role, for each count in turn."""
    started_s = time.monotonic()
    took_s: list[float] = []
    with Client(address) as client:
        while len(took_s) < len(counts) and time.monotonic() < started_s + within_s:
            roles = [worker.role for worker in client.server_info().workers if not worker.is_draining]
            while len(took_s) < len(counts) and roles.count(role) == counts[len(took_s)]:
                took_s.append(time.monotonic() - started_s)
            time.sleep(POLL_S)
    return took_s


def steps(given: argparse.Namespace, prompts: Sequence[Tokens]) -> list[dict[str, Any]]:
    """A load step for each pool, up and down again."""
    address = up(
        given,
        *("pools.drafters.min_replicas=0", "pools.drafters.max_replicas=3", "pools.drafters.requests_per_replica=2"),
        *("pools.drafters.upscale_delay_s=0", "pools.drafters.downscale_delay_s=1"),
        *("verifiers.max_replicas=2", "verifiers.upscale_delay_s=0", "verifiers.downscale_delay_s=1"),
        "verifiers.options.max-num-seqs=10",
    )
    follow(address, Role.DRAFTER, [0], given.within_s)
    follow(address, Role.VERIFIER, [1], given.within_s)
    found = []
    for role, num, mode, counts in ((Role.DRAFTER, 6, "pearl", (1, 2, 3)), (Role.VERIFIER, 9, "off", (2,))):
        clients = Clients(address, num, prompts, mode, given.max_tokens)
        try:
            rise_s = follow(address, role, counts, given.within_s)
        finally:
            clients.stop()
        fall_s = follow(address, role, [0 if role is Role.DRAFTER else 1], given.within_s)
        found.append(
            {
                "pool": str(role),
                "clients": num,
                "counts": list(counts),
                "rise_s": rise_s,
                "fall_s": fall_s,
                "requests": clients.num_done,
                "lost": clients.num_lost,
            }
        )
    return found


def summary(rows: Sequence[Row[Setting]]) -> list[dict[str, Any]]:
    found = []
    for plain, through in zip(rows[::2], rows[1::2], strict=True):
        first, median, third = quartiles(ratios(through, plain))
        found.append(
            {
                "mode": plain.setting.mode,
                "processes_tokens_per_s": plain.tokens_per_s,
                "ray_tokens_per_s": through.tokens_per_s,
                "ratio": median,
                "ratio_quartiles": [first, third],
                "num_pairs": len(plain.samples),
            }
        )
    return found


def show(report: dict[str, Any], console: Console) -> None:
    table = Table(title="tokens/s, taking turns; the ratio is the median of pairs, with quartiles")
    for column in ("mode", "processes", "Ray", "Ray / processes", "pairs"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for each in report["throughput"]:
        low, high = each["ratio_quartiles"]
        ratio = f"{each['ratio']:.3f} ({low:.3f}–{high:.3f})"
        speeds = (f"{each[name]:.1f}" for name in ("processes_tokens_per_s", "ray_tokens_per_s"))
        table.add_row(each["mode"], *speeds, ratio, str(each["num_pairs"]))
    console.print(table)
    for each in report.get("steps", ()):
        rises = ", ".join(f"{s:.1f} s to {n}" for n, s in zip(each["counts"], each["rise_s"], strict=False))
        falls = ", ".join(f"{s:.1f} s" for s in each["fall_s"]) or "not in time"
        console.print(
            f"{each['pool']}s, {each['clients']} clients at once: {rises or 'not in time'}; back again {falls} after "
            f"the last request; {each['requests']} requests, {each['lost']} lost"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("ray", __doc__)
    parser.add_argument("--target", default="models/demo-target")
    parser.add_argument("--drafter", default="models/demo-drafter")
    parser.add_argument("--prompts", default="tests/data/gsm8k_dev_12.jsonl")
    parser.add_argument("--num-prompts", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2, help="turns of every prompt")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--modes", type=lambda text: text.split(","), default=["off", "pearl"], help="(off,pearl)")
    parser.add_argument("--no-steps", action="store_true", help="leave the load steps out")
    parser.add_argument("--within-s", type=float, default=60.0, help="longest wait for a pool to follow")
    parser.add_json()
    given = parser.parse_args(arguments)
    console = output.console(given.json, 120)
    tokenizer = Tokenizer.load(given.target)
    prompts = [tokenizer.encode(text) for text in read_prompts(given.prompts)[: given.num_prompts]]
    report: dict[str, Any] = {"commit": system.commit(), "machine": system.machine(), "arguments": vars(given)}
    console.print(f"commit {report['commit']}; {report['machine']}")
    with on_ray(given) as address:
        report["throughput"] = summary(side_by_side(given, address, prompts * given.rounds))
        if not given.no_steps:
            report["steps"] = steps(given, prompts)
    show(report, console)
    output.save(given.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
