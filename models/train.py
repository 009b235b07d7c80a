"""Trains the demo pair, a target and a drafter that share a vocabulary, from nothing.

    python -m models.train tokenizer --data gsm8k_train.jsonl --output build/tokenizer
    python -m models.train target    --data gsm8k_train.jsonl --tokenizer build/tokenizer --output models/demo-target …
    python -m models.train drafter   --data gsm8k_train.jsonl --tokenizer build/tokenizer --output build/drafter …
    python -m models.train sample    --data gsm8k_train.jsonl --target … --output build/sampled.jsonl …
    python -m models.train distil    --data gsm8k_train.jsonl --target … --drafter … --output models/demo-drafter …
    python -m models.train report    --data gsm8k_dev.jsonl   --target … --drafter …

The model cards (`models/demo-*/README.md`) give these commands in full.

The data is GSM8K (Cobbe et al. 2021), file `grade_school_math/data/train.jsonl` of
https://github.com/openai/grade-school-math, licence MIT. It is not part of this project: fetch it, keep its last
300 lines for measuring (`head -n -300 train.jsonl > gsm8k_train.jsonl; tail -n 300 train.jsonl > gsm8k_dev.jsonl`)
and never train on those. Any other JSONL file in the form of `models/corpus.py` works too.

Training may be killed at any time: the same command goes on from the last checkpoint (`OUTPUT.checkpoint`).
"""

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from models.corpus import IGNORED, Encoded, InputError, Rows, encode, pack, read_documents, train_tokenizer
from models.distil import continuations, divergence, read_samples, write_samples
from models.report import report
from models.shapes import (
    SHAPES,
    add_dropout,
    build,
    device_of,
    load_model,
    load_tokenizer,
    save_model,
    save_tokenizer,
    write_directory,
)
from models.trainer import LossOf, Plan, RowsOf, Trainer

# Every so many steps, rows are twice as long, so that all 1,024 positions are learnt at little cost:
# attention costs more in long rows.
LONG_EVERY = 8
LONG_FACTOR = 2

TensorFunction: TypeAlias = Callable[..., torch.Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    console = Console()
    try:
        arguments.command(arguments, console)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def make_tokenizer(arguments: argparse.Namespace, console: Console) -> None:
    documents = read_documents(arguments.data)
    tokenizer = train_tokenizer(documents, vocab_size=arguments.vocab_size)
    write_directory(arguments.output, lambda fresh: save_tokenizer(tokenizer, fresh))
    console.print(f"{len(tokenizer)} tokens from {len(documents)} documents -> {arguments.output}")


def train_model(arguments: argparse.Namespace, console: Console) -> None:
    """Next-token training on text: the target's whole training, and the drafter's first part."""
    device = device_of(arguments.device)
    tokenizer = load_tokenizer(arguments.tokenizer)
    documents = encode(read_documents(arguments.data), tokenizer.backend_tokenizer)
    model = build(SHAPES[arguments.role], tokenizer, seed=arguments.seed)
    nn.Module.to(model, device)
    add_dropout(model, arguments.dropout)
    trainer = Trainer(model, plan_of(arguments), directory=checkpoint_of(arguments.output), device=device)
    rows_of = rows_of_documents(
        documents,
        num_rows=arguments.rows,
        length=arguments.length,
        pad_id=_pad_id(model),
        seed=arguments.seed,
    )
    loss_of = text_loss(model, device=device, compiled=arguments.compile)
    trainer.run(rows_of, loss_of, console=console)
    if trainer.is_done:
        save_model(model, arguments.tokenizer, arguments.output)


def text_loss(model: LlamaForCausalLM, *, device: torch.device, compiled: bool) -> LossOf:
    """Cross entropy of the next token, mean over the positions that have one, in nats."""

    def forward(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=inputs, use_cache=False).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    run = maybe_compiled(forward, compiled)

    def loss_of(rows: Rows) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return run(rows.inputs.to(device), rows.labels.to(device))

    return loss_of


def make_samples(arguments: argparse.Namespace, console: Console) -> None:
    """What the target writes after the prompts of the data: texts for the drafter to learn from."""
    device = device_of(arguments.device)
    target = load_model(arguments.target, device=device)
    tokenizer = load_tokenizer(arguments.target).backend_tokenizer
    documents = encode(read_documents(arguments.data), tokenizer)
    random.Random(arguments.seed).shuffle(documents)
    prompts = [d.token_ids[: d.prompt_length] for d in documents[: arguments.limit]]
    samples = []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("answers", total=len(prompts))
        for _, sample in continuations(target, prompts, temperature=arguments.temperature, seed=arguments.seed):
            samples.append(sample)
            progress.advance(task)
    write_samples(samples, arguments.output)
    console.print(f"{len(samples)} answers at temperature {arguments.temperature:g} -> {arguments.output}")


def distil(arguments: argparse.Namespace, console: Console) -> None:
    """Teach the drafter the target's distribution on text and on the target's own answers."""
    if not 0 <= arguments.share_of_tv <= 1:
        raise InputError(f"--share-of-tv {arguments.share_of_tv:g}: is a share; give a number from 0 to 1")
    device = device_of(arguments.device)
    target = load_model(arguments.target, device=device)
    drafter = load_model(arguments.drafter, device=device)
    tokenizer = load_tokenizer(arguments.target)
    documents = encode(read_documents(arguments.data), tokenizer.backend_tokenizer)
    for path in arguments.samples:
        documents += read_samples(path)
    trainer = Trainer(drafter, plan_of(arguments), directory=checkpoint_of(arguments.output), device=device)
    rows_of = rows_of_documents(
        documents,
        num_rows=arguments.rows,
        length=arguments.length,
        pad_id=_pad_id(target),
        seed=arguments.seed,
    )
    loss_of = distillation_loss(
        target, drafter, share_of_tv=arguments.share_of_tv, device=device, compiled=arguments.compile
    )
    trainer.run(rows_of, loss_of, console=console)
    if trainer.is_done:
        save_model(drafter, arguments.target, arguments.output)


def distillation_loss(
    target: LlamaForCausalLM,
    drafter: LlamaForCausalLM,
    *,
    share_of_tv: float,
    device: torch.device,
    compiled: bool,
) -> LossOf:
    def forward(inputs: torch.Tensor, labels: torch.Tensor, is_completion: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target_logits = target(input_ids=inputs, use_cache=False).logits
        draft_logits = drafter(input_ids=inputs, use_cache=False).logits
        return divergence(draft_logits, target_logits, labels, is_completion, share_of_tv=share_of_tv)

    run = maybe_compiled(forward, compiled)

    def loss_of(rows: Rows) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return run(rows.inputs.to(device), rows.labels.to(device), rows.is_completion.to(device))

    return loss_of


def maybe_compiled(function: TensorFunction, compiled: bool) -> TensorFunction:
    if not compiled:
        return function
    # One graph for each of the two row lengths: graphs for any length are slower.
    wrapped: TensorFunction = torch.compile(function, dynamic=False)
    return wrapped


def rows_of_documents(documents: Sequence[Encoded], *, num_rows: int, length: int, pad_id: int, seed: int) -> RowsOf:
    """The rows of any step, from the step's number alone, so that a resumed run reads what it would have read.

    Every pass over the documents packs them in a new order.
    """
    epochs: dict[int, Rows] = {}
    # All passes take the same number of steps, or the number would depend on packing's luck.
    per_epoch = pack(documents, length=length, pad_id=pad_id, seed=seed).inputs.shape[0] * 98 // 100 // num_rows
    if per_epoch == 0:
        raise InputError(f"--rows {num_rows}: the data fills fewer rows of --length {length}; use fewer rows")

    def rows_of(step: int) -> Rows:
        epoch, index = divmod(step, per_epoch)
        if epoch not in epochs:
            epochs.clear()
            epochs[epoch] = pack(documents, length=length, pad_id=pad_id, seed=seed + 1000 * epoch)
        rows = epochs[epoch].take(torch.arange(index * num_rows, (index + 1) * num_rows))
        is_long = step % LONG_EVERY == LONG_EVERY - 1 and num_rows % LONG_FACTOR == 0
        return rows.folded(LONG_FACTOR) if is_long else rows

    return rows_of


def plan_of(arguments: argparse.Namespace) -> Plan:
    return Plan(
        steps=arguments.steps,
        minutes=arguments.minutes,
        learning_rate=arguments.learning_rate,
        warmup=arguments.warmup,
        weight_decay=arguments.weight_decay,
        stop_at=arguments.stop_at,
        seed=arguments.seed,
    )


def checkpoint_of(output: Path) -> Path:
    return output.with_name(output.name + ".checkpoint")


def _pad_id(model: LlamaForCausalLM) -> int:
    pad_id = model.config.pad_token_id
    assert isinstance(pad_id, int)
    return pad_id


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.train",
        description="Train the demo pair: tokenizer, target, drafter, distil, report.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    tokenizer = commands.add_parser("tokenizer", help="learn the vocabulary that both models share")
    _add_common(tokenizer)
    tokenizer.add_argument("--vocab-size", type=int, default=4096, help="tokens in all (default %(default)s)")
    tokenizer.set_defaults(command=make_tokenizer)

    for role in SHAPES:
        model = commands.add_parser(role, help=f"train the {role} on text")
        _add_common(model)
        _add_training(model)
        model.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder of the tokenizer")
        model.add_argument("--dropout", type=float, default=0.0, help="dropout (default %(default)s)")
        model.set_defaults(command=train_model, role=role)
    _add_sample(commands.add_parser("sample", help="write down the target's own answers"))
    _add_distil(commands.add_parser("distil", help="teach the drafter the target's distribution"))
    _add_report(commands.add_parser("report", help="measure a pair on held-out text"))
    return parser


def _add_sample(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    _add_target(parser)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default %(default)s)")
    parser.add_argument("--limit", type=int, default=None, help="number of prompts (default all)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and draws (default %(default)s)")
    _add_device(parser)
    parser.set_defaults(command=make_samples)


def _add_distil(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    _add_training(parser)
    _add_target(parser)
    parser.add_argument("--drafter", type=Path, required=True, metavar="DIR", help="drafter to start from")
    parser.add_argument(
        "--samples", type=Path, nargs="*", default=[], metavar="FILE", help="files of the command sample"
    )
    parser.add_argument(
        "--share-of-tv",
        type=float,
        default=0.5,
        help="of TV in the loss; the rest is KL (default %(default)s)",
    )
    parser.set_defaults(command=distil)


def _add_report(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    _add_target(parser)
    parser.add_argument("--drafter", type=Path, required=True, metavar="DIR", help="drafter to measure")
    parser.add_argument("--before", type=Path, metavar="DIR", help="drafter to compare with")
    parser.add_argument("--limit", type=int, default=None, help="number of documents (default all)")
    parser.add_argument("--seed", type=int, default=0, help="of sampled answers (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    _add_device(parser)
    parser.set_defaults(command=report)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", type=Path, required=True, metavar="DIR", help="folder of the target")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run (default %(default)s)"
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE",
        help='JSONL with "question" and "answer", or "text"',
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="PATH", help="what to write")


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=0, help="length of training in optimizer steps")
    parser.add_argument("--minutes", type=float, default=0.0, help="or in minutes; prints the steps it came to")
    parser.add_argument("--stop-at", type=int, default=0, help="only make a checkpoint, at this step")
    parser.add_argument("--rows", type=int, default=4, help="rows in a step (default %(default)s)")
    parser.add_argument("--length", type=int, default=512, help="tokens in a row (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2.5e-3, help="highest rate (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=60, help="steps of warm-up (default %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="of matrices (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and dropout (default %(default)s)")
    _add_device(parser)
    parser.add_argument("--compile", action="store_true", help="torch.compile: slow to start, then faster")


if __name__ == "__main__":
    sys.exit(main())
