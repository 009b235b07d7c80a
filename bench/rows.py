"""What a draft row costs on the wire and what it keeps, by width and bits; and the drafter's temperature.

    python -m bench.rows

The target writes after the prompts at temperature 1; at each position it wrote, the drafter's row is truncated, rounded
and packed by the shipped functions. *Bytes a position* is the whole protobuf message over the drafts' positions,
tokens and all. *Acceptance* is 1 - TV between the target's row and the one that is sent, which is the probability that
the rule `token` keeps a drafted token; nothing is drawn. No choice here changes the output's law, only these figures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench import output, system
from bench.options import Parser
from paceline import codec, rows
from paceline.prompts import read_prompts
from paceline.tokenizer import Tokenizer
from paceline.types import Draft

WIDTHS = (8, 16, 24, 32, 48, 64, 128, 256)
BITS = (8, 12, 16)
TEMPERATURES = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5)


class Positions(NamedTuple):
    """What both models say where the target wrote."""

    target_probs: Tensor  # [positions, vocab]
    draft_logits: Tensor  # [positions, vocab]
    token_ids: list[int]


class Cost(NamedTuple):
    bytes_a_position: float
    acceptance: float


def write(target: str, drafter: str, texts: Sequence[str], max_tokens: int, seed: int) -> Positions:
    """The target's own samples after the prompts, and both models' rows there."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    load: Any = AutoModelForCausalLM.from_pretrained
    models = [load(name, dtype=torch.float32) for name in (target, drafter)]
    tokenizer = Tokenizer.load(target)
    target_probs, draft_logits, token_ids = [], [], list[int]()
    for text in track(texts, "the target writes", console=Console(stderr=True)):
        prompt = torch.tensor([tokenizer.encode(text)])
        with torch.inference_mode():
            more = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": max_tokens}
            whole = models[0].generate(prompt, attention_mask=torch.ones_like(prompt), **more)
            of_target, of_drafter = (model(whole).logits[0, prompt.shape[1] - 1 : -1] for model in models)
        target_probs.append(of_target.softmax(-1))
        draft_logits.append(of_drafter)
        token_ids += whole[0, prompt.shape[1] :].tolist()
    return Positions(torch.cat(target_probs), torch.cat(draft_logits), token_ids)


def acceptance(target_probs: Tensor, draft_probs: Tensor) -> float:
    """The mean over rows of sum_x min(target, draft) = 1 - TV."""
    return float(torch.minimum(target_probs.double(), draft_probs.double()).sum(-1).mean())


def cost(at: Positions, width: int, bits: int, temperature: float, draft_length: int) -> Cost:
    """Rows of `width` and `bits`, sent in drafts of `draft_length` tokens."""
    ids, counts = rows.truncate((at.draft_logits / temperature).softmax(-1), width, bits)
    num_bytes = 0
    for start in range(0, len(ids), draft_length):
        some = slice(start, start + draft_length)
        packed = rows.pack(ids[some], counts[some], bits)
        draft = Draft("0" * 32, 1, start, tuple(at.token_ids[some]), True, packed, 1.0)
        num_bytes += codec.draft_to_wire(draft).ByteSize()
    sent = rows.dense(ids, counts.double() / rows.total(bits), at.target_probs.shape[-1])
    return Cost(num_bytes / len(ids), acceptance(at.target_probs, sent))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("rows", __doc__)
    parser.add_argument("--target", default="models/demo-target")
    parser.add_argument("--drafter", default="models/demo-drafter")
    parser.add_argument("--prompts", default="tests/data/gsm8k_dev_12.jsonl")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--draft-length", type=int, default=8)
    parser.add_argument("--width", type=int, default=64, help="of the rows at each temperature")
    parser.add_argument("--bits", type=int, default=12, help="likewise")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_json()
    given = parser.parse_args(arguments)
    at = write(given.target, given.drafter, read_prompts(given.prompts), given.max_tokens, given.seed)
    full = acceptance(at.target_probs, at.draft_logits.softmax(-1))
    by_row = {
        (width, bits): cost(at, width, bits, 1.0, given.draft_length)
        for width in track(WIDTHS, "rows", console=Console(stderr=True))
        for bits in BITS
    }
    by_temperature = {
        temperature: cost(at, given.width, given.bits, temperature, given.draft_length) for temperature in TEMPERATURES
    }
    console = output.console(given.json, 100)
    console.print(
        f"{len(at.token_ids)} positions, vocabulary {at.target_probs.shape[-1]}, drafts of {given.draft_length}, "
        f"request temperature 1, seed {given.seed}; full rows: acceptance {full:.4f}; commit {system.commit()}"
    )
    console.print(_by_row(by_row))
    console.print(_by_temperature(by_temperature, given.width, given.bits))
    if given.json:
        figures = {
            "num_positions": len(at.token_ids),
            "full_acceptance": full,
            "rows": [{"width": width, "bits": bits, **found._asdict()} for (width, bits), found in by_row.items()],
            "temperatures": {str(key): found._asdict() for key, found in by_temperature.items()},
        }
        output.save(given.json, figures)
    return 0


def _by_row(found: dict[tuple[int, int], Cost]) -> Table:
    table = Table(title="bytes a position / acceptance, by entries kept of a row and bits of each")
    table.add_column("width", justify="right")
    for bits in BITS:
        table.add_column(f"{bits} bits", justify="right")
    for width in WIDTHS:
        cells = (found[width, bits] for bits in BITS)
        table.add_row(str(width), *(f"{one.bytes_a_position:.1f} / {one.acceptance:.4f}" for one in cells))
    return table


def _by_temperature(found: dict[float, Cost], width: int, bits: int) -> Table:
    table = Table(title=f"the drafter's temperature, rows of {width} entries and {bits} bits")
    for column in ("draft temperature", "acceptance", "bytes a position"):
        table.add_column(column, justify="right")
    for temperature, one in found.items():
        table.add_row(f"{temperature:g}", f"{one.acceptance:.4f}", f"{one.bytes_a_position:.1f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
