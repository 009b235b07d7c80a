"""Where a round goes: everything that is neither drafting nor verifying, hop by hop.

    paceline bench overhead

Drafter, verifier and coordinator run as processes of their own, each with a stopwatch at the seams that a message
passes (bench/marks.py). In mode `sequential` nothing overlaps, so a round is drafting, verifying and the hops of this
table, one after the other. In `pearl` the hops are the same and run beside the work: a draft waits at the verifier for
the pass before its own, so that hop holds waiting too. The pair is served unexpanded: a hop does not depend on what
the models cost, and more rounds are seen. The client is in no round; how late it reads stands below.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import output, system
from bench.hops import NAMES, Round, rounds
from bench.marks import READ, Mark, read_marks
from bench.options import Parser
from bench.processes import child
from paceline.client import Client
from paceline.errors import Unavailable
from paceline.prompts import read_prompts

MODES = ("sequential", "pearl")
ROLES = ("coordinator", "verifier", "drafter")
REGISTERED_WITHIN_S = 60.0


@dataclass
class Runs:
    """What was seen of one mode."""

    request_ids: set[str] = field(default_factory=set)
    read_s: dict[tuple[str, int], float] = field(default_factory=dict)  # when the client read, by where that begins
    added_ms: list[float] = field(default_factory=list)  # one a request, as all below
    coordinator_ms: list[float] = field(default_factory=list)
    verify_wire_ms: list[float] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    client_ms: list[float] = field(default_factory=list)

    def settle(self, marks: Sequence[Mark]) -> None:
        """Read the processes' marks."""
        self.rounds = rounds(marks, self.request_ids)
        for mark in marks:
            read_s = self.read_s.get((mark.request_id, mark.start))
            if (mark.role, mark.seam, mark.message) == ("coordinator", READ, "Verdict") and read_s:
                self.client_ms.append(1e3 * (read_s - mark.at_s))

    def figures(self, mode: str) -> dict[str, list[float]]:
        """Milliseconds by what took them, in the order of the table; a round's hops add up where nothing overlaps."""
        hops = {name: [one.hops[at] for one in self.rounds] for at, name in enumerate(NAMES)}
        return hops | {
            "all of these in a round": [one.beside_ms for one in self.rounds if mode == "sequential"],
            "verifying": [one.verify_ms for one in self.rounds],
            "drafting": [one.draft_ms for one in self.rounds],
            "verdict in, client has read it": self.client_ms,
            "added_ms": self.added_ms,
            "coordinator_ms": self.coordinator_ms,
            "verify_wire_ms": self.verify_wire_ms,
        }


def added_ms(metrics: dict[str, float]) -> float:
    """Milliseconds a round took beyond its drafting and its verification, on average over one request.

    What overlaps is counted once too often, so in `pearl` it may be negative.
    """
    decoding_ms = metrics["e2e_ms"] - metrics["ttft_ms"]
    return (decoding_ms - metrics["draft_ms"] - metrics["verify_ms"]) / metrics["num_drafts"]


@contextmanager
def marked(target: str, drafter: str, folder: str) -> Iterator[Client]:
    """The pair, served by marked processes that leave their marks in `folder` when they end."""

    def start(role: str, *options: str) -> str:
        return stack.enter_context(child("bench.marks", f"{folder}/{role}", role, *options)).address

    with ExitStack() as stack:
        server = start("coordinator", "--tokenizer", target, "--grpc-port", "0", "--port", "off", "--admit-any")
        for role, model in (("verifier", target), ("drafter", drafter)):
            start(role, "--model", model, "--dtype", "float32", "--port", "0", "--coordinator", server)
        client = stack.enter_context(Client(server))
        deadline_s = time.monotonic() + REGISTERED_WITHIN_S
        while len(client.server_info().workers) < 2:
            if time.monotonic() > deadline_s:
                raise Unavailable(f"the workers were not taken in within {REGISTERED_WITHIN_S:g} s")
            time.sleep(0.05)
        yield client


def _run(client: Client, prompt: str, mode: str, max_tokens: int, runs: Runs) -> None:
    read: list[tuple[int, float]] = []  # tokens before it, and when
    num_tokens, request_id = 0, ""
    metrics: dict[str, Any] = {}
    options: Any = {"mode": mode, "length_policy": "fixed:length=4", "ignore_eos": True, "max_tokens": max_tokens}
    for chunk in client.generate(prompt, **options):
        read.append((num_tokens, time.perf_counter()))
        num_tokens += len(chunk.token_ids)
        request_id = request_id or chunk.request_id
        metrics = chunk.metrics or metrics
    runs.request_ids.add(request_id)
    start = int(metrics["num_prompt_tokens"])
    runs.read_s |= {(request_id, start + before): at_s for before, at_s in reversed(read)}
    if metrics["num_drafts"]:  # none where the verifier is so fast that every draft comes late
        runs.added_ms.append(added_ms(metrics))
        runs.coordinator_ms.append(metrics["coordinator_ms"] / metrics["num_drafts"])
        runs.verify_wire_ms.append(metrics["wire_ms"] / metrics["num_drafts"])


def measure(given: argparse.Namespace) -> dict[str, Runs]:
    """Every prompt in every mode in turn; the first prompt once more before that, to warm up."""
    texts = read_prompts(given.prompts)[: given.num_prompts]
    found = {mode: Runs() for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        with marked(given.target, given.drafter, folder) as client:
            for mode in MODES:
                _run(client, texts[0], mode, given.max_tokens, Runs())
            for text in track(texts, "rounds", console=Console(stderr=True)):
                for mode, runs in found.items():
                    _run(client, text, mode, given.max_tokens, runs)
        marks = [mark for role in ROLES for mark in read_marks(f"{folder}/{role}")]
    for runs in found.values():
        runs.settle(marks)
    return found


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """p50 and p90; None if there is nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return {"p50": statistics.median(ordered), "p90": ordered[int(0.9 * (len(ordered) - 1))]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("overhead", __doc__)
    parser.add_argument("--target", default="models/demo-target")
    parser.add_argument("--drafter", default="models/demo-drafter")
    parser.add_argument("--prompts", default="tests/data/gsm8k_dev_12.jsonl")
    parser.add_argument("--num-prompts", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_json()
    given = parser.parse_args(arguments)
    found = measure(given)
    figures = {
        mode: {name: quantiles(values) for name, values in runs.figures(mode).items()} for mode, runs in found.items()
    }
    counts = {mode: len(runs.rounds) for mode, runs in found.items()}
    title = f"milliseconds a round ({', '.join(f'{mode}: {n} rounds' for mode, n in counts.items())}); "
    table = Table(title=f"{title}commit {system.commit()}; {system.machine()}")
    table.add_column("")
    for mode in MODES:
        for column in ("p50", "p90"):
            table.add_column(f"{mode} {column}", justify="right")
    for name in figures[MODES[0]]:
        cells = (
            f"{said[column]:.2f}" if (said := figures[mode][name]) else ""
            for mode in MODES
            for column in ("p50", "p90")
        )
        table.add_row(name, *cells)
    output.console(given.json, 120).print(table)
    output.save(given.json, {"commit": system.commit(), "rounds": counts, "ms": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
