"""`paceline bench`: the benchmarks behind docs/benchmarks.md, one sub-command each, imported only when asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from deploy.options import UsageError
from paceline.errors import did_you_mean

# Each is `bench.NAME`, with `main(argv) -> int`.
BENCHMARKS = {
    "serve": "load on a running server, as vllm bench serve measures it; --compare: its modes side by side",
    "policies": "when to stop drafting: every length policy at its best, against an oracle; block against token",
    "modes": "off, sequential and pearl at several draft lengths, against transformers' assisted generation",
    "overhead": "where a round goes beside drafting and verifying, hop by hop",
    "equality": "is greedy output transformers' own, in every mode and with any drafter?",
    "engine": "the verifier's engine alone: tokens/s by concurrency, cost of a step, equality in a short pool",
    "projection": "what packing a CPU's weights saves in a matrix product",
    "rows": "sparse draft rows: bytes on the wire and acceptance by width and bits, acceptance by temperature",
    "repetition": "drafters without a model, where text repeats itself and where it does not",
    "distance": "real processes with a slow network between drafter and coordinator, beside the simulator",
    "ray": "the same pair through Ray and without: tokens/s, and how fast the pools follow load",
    "sweep": "mode auto against plain decoding: concurrency by distance by drafter, a dead one included",
    "controller": "mode auto in virtual time: against plain decoding, and against the best fixed setting",
    "core": "what the coordinator's core takes for an event, by how many requests are under way",
    "placement": "requests by expected gain against by load alone, in pools of unlike drafters; the cost of a place",
    "failure": "workers killed, hung and cut off under load: what clients notice",
    "overload": "ten times as much as is there: goodput, and memory",
    "fuzz": "every decoder and method fed with messages that are wrong",
    "soak": "workers come and go, clients leave: is anything kept?",
}


def run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name = argv[0]
    if name not in BENCHMARKS:
        hint = did_you_mean(name, BENCHMARKS)
        raise UsageError(f"bench {name}: unknown benchmark; {hint}The benchmarks are {', '.join(BENCHMARKS)}")
    code: int = importlib.import_module(f"bench.{name}").main(list(argv[1:]))
    return code


def _help() -> str:
    benchmarks = "\n".join(f"  {name:10} {summary}" for name, summary in BENCHMARKS.items())
    return f"""usage: paceline bench BENCHMARK [options]

Measure Paceline on this machine, with the demo pair or your own. The systems under test are real processes that the
benchmark starts and ends; settings that are compared take turns prompt by prompt, so that noise falls on all alike.
Nothing else should run meanwhile.

benchmarks:
{benchmarks}

examples:
  paceline bench policies --target big/ --drafter small/ --prompts prompts.jsonl --max-minutes 10
  paceline bench policies --rules token,block --lengths 4,8,16 --json > rules.json
  paceline bench modes --num-prompts 4 --no-assisted
  paceline bench serve --dataset-path prompts.jsonl --num-prompts 32 --compare off,sequential,pearl,auto

`paceline bench BENCHMARK --help` explains the options. Their environment twins are PACELINE_BENCH_OPTION, and
their tables in a TOML file (--config) [bench.NAME]: what is set for a server must not change what is measured."""
