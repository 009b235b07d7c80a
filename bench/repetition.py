"""Drafters without a model, where text repeats itself and where it does not: counts only, whatever the machine.

    python -m bench.repetition --prompts FILE.jsonl

FILE holds problems with answers, as GSM8K does. Each becomes three prompts: the question alone; the problem with its
answer and the same question again; the same with every number of the second question one larger, so that the answer is
an edit of one that stands in the prompt. Greedy, as served, each drafter on the same prompts. `asked again` is the
first kind once more, over the same stream: what sharing between requests is for.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import output, system
from bench.options import Parser
from paceline.client import Client
from paceline.prompts import question

DRAFTERS: dict[str, tuple[str, ...]] = {
    "models/demo-drafter": (),
    "prompt-lookup": (),
    "suffix": (),
    "suffix, shared": ("--share-between-requests",),
}
FIGURES = ("accepted / tested", "passes / token", "wasted / drafted", "accepted / draft")


def prompts(file: str, num_problems: int) -> dict[str, list[str]]:
    """The prompts of each kind."""
    problems = [json.loads(line) for line in Path(file).read_text("utf-8").splitlines()[:num_problems]]
    alone = [question(each["question"]) for each in problems]
    solved = [f"{prompt} {each['answer']}\n" for prompt, each in zip(alone, problems, strict=True)]
    return {
        "alone": alone,
        "repeated": [first + again for first, again in zip(solved, alone, strict=True)],
        "edited": [first + _edited(again) for first, again in zip(solved, alone, strict=True)],
        "asked again": alone,
    }


def _edited(text: str) -> str:
    return re.sub(r"\d+", lambda number: str(int(number[0]) + 1), text)


def run(given: argparse.Namespace, drafter: str) -> dict[str, dict[str, float]]:
    """The figures of each kind of prompt."""
    name, options = drafter.partition(",")[0], DRAFTERS[drafter]
    found = {}
    with (
        system.serve(given.target, name, "--dtype", "float32", *options) as address,
        Client(address) as client,
    ):
        for kind, texts in prompts(given.prompts, given.num_problems).items():
            total: Counter[str] = Counter()
            for text in track(texts, f"{drafter}: {kind}", console=Console(stderr=True)):
                metrics = client.complete(
                    text, max_tokens=given.max_tokens, mode=given.mode, length_policy=given.length_policy
                ).metrics
                total.update({key: value for key, value in metrics.items() if key.startswith("num_")})
            found[kind] = figures(total)
    return found


def figures(total: Counter[str]) -> dict[str, float]:
    accepted, drafts = total["num_accepted_tokens"], total["num_drafts"]
    pairs = (
        (accepted, total["num_tested_tokens"]),
        (total["num_target_passes"], total["num_generated_tokens"]),
        (total["num_wasted_tokens"], total["num_draft_tokens"]),
        (accepted, drafts),
    )
    return {name: over / under if under else 0.0 for name, (over, under) in zip(FIGURES, pairs, strict=True)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("repetition", __doc__)
    parser.add_argument("--target", default="models/demo-target")
    parser.add_argument("--drafters", nargs="+", default=list(DRAFTERS), choices=list(DRAFTERS))
    parser.add_argument("--prompts", default="tests/data/gsm8k_dev_12.jsonl")
    parser.add_argument("--num-problems", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--mode", default="sequential")
    parser.add_argument("--length-policy", default="fixed:length=8")
    parser.add_json()
    given = parser.parse_args(arguments)
    rows = {drafter: run(given, drafter) for drafter in given.drafters}
    table = Table(
        title=f"greedy, {given.mode}, {given.length_policy}, {given.num_problems} problems; commit {system.commit()}"
    )
    for column in ("drafter", "prompts", *FIGURES):
        table.add_column(column, justify="right" if column in FIGURES else "left")
    for drafter, kinds in rows.items():
        for kind, values in kinds.items():
            table.add_row(drafter, kind, *(f"{values[name]:.2f}" for name in FIGURES))
    output.console(given.json, 120).print(table)
    output.save(given.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
