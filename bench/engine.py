"""The verifier's engine alone, in this process: many requests at once, plain greedy decoding, one thread.

    paceline bench engine --target models/demo-target --parameters 90M

Four parts:

1. Tokens/s at several concurrencies, against transformers' continuous batching (what `generate_batch` does, with a
   cache of explicit size; the start of its manager is not counted) and against `generate` request by request. The
   same model, prompts and thread; the three take turns, and which of them begins moves on from round to round, so
   that a noisy minute falls on all alike.
2. What a step costs beyond the model's bare forward pass over the same tokens.
3. Requests of mixed lengths, all at once in a pool so small that they are preempted, with prompts that share a
   prefix: each must yield the tokens that it yields alone.
4. The target over two processes: its logits and tokens against those of one, and tokens/s of both. On a CPU that is a
   test of correctness: two ranks of one machine have no more to compute with than one.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import output, system
from bench.baselines import PAGE_SIZE, Bare, Measured, Transformers, exact_logits
from bench.options import Parser
from paceline.engine.runner import Chunk, Runner
from paceline.types import Close, OpenVerify, Role, Rule, SamplingParams, Tokens, Verdict, WorkerInfo
from verifier.batcher import Budget
from verifier.engine import VerifierEngine

SHORT_BLOCK_SIZE = 4  # so that many blocks are shared, taken away and written anew
MAX_ERROR_RATIO = 2.0  # two ranks may be this much farther from float64 than one process, which rounds too
PEER = 1


def engine(runner: Runner, max_num_batched_tokens: int, max_num_seqs: int) -> VerifierEngine:
    known = runner.info
    info = WorkerInfo(
        Role.VERIFIER,
        address="",
        incarnation=1,
        model="bench",
        model_hash=known.model_hash,
        tokenizer_hash=known.tokenizer_hash,
        vocab_size=known.vocab_size,
        max_model_len=known.max_model_len,
        max_num_seqs=max_num_seqs,
        eos_token_ids=known.eos_token_ids,
        dtype=known.dtype,
        device=known.device,
    )
    return VerifierEngine(runner, info, Budget(max_num_batched_tokens, max_num_seqs))


def ours(it: VerifierEngine, prompts: Sequence[Tokens], num_tokens: Sequence[int], rule: Rule = Rule.MATCH) -> Measured:
    """All requests at once, each until it has its number of tokens."""
    sampling = SamplingParams(temperature=1.0 if rule is Rule.COUPLED else 0.0)
    outputs: list[list[int]] = [[] for _ in prompts]
    started_s = time.perf_counter()
    for index, prompt in enumerate(prompts):
        it.handle(PEER, OpenVerify(str(index), prompt, sampling, rule, 1 + index, num_tokens[index]))
    num_open = len(prompts)
    while num_open:
        if not it.has_work():
            raise RuntimeError("the engine waits for an ask, and none is due")
        for _, reply in it.step():
            if not isinstance(reply, Verdict):
                raise RuntimeError(f"request {reply.request_id} was refused: {reply.message}")
            index = int(reply.request_id)
            outputs[index] += reply.token_ids
            if len(outputs[index]) >= num_tokens[index]:
                it.handle(PEER, Close(reply.request_id))
                num_open -= 1
    seconds = time.perf_counter() - started_s
    return Measured(sum(map(len, outputs)), seconds, [tuple(output) for output in outputs])


def make_prompts(lengths: Sequence[int], vocab_size: int, seed: int, shared: int = 0) -> list[Tokens]:
    """Random prompts, of which the first `shared` tokens are the same."""
    rng = random.Random(seed)
    head = [rng.randrange(vocab_size) for _ in range(shared)]
    return [tuple((head + [rng.randrange(vocab_size) for _ in range(length)])[:length]) for length in lengths]


# --- 1. throughput


def throughput(target: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a concurrency; rates are medians over rounds, the ratio that of paired rounds."""
    num_slots = max(given.concurrencies) * (given.prompt_tokens + given.max_tokens + PAGE_SIZE)
    # Prompts are repeated from round to round, and finding them cached would be no decoding.
    runner = Runner.load(target, dtype=given.dtype, max_num_tokens=num_slots, prefix_caching=False)
    baseline = Transformers(target, given.dtype, num_slots // PAGE_SIZE, given.max_num_batched_tokens)
    for concurrency in given.concurrencies:
        prompts = make_prompts([given.prompt_tokens] * concurrency, runner.info.vocab_size, seed=concurrency)
        it = engine(runner, given.max_num_batched_tokens, concurrency)
        ways: dict[str, Callable[[], Measured]] = {
            "paceline": partial(ours, it, prompts, [given.max_tokens] * concurrency),
            "generate_batch": partial(baseline.batched, prompts, given.max_tokens),
            "generate": partial(baseline.one_by_one, prompts, given.max_tokens),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        outputs: dict[str, list[Tokens]] = {}
        names = list(ways)
        for number in range(given.rounds + 1):  # the first one warms up and is not counted
            for name in names[number % 3 :] + names[: number % 3]:
                found = ways[name]()
                outputs[name] = found.outputs
                if number:
                    rates[name].append(found.num_tokens / found.seconds)
        row: dict[str, Any] = {"concurrency": concurrency}
        row |= {f"{name}_tokens_per_s": statistics.median(rates[name]) for name in names}
        for name in names[1:]:
            pairs = zip(rates["paceline"], rates[name], strict=True)
            row[f"over_{name}"] = statistics.median(mine / theirs for mine, theirs in pairs)
            same = zip(outputs["paceline"], outputs[name], strict=True)
            row[f"equal_to_{name}"] = sum(mine == theirs for mine, theirs in same) / concurrency
        yield row
    runner.check_integrity()


# --- 2. overhead of a step


def overhead(target: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of a decode step: all of it, what of it is the model's forward pass, and that of transformers."""
    rows = []
    for concurrency in given.concurrencies:
        length = given.prompt_tokens
        runner = Runner.load(target, dtype=given.dtype, max_num_tokens=concurrency * (length + given.steps + 32))
        executor: Any = runner._executor
        inside_ms: list[float] = []
        executor._forward = _timed(executor._forward, inside_ms)
        it = engine(runner, given.max_num_batched_tokens, concurrency)
        prompts = make_prompts([length] * concurrency, runner.info.vocab_size, seed=concurrency)
        for index, prompt in enumerate(prompts):
            ask = OpenVerify(str(index), prompt, SamplingParams(temperature=0.0), Rule.MATCH, 1, given.steps + 2)
            it.handle(PEER, ask)
        while any(entry.session.computed < length for entry in it._entries.values()):
            it.step()
        it.step()
        inside_ms.clear()
        step_ms, bare_ms = [], []
        bare = Bare(target, given.dtype, prompts)
        for _ in range(given.steps):
            started_s = time.perf_counter()
            it.step()
            step_ms.append(1e3 * (time.perf_counter() - started_s))
            bare_ms.append(bare.step_ms())
        step, inside = statistics.median(step_ms), statistics.median(inside_ms)
        rows.append(
            {
                "concurrency": concurrency,
                "step_ms": step,
                "forward_ms": inside,
                "overhead": statistics.median(
                    all_ms / own_ms - 1 for all_ms, own_ms in zip(step_ms, inside_ms, strict=True)
                ),
                "transformers_forward_ms": statistics.median(bare_ms),
            }
        )
    return rows


def _timed(call: Any, into: list[float]) -> Any:
    def timed(*arguments: Any) -> Any:
        started_s = time.perf_counter()
        result = call(*arguments)
        into.append(1e3 * (time.perf_counter() - started_s))
        return result

    return timed


# --- 3. equality


def equality(target: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """fp32: all at once in a short pool, with shared prefixes, against each alone in a large one without a cache."""
    rng = random.Random(1)
    lengths = [rng.randint(8, given.prompt_tokens + 8) for _ in range(given.num_mixed)]
    numbers = [rng.randint(4, given.max_tokens) for _ in lengths]
    longest = max(length + number for length, number in zip(lengths, numbers, strict=True))
    large = Runner.load(target, max_num_tokens=longest + 64, prefix_caching=False)
    total = sum(lengths) + sum(numbers)
    short = Runner.load(target, max_num_tokens=max(3 * longest // 2, total // 8), block_size=SHORT_BLOCK_SIZE)
    prompts = make_prompts(lengths, large.info.vocab_size, seed=2, shared=given.prompt_tokens // 2)
    rows = []
    for rule in (Rule.MATCH, Rule.COUPLED):
        together = engine(short, 64, given.num_mixed)
        found = ours(together, prompts, numbers, rule).outputs
        short.check_integrity()
        alone = []
        for index, prompt in enumerate(prompts):
            it = engine(large, 64, given.num_mixed)
            alone.append(_alone(it, index, prompt, numbers[index], rule))
        rows.append(
            {
                "rule": rule.value,
                "requests": len(prompts),
                "equal": sum(mine == theirs for mine, theirs in zip(found, alone, strict=True)),
                "preemptions": together.num_preemptions,
                "prefix_tokens_hit": short.prefix_stats.num_hit_tokens,
            }
        )
    return rows


def _alone(it: VerifierEngine, index: int, prompt: Tokens, num_tokens: int, rule: Rule) -> Tokens:
    """As `ours` does it, under the seed that request `index` has there."""
    sampling = SamplingParams(temperature=1.0 if rule is Rule.COUPLED else 0.0)
    it.handle(PEER, OpenVerify("0", prompt, sampling, rule, 1 + index, num_tokens))
    output: list[int] = []
    while len(output) < num_tokens:
        output += [token for _, reply in it.step() if isinstance(reply, Verdict) for token in reply.token_ids]
    it.handle(PEER, Close("0"))
    return tuple(output)


# --- 4. tensor parallel


def parallel(target: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """fp32: two ranks against one, the same requests at once; logits after a shared history, teacher-forced."""
    num_slots = given.num_parallel * (given.prompt_tokens + given.max_tokens + 32)
    one = Runner.load(target, max_num_tokens=num_slots, prefix_caching=False)
    two = Runner.load(target, max_num_tokens=num_slots, prefix_caching=False, tensor_parallel_size=2)
    prompts = make_prompts([given.prompt_tokens] * given.num_parallel, one.info.vocab_size, seed=4)
    numbers = [given.max_tokens] * given.num_parallel
    rates: dict[int, list[float]] = {1: [], 2: []}
    outputs: dict[int, list[Tokens]] = {}
    try:
        for number in range(given.rounds + 1):  # the first one warms up and is not counted
            for size, runner in ((1, one), (2, two))[:: 1 if number % 2 else -1]:
                it = engine(runner, given.max_num_batched_tokens, given.num_parallel)
                found = ours(it, prompts, numbers)
                outputs[size] = found.outputs
                if number:
                    rates[size].append(found.num_tokens / found.seconds)
        texts = [prompt + output for prompt, output in zip(prompts, outputs[1], strict=True)]
        pairs = [(_logits(one, text), _logits(two, text)) for text in texts]
        two.check_integrity()
    finally:
        two.shutdown()
    same = zip(outputs[1], outputs[2], strict=True)
    largest = max(float(mine.abs().max()) for mine, _ in pairs)
    exact = exact_logits(target, texts)
    errors = [_largest_difference(found, exact) for found in zip(*pairs, strict=True)]
    difference = _largest_difference(*zip(*pairs, strict=True))
    return [
        {
            "requests": given.num_parallel,
            "equal": sum(mine == theirs for mine, theirs in same),
            "rows_compared": sum(map(len, texts)),
            "max_logit": largest,
            "max_difference": difference,
            "relative_difference": difference / max(1.0, largest),
            "one_process_error": errors[0],  # against float64, likewise the largest of all entries
            "two_ranks_error": errors[1],
            "one_process_tokens_per_s": statistics.median(rates[1]),
            "two_ranks_tokens_per_s": statistics.median(rates[2]),
        }
    ]


def _largest_difference(mine: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(mine, theirs, strict=True))


def _logits(runner: Runner, text: Tokens) -> torch.Tensor:
    """Rows of every position of `text`: [len(text), vocab_size]."""
    runner.open("text")
    rows = runner.forward([Chunk("text", 0, text, len(text))])
    runner.close("text")
    return rows


def show(title: str, rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("engine", __doc__)
    parser.add_argument("--target", default="models/demo-target", help="unexpanded target")
    parser.add_argument("--parameters", default="90M", help="expand the target to about this; 0 = leave it")
    parser.add_argument("--concurrencies", type=_integers, default=(1, 4, 16, 64), help="comma separated (1,4,16,64)")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--max-num-batched-tokens", type=int, default=512)
    parser.add_argument("--num-mixed", type=int, default=64, help="requests of the equality part")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="decode steps of the overhead part")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--num-parallel", type=int, default=16, help="requests of the parallel part")
    parser.add_argument("--only", choices=("throughput", "overhead", "equality", "parallel"))
    parser.add_json()
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = output.console(given.json, 170)
    with tempfile.TemporaryDirectory() as folder:
        target = given.target if given.parameters == "0" else _expand(given, Path(folder) / "target")
        report: dict[str, Any] = {"commit": system.commit(), "machine": system.machine(), "arguments": vars(given)}
        console.print(f"commit {report['commit']}; {report['machine']}; one thread; target of {given.parameters}")
        for part in (throughput, overhead, equality, parallel):
            if given.only in (None, part.__name__):
                rows = report[part.__name__] = list(part(target, given))
                show(part.__name__, rows, console)
    output.save(given.json, report)
    return 0 if _is_exact(report) else 1


def _is_exact(report: dict[str, Any]) -> bool:
    """Whether every token was equal, under preemption indeed, and the ranks' logits as exact as one process's."""
    mixed, split = report.get("equality", []), report.get("parallel", [])
    are_close = all(row["two_ranks_error"] <= MAX_ERROR_RATIO * row["one_process_error"] for row in split)
    are_equal = all(row["equal"] == row["requests"] for row in [*mixed, *split])
    return are_equal and are_close and all(row["preemptions"] for row in mixed)


def _expand(given: argparse.Namespace, output: Path) -> str:
    from models import expand

    expand.main([given.target, str(output), "--parameters", given.parameters])
    return str(output)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(item) for item in filter(None, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
