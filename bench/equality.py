"""Every prompt, every mode, with a good drafter, a random one and none: is greedy output transformers' own?

    paceline bench equality --prompts gsm8k_dev.jsonl

In float32 and with the target as it is, through the served system's real processes. The tests do the same with a
dozen prompts; this does it with all of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from bench import output, system
from bench.options import Parser
from paceline.client import Client
from paceline.prompts import read_prompts
from paceline.tokenizer import Tokenizer
from paceline.types import Tokens

MODES = ("off", "sequential", "pearl", "branch")


def reference(target: str, prompts: Sequence[Tokens], max_tokens: int) -> list[Tokens]:
    """transformers' greedy continuations."""
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    outputs = []
    for prompt in track(prompts, "transformers", console=Console(stderr=True)):
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
        outputs.append(tuple(out[0, len(prompt) :].tolist()))
    return outputs


def random_drafter(target: str, folder: Path) -> str:
    """A drafter of the target's vocabulary that knows nothing: a quarter of its layers, weights as initialised."""
    config = AutoConfig.from_pretrained(target)
    config.num_hidden_layers = max(1, config.num_hidden_layers // 4)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    for file in Path(target).glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return str(folder)


def compare(
    target: str, drafter: str | None, prompts: Sequence[Tokens], expected: Sequence[Tokens], max_tokens: int
) -> dict[str, int]:
    """By mode, how many of the outputs equal `expected`."""
    options = ("--dtype", "float32", *(() if drafter else ("--num-drafters", "0")))
    equal = dict.fromkeys(MODES, 0)
    with (
        system.serve(target, drafter or target, *options) as address,
        Client(address) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        for mode in MODES:

            def complete(prompt: Tokens, mode: str = mode) -> Tokens:
                return client.complete(prompt, max_tokens=max_tokens, temperature=0, mode=mode).token_ids

            outputs = track(threads.map(complete, prompts), mode, len(prompts), console=Console(stderr=True))
            equal[mode] = sum(a == b for a, b in zip(outputs, expected, strict=True))
    return equal


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("equality", __doc__)
    parser.add_argument("--target", default="models/demo-target")
    parser.add_argument("--drafter", default="models/demo-drafter")
    parser.add_argument("--prompts", nargs="+", default=["tests/data/gsm8k_dev_12.jsonl"])
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_json()
    given = parser.parse_args(arguments)
    tokenizer = Tokenizer.load(given.target)
    texts = [text for file in given.prompts for text in read_prompts(file)]
    longest = tokenizer.max_model_len - given.max_tokens
    prompts = [ids for text in texts if len(ids := tokenizer.encode(text)) <= longest]
    expected = reference(given.target, prompts, given.max_tokens)
    figures: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        drafters = {"demo": given.drafter, "random": random_drafter(given.target, Path(folder)), "none": None}
        for name, drafter in drafters.items():
            figures[name] = compare(given.target, drafter, prompts, expected, given.max_tokens)
    table = Table(title=f"outputs equal to transformers', of {len(prompts)}; commit {system.commit()}")
    for column in ("drafter", *MODES):
        table.add_column(column, justify="right")
    for name, equal in figures.items():
        table.add_row(name, *(str(equal[mode]) for mode in MODES))
    output.console(given.json, 100).print(table)
    output.save(given.json, {"num_prompts": len(prompts), "equal": figures})
    return 0 if all(count == len(prompts) for equal in figures.values() for count in equal.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
