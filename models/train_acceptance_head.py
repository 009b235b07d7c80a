"""Trains the acceptance head of SpecDec++ for any pair of Hugging Face models, and says what predicts acceptance.

    python -m models.train_acceptance_head train  --target DIR --drafter DIR --prompts FILE --held-out FILE
    python -m models.train_acceptance_head report --target DIR --drafter DIR --held-out FILE

`train` lets the target answer the prompts, has the drafter draw a token at every position of the answers, and teaches
a small head on the drafter's last hidden state how likely that token is to be kept (models/acceptance.py). The drafter
itself is not changed. The head then lies beside it, as acceptance_head.safetensors, and a drafter started from that
folder offers the length policy `specdecpp`. On prompts that it was not trained on, thresholds are set: for each of
several cost ratios (time of a target's pass over that of a draft step) the one with most expected tokens per unit of
time. `report` prints, for such prompts, acceptance by the draft's entropy, and how well entropy, margin, the token's
own probability and the head tell what will be kept.

A head is for one drafter, one target and one temperature: train it at the temperature that you serve at. Prompts are
JSON Lines: {"prompt": …}, {"question": …}, {"turns": […]} or a bare string.

`train` may be killed at any time: the same command goes on from what lies in OUTPUT.checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from models import calibrate, fit
from models.acceptance import Drafted, Pair, branches, chain, check_branches
from models.corpus import Encoded, InputError
from models.distil import continuations
from models.report import finite
from models.shapes import device_of
from paceline import acceptance_head
from paceline.acceptance_head import HeadInfo, TrainedHead
from paceline.engine import weights
from paceline.errors import InvalidInput
from paceline.prompts import read_prompts

MAX_DRAFT = 20  # the policy's longest draft, as in the paper
CHAINS_PER_PROMPT = 8


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    console = Console()
    torch.set_num_threads(arguments.threads)
    try:
        arguments.command(arguments, console)
    except (InputError, InvalidInput) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def train(arguments: argparse.Namespace, console: Console) -> None:
    plan = fit.Plan(
        num_blocks=arguments.blocks,
        is_tied=arguments.tied,
        reject_weight=arguments.reject_weight,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    pair = _pair(arguments)
    output = arguments.output or _folder(arguments.drafter) / acceptance_head.FILE
    checkpoint = fit.Checkpoint(output.with_name(output.name + ".checkpoint"))
    settings = {name: getattr(arguments, name) for name in ("temperature", "max_new_tokens", "draws", "dtype")}
    settings |= {"target": pair.target_hash, "drafter": pair.drafter_hash, "plan": plan}
    prompts = _prompts(pair, arguments.prompts, arguments.limit, arguments.seed)
    checkpoint.begin(settings, prompts)
    drafted = _training_data(pair, prompts, arguments, checkpoint, console)
    console.print(f"{len(drafted):,} drafted tokens, of which {float(drafted.accept.mean()):.1%} would be kept")
    module = fit.fit(drafted, plan, checkpoint, console)
    held_out = _prompts(pair, arguments.held_out, arguments.held_out_limit, arguments.seed)
    answers = _answers(pair, held_out, arguments, console, "held-out answers")
    found = _drafted(pair, answers, arguments.seed, console)
    chains = _chains(pair, answers, module.accept_probs, arguments, console)
    thresholds = calibrate.calibrated(chains)
    info = HeadInfo(
        hidden_size=found.hidden.shape[-1],
        num_blocks=arguments.blocks,
        is_tied=arguments.tied,
        drafter_hash=pair.drafter_hash,
        target=Path(arguments.target).name,
        target_hash=pair.target_hash,
        temperature=arguments.temperature,
        thresholds=thresholds,
        auc=calibrate.auc(module.accept_probs(found.hidden.float()), found.accept),
    )
    acceptance_head.save(TrainedHead(module, info), output)
    checkpoint.remove()
    _show(_figures(found, chains, TrainedHead(module, info)), console)
    console.print(f"{output} ({output.stat().st_size:,} bytes)", highlight=False)


def report(arguments: argparse.Namespace, console: Console) -> None:
    pair = _pair(arguments)
    if arguments.head:
        head: TrainedHead | None = acceptance_head.load(arguments.head, drafter_hash=pair.drafter_hash)
    else:
        head = acceptance_head.beside(_folder(arguments.drafter), drafter_hash=pair.drafter_hash)
    prompts = _prompts(pair, arguments.held_out, arguments.held_out_limit, arguments.seed)
    answers = _answers(pair, prompts, arguments, console, "answers")
    found = _drafted(pair, answers, arguments.seed, console)
    chains = _chains(pair, answers, head.accept_probs, arguments, console) if head else None
    figures = _figures(found, chains, head)
    _show(figures, console)
    if arguments.json:
        settings = {name: str(getattr(arguments, name)) for name in ("target", "drafter", "held_out")}
        text = json.dumps(finite(settings | {"temperature": arguments.temperature} | figures), indent=2)
        arguments.json.write_text(text + "\n", encoding="utf-8")


def _pair(arguments: argparse.Namespace) -> Pair:
    device = device_of(arguments.device)
    return Pair.load(
        arguments.target, arguments.drafter, temperature=arguments.temperature, dtype=arguments.dtype, device=device
    )


def _folder(model: str) -> Path:
    return weights.inspect(model).folder


def _prompts(pair: Pair, file: Path, limit: int, seed: int) -> list[tuple[int, ...]]:
    """`limit` of the file's prompts, drawn by `seed`."""
    prompts = read_prompts(str(file))
    random.Random(seed).shuffle(prompts)
    return pair.encode(prompts[:limit])


def _answers(
    pair: Pair, prompts: Sequence[tuple[int, ...]], arguments: argparse.Namespace, console: Console, what: str
) -> list[Encoded]:
    """What the target writes after each prompt."""
    found = {}
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=len(prompts))
        for index, answer in continuations(
            pair.target,
            prompts,
            temperature=arguments.temperature,
            seed=arguments.seed,
            max_new_tokens=arguments.max_new_tokens,
        ):
            found[index] = answer
            progress.advance(task)
    return [found[index] for index in range(len(prompts))]


def _training_data(
    pair: Pair,
    prompts: Sequence[tuple[int, ...]],
    arguments: argparse.Namespace,
    checkpoint: fit.Checkpoint,
    console: Console,
) -> Drafted:
    """The drafted tokens of all prompts, a shard of prompts at a time: each is kept until the head is done."""
    size = fit.PROMPTS_PER_SHARD
    shards = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    is_checked = False
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("answers and drafts", total=len(shards))
        for number, shard in enumerate(shards):
            if not checkpoint.has_shard(number):
                seed = arguments.seed + 1 + number
                answers = continuations(
                    pair.target,
                    shard,
                    temperature=arguments.temperature,
                    seed=seed,
                    max_new_tokens=arguments.max_new_tokens,
                )
                generator = torch.Generator(pair.drafter.device).manual_seed(seed)
                parts = []
                for _, answer in answers:
                    if not is_checked:
                        check_branches(pair, answer)
                        is_checked = True
                    parts.append(branches(pair, answer, generator, num_draws=arguments.draws))
                checkpoint.write_shard(number, Drafted.joined(parts))
            if not console.is_terminal:
                console.print(f"answers and drafts: {number + 1} of {len(shards)} shards", highlight=False)
            progress.advance(task)
    return checkpoint.read_shards(len(shards))


def _drafted(pair: Pair, answers: Sequence[Encoded], seed: int, console: Console) -> Drafted:
    generator = torch.Generator(pair.drafter.device).manual_seed(seed)
    check_branches(pair, answers[0])
    return Drafted.joined([branches(pair, answer, generator) for answer in answers])


def _chains(
    pair: Pair, answers: Sequence[Encoded], accept_probs: Any, arguments: argparse.Namespace, console: Console
) -> calibrate.Chains:
    """Drafts of the drafter's own, from places all over the answers: what serving would send."""
    chooser = random.Random(arguments.seed)
    prefixes = []
    for answer in answers:
        ends = range(answer.prompt_length, len(answer.token_ids))
        for end in chooser.sample(ends, min(CHAINS_PER_PROMPT, len(ends))):
            prefixes.append(answer.token_ids[:end])
    chains, predicted = [], []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("drafts", total=len(prefixes))
        for _, written in continuations(
            pair.drafter,
            prefixes,
            temperature=arguments.temperature,
            seed=arguments.seed,
            max_new_tokens=MAX_DRAFT,
        ):
            chains.append(chain(pair, written))
            predicted.append(accept_probs(chains[-1].hidden.float()))
            progress.advance(task)
    return calibrate.Chains.of(chains, predicted)


def _figures(found: Drafted, chains: calibrate.Chains | None, head: TrainedHead | None) -> dict[str, Any]:
    scores = {"entropy": -found.entropy, "top-2 margin": found.margin, "token's own probability": found.token_prob}
    if head:
        scores["acceptance head"] = head.accept_probs(found.hidden.float())
    return {
        "tokens": len(found),
        "acceptance": float(found.accept.double().mean()),
        "buckets": calibrate.buckets(found),
        "auc": {name: calibrate.auc(score, found.accept) for name, score in scores.items()},
        "rates": calibrate.rates(chains, head.info.thresholds) if chains and head else [],
    }


def _show(figures: dict[str, Any], console: Console) -> None:
    console.print(f"{figures['tokens']:,} drafted tokens on held-out prompts, {figures['acceptance']:.3f} kept")
    table = Table("entropy (nats)", "share", "kept", title="acceptance by entropy of the draft")
    for entry in figures["buckets"]:
        span = f"{entry['from']:g} to {entry['to']:g}" if entry["to"] < math.inf else f"{entry['from']:g} up"
        table.add_row(span, f"{entry['share']:.3f}", f"{entry['acceptance']:.3f}")
    console.print(table)
    table = Table("predicted by", "AUC", title="what tells a token that will be kept")
    for name, value in figures["auc"].items():
        table.add_row(name, f"{value:.3f}")
    console.print(table)
    if not figures["rates"]:
        return
    title = "expected tokens in the time of a draft step, drafting and verifying in turn (parameter, mean length)"
    names = [name for name in figures["rates"][0] if name != "cost_ratio"]
    table = Table("cost ratio", *names, title=title)
    for entry in figures["rates"]:
        cells = [f"{of['tokens']:.4f} ({of['parameter']:.5g}, {of['mean_length']:.2f})" for of in map(entry.get, names)]
        table.add_row(f"{entry['cost_ratio']:g}", *cells)
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.train_acceptance_head",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    trainer = commands.add_parser("train", help="train a head and put it beside the drafter")
    _add_common(trainer)
    trainer.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="prompts to train on")
    trainer.add_argument("--limit", type=int, default=2000, help="how many of them (default %(default)s)")
    trainer.add_argument(
        "--draws", type=int, default=1, help="tokens drawn at every position of an answer (default %(default)s)"
    )
    trainer.add_argument("--output", type=Path, metavar="FILE", help="default: beside the drafter, where it is served")
    trainer.add_argument("--blocks", type=int, default=3, help="residual blocks (default %(default)s, as the paper)")
    trainer.add_argument(
        "--tied", action="store_true", help="one block, applied as often; the paper's code ties them, its text does not"
    )
    trainer.add_argument(
        "--reject-weight", type=float, default=6.0, help="of rejected tokens in the loss (default %(default)s)"
    )
    trainer.add_argument("--epochs", type=int, default=3, help="passes over the tokens (default %(default)s)")
    trainer.add_argument("--batch-size", type=int, default=256, help="tokens in a step (default %(default)s)")
    trainer.add_argument("--learning-rate", type=float, default=1e-3, help="highest rate (default %(default)s)")
    trainer.set_defaults(command=train)
    reporter = commands.add_parser("report", help="what predicts acceptance, on prompts that were not trained on")
    _add_common(reporter)
    reporter.add_argument("--head", type=Path, metavar="FILE", help="default: the one beside the drafter, if any")
    reporter.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    reporter.set_defaults(command=report)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, metavar="DIR", help="folder or ORG/NAME of the target")
    parser.add_argument("--drafter", required=True, metavar="DIR", help="folder or ORG/NAME of the drafter")
    parser.add_argument("--held-out", type=Path, required=True, metavar="FILE", help="prompts to measure on")
    parser.add_argument("--held-out-limit", type=int, default=150, help="how many of them (default %(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="at which both are served; 0 is greedy (default %(default)s)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and draws (default %(default)s)")
    parser.add_argument("--dtype", choices=sorted(weights.DTYPES), default="float32", help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default %(default)s")


if __name__ == "__main__":
    sys.exit(main())
