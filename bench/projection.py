"""What packing a CPU's weights saves: a linear layer's product as torch computes it, and over packed weights.

    python -m bench.projection

Twelve layers of the target's size take turns, so that none of them stays in a cache; the fastest of several rounds
counts, since what disturbs a measurement only ever makes it slower. One thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import torch
from rich.table import Table
from torch.nn.functional import linear

from bench import output, system
from bench.options import Parser, integers
from paceline.engine.projection import Projection, can_pack

NUM_LAYERS = 12
SHAPE = (2944, 1024)  # a projection of the demo target expanded to 90 M parameters


def fastest_ms(call: Callable[[], object], rounds: int) -> float:
    """Milliseconds a layer."""
    seconds = []
    for _ in range(rounds + 1):
        started_s = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started_s)
    return 1e3 * min(seconds[1:]) / NUM_LAYERS


def row(dtype: torch.dtype, num_rows: int, rounds: int) -> tuple[float, float]:
    """Plain and packed, milliseconds a layer over `num_rows` tokens."""
    weights = [torch.randn(SHAPE).mul_(0.02).to(dtype) for _ in range(NUM_LAYERS)]
    packed = [Projection(weight) for weight in weights]
    inputs = torch.randn(num_rows, SHAPE[1]).to(dtype)
    with torch.inference_mode():
        plain_ms = fastest_ms(lambda: [linear(inputs, weight) for weight in weights], rounds)
        return plain_ms, fastest_ms(lambda: [product(inputs) for product in packed], rounds)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("projection", __doc__)
    parser.add_argument("--rows", type=integers, default=(1, 2, 4, 8, 16, 32, 64), help="tokens in a pass (1,2,4,…)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_json()
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = output.console(given.json, 100)
    console.print(f"commit {system.commit()}; {system.machine()}; weights {SHAPE[0]} x {SHAPE[1]}")
    columns = [f"{name}, {way}" for name in ("float32", "bfloat16") for way in ("ms", "packed", "ratio")]
    table = Table("tokens", *columns)
    figures = []
    for num_rows in given.rows:
        cells = []
        for dtype in (torch.float32, torch.bfloat16):
            plain_ms, packed_ms = row(dtype, num_rows, given.rounds) if can_pack(dtype) else (float("nan"),) * 2
            figures.append({"tokens": num_rows, "dtype": str(dtype), "plain_ms": plain_ms, "packed_ms": packed_ms})
            cells += [f"{plain_ms:.3f}", f"{packed_ms:.3f}", f"{plain_ms / packed_ms:.2f}"]
        table.add_row(str(num_rows), *cells)
    console.print(table)
    output.save(given.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
