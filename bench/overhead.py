"""What the coordinator and the wire add to a round: everything that is neither drafting nor verifying.

    paceline bench overhead

In mode `sequential` nothing overlaps, so a request's time after its first token is the sum of its rounds, and a round
is drafting, verifying, and four hops with the coordinator between them. The pair is served unexpanded: a hop does not
depend on what the models cost, and more rounds are seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import system
from paceline.client import Client
from paceline.prompts import read_prompts


def added_ms(metrics: dict[str, float]) -> float:
    """Milliseconds a round took beyond its drafting and its verification, on average over one request."""
    decoding_ms = metrics["e2e_ms"] - metrics["ttft_ms"]
    return (decoding_ms - metrics["draft_ms"] - metrics["verify_ms"]) / metrics["num_drafts"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="paceline bench overhead", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", default="models/demo-target")
    parser.add_argument("--drafter", default="models/demo-drafter")
    parser.add_argument("--prompts", default="tests/data/gsm8k_dev_12.jsonl")
    parser.add_argument("--num-prompts", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    given = parser.parse_args(arguments)
    texts = read_prompts(given.prompts)[: given.num_prompts]
    rounds, own, wire = [], [], []
    with system.serve(given.target, given.drafter, "--dtype", "float32") as address, Client(address) as client:
        client.complete(texts[0], max_tokens=given.max_tokens)
        for text in track(texts, "rounds", console=Console(stderr=True)):
            metrics = client.complete(
                text, max_tokens=given.max_tokens, mode="sequential", length_policy="fixed:length=4", ignore_eos=True
            ).metrics
            rounds.append(added_ms(metrics))
            own.append(metrics["coordinator_ms"] / metrics["num_drafts"])
            wire.append(metrics["wire_ms"] / metrics["num_drafts"])
    figures = {"added_ms": rounds, "coordinator_ms": own, "verify_wire_ms": wire}
    table = Table(title=f"milliseconds a round, {len(texts)} requests; commit {system.commit()}; {system.machine()}")
    for column in ("", "p50", "min", "max"):
        table.add_column(column, justify="right")
    for name, values in figures.items():
        cells = (f"{f(values):.2f}" for f in (statistics.median, min, max))
        table.add_row(name, *cells)
    Console(width=120).print(table)
    if given.json:
        Path(given.json).write_text(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
