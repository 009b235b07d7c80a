"""What the benchmarks of failure, overload, fuzzing and churn share: the pair they run, and how they report."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from bench import output, system
from bench.options import Parser


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """With the options that they all have."""
    it = Parser(name, doc)
    it.add_argument("--target", default="models/demo-target")
    it.add_argument("--drafter", default="models/demo-drafter")
    it.add_argument("--prompts", default="tests/data/gsm8k_dev_12.jsonl")
    it.add_argument("--logs", action="store_true", help="show what the processes write on their standard error")
    it.add_json()
    return it


def console(given: argparse.Namespace) -> Console:
    """Where tables go, after a line that says what runs on what."""
    it = output.console(given.json, 130)
    it.print(f"commit {system.commit()}; {system.machine()}")
    return it


def tell_missed(missed: Sequence[str], console: Console) -> None:
    """Which aims were missed, one a line."""
    for miss in missed:
        console.print(f"missed: {miss}", markup=False, soft_wrap=True)


def write(given: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """All figures as JSON, if that is wanted."""
    report = {"commit": system.commit(), "machine": system.machine(), "arguments": vars(given), **figures}
    output.save(given.json, report)
