"""Fits an acceptance head to drafted tokens, in steps that survive a kill.

The loss is the paper's (Huang et al. 2024): cross entropy against the probability of being kept, the class *rejected*
weighing six times as much, for a rejection that was not foreseen costs more than a draft that ends early. So the head
is a pessimist, and the threshold is set on what it says, not on what is true.

What is kept beside the output until it is whole: the drafted tokens in shards, and the head after each pass over them.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.acceptance import Drafted
from models.corpus import InputError
from paceline.acceptance_head import MAX_BLOCKS, AcceptanceHead

PROMPTS_PER_SHARD = 128  # as many as the target answers at once
WARMUP = 0.03  # of all steps, as in the paper's code; then a cosine


@dataclass(frozen=True, slots=True)
class Plan:
    num_blocks: int
    is_tied: bool
    reject_weight: float
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.num_blocks <= MAX_BLOCKS:
            raise InputError(f"--blocks {self.num_blocks}: give a number from 0 to {MAX_BLOCKS}")
        for name in ("reject_weight", "epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be above 0")


class Checkpoint:
    """A folder beside the output: `begin`, then shards, then the head after each pass; `remove` in the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, settings: dict[str, Any], prompts: Sequence[Sequence[int]]) -> None:
        """Go on with what is there. Raises InputError if it was made with other settings or prompts."""
        digest = hashlib.sha256(json.dumps([list(prompt) for prompt in prompts]).encode()).hexdigest()
        mine = {name: str(value) for name, value in settings.items()} | {"prompts": digest}
        path = self._folder / "settings.json"
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._write(path, lambda at: at.write_text(json.dumps(mine, indent=2) + "\n", encoding="utf-8"))
            return
        known = json.loads(path.read_text(encoding="utf-8"))
        for name in mine:
            if known.get(name) != mine[name]:
                fix = f"it was made with {name}={known.get(name)}, and this is {mine[name]}; remove it to start again"
                raise InputError(f"{self._folder}: {fix}")

    def has_shard(self, number: int) -> bool:
        return self._shard(number).exists()

    def write_shard(self, number: int, drafted: Drafted) -> None:
        columns = {name: column.cpu() for name, column in drafted.columns().items()}
        self._write(self._shard(number), lambda at: save_file(columns, at))

    def read_shards(self, num_shards: int) -> Drafted:
        return Drafted.joined([Drafted(**load_file(self._shard(number))) for number in range(num_shards)])

    def write_head(self, tensors: dict[str, Tensor], epoch: int) -> None:
        """Weights and optimizer after `epoch` passes."""
        self._write(self._folder / "head.safetensors", lambda at: save_file(tensors, at, {"epoch": str(epoch)}))

    def read_head(self) -> tuple[dict[str, Tensor], int]:
        """Nothing and 0 if no pass is done."""
        path = self._folder / "head.safetensors"
        if not path.exists():
            return {}, 0
        tensors = load_file(path)
        return tensors, int(tensors["epoch"])

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _shard(self, number: int) -> Path:
        return self._folder / f"drafted-{number:05}.safetensors"

    @staticmethod
    def _write(path: Path, write: Any) -> None:
        """A kill at any moment leaves no half of a file."""
        fresh = path.with_name(f".{path.name}")
        write(fresh)
        fresh.replace(path)


def loss_of(scores: Tensor, accept: Tensor, reject_weight: float) -> Tensor:
    """Weighted cross entropy [] of scores [n, 2] (rejected, accepted) against the probabilities `accept` [n]."""
    log_probs = scores.log_softmax(-1)
    return -(reject_weight * (1 - accept) * log_probs[:, 0] + accept * log_probs[:, 1]).mean()


def share_of_rate(step: int, num_steps: int) -> float:
    """The factor on the learning rate at a step, from 0: up in WARMUP of the steps, then down a cosine to 0."""
    warmup = max(1, round(WARMUP * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def fit(drafted: Drafted, plan: Plan, checkpoint: Checkpoint, console: Console) -> AcceptanceHead:
    """A head for these tokens, rounded to bfloat16 as it will be stored."""
    torch.manual_seed(plan.seed)
    module = AcceptanceHead(drafted.hidden.shape[-1], num_blocks=plan.num_blocks, is_tied=plan.is_tied)
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan.learning_rate, weight_decay=0.0)
    tensors, first = checkpoint.read_head()
    if tensors:
        _restore(module, optimizer, tensors)
    num_batches = max(1, len(drafted) // plan.batch_size)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("head", total=plan.epochs * num_batches, completed=first * num_batches)
        for epoch in range(first, plan.epochs):
            generator = torch.Generator().manual_seed(plan.seed + epoch)
            order = torch.randperm(len(drafted), generator=generator)
            total = 0.0
            for index in range(num_batches):
                chosen = order[index * plan.batch_size : (index + 1) * plan.batch_size]
                share = share_of_rate(epoch * num_batches + index, plan.epochs * num_batches)
                for group in optimizer.param_groups:
                    group["lr"] = plan.learning_rate * share
                loss = loss_of(module(drafted.hidden[chosen].float()), drafted.accept[chosen], plan.reject_weight)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += float(loss.detach())
                progress.advance(task)
            console.print(f"pass {epoch + 1} of {plan.epochs}: loss {total / num_batches:.4f}", highlight=False)
            checkpoint.write_head(_state(module, optimizer, epoch + 1), epoch + 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.bfloat16())
    return module.requires_grad_(False).eval()


def _state(module: AcceptanceHead, optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, Tensor]:
    moments = optimizer.state_dict()["state"]
    found = {f"module.{name}": value for name, value in module.state_dict().items()}
    found |= {f"{index}.{name}": value for index, entry in moments.items() for name, value in entry.items()}
    return {name: value.clone() for name, value in found.items()} | {"epoch": torch.tensor(epoch)}


def _restore(module: AcceptanceHead, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    prefix = "module."
    module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        if index.isdigit():
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
