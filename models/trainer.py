"""The training loop: optimizer, learning rate, checkpoints that survive a kill, progress.

The learning rate warms up, stays, and falls linearly to zero over the last COOLDOWN of the steps (Hu et al. 2024,
"MiniCPM", section 4). Until the fall begins, the number of steps left plays no part, so a run may be given a
time limit instead of a number of steps, and a resumed run may be given a new number: both end exactly as if that
number had been asked for at the start. Later than that, a run can only be made longer; its rate rises again.

A checkpoint is safetensors and JSON, never pickle: reading one cannot run code.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TypeAlias

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import nn

from models.corpus import InputError, Rows

COOLDOWN = 0.4
# Orthogonal updates bear a higher rate than Adam's.
MATRIX_RATE = 3.0
# Text logs (a run in the background) get a line this often; a terminal gets a live bar.
LOG_EVERY_S = 30.0

LossOf: TypeAlias = Callable[[Rows], torch.Tensor]
RowsOf: TypeAlias = Callable[[int], Rows]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train. A run that resumes may change the first two, `stop_at` and `checkpoint_every_s`."""

    steps: int  # 0: as many as `minutes` allow
    minutes: float  # 0: no limit of time
    learning_rate: float
    warmup: int
    weight_decay: float
    seed: int
    stop_at: int = 0  # stop with a checkpoint at this step; 0: at the end
    checkpoint_every_s: float = 120.0

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.minutes > 0):
            raise InputError(f"--steps {self.steps} and --minutes {self.minutes:g}: give exactly one of them, above 0")


def share_of_rate(step: int, *, steps: int, warmup: int) -> float:
    """The factor on the learning rate at a step (from 0); 0 steps means that the end is not known yet.

    With 100 steps and a warm-up of 10: 0.1 at step 0, 1.0 from step 9 to 60, 0.5 at step 80, 0.025 at step 99.
    """
    rising = min(1.0, (step + 1) / max(warmup, 1))
    if steps == 0:
        return rising
    return min(rising, (steps - step) / max(COOLDOWN * steps, 1.0))


def optimizers_of(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the layers, AdamW for embeddings and norms."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    inner = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in inner]
    optimizers = [
        torch.optim.Muon(
            matrices,
            lr=plan.learning_rate * MATRIX_RATE,
            weight_decay=plan.weight_decay / MATRIX_RATE,
            ns_steps=4,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["highest_rate"] = group["lr"]
    return optimizers


class Trainer:
    """Owns the model's weights, the optimizers and the count of steps while a run lasts."""

    def __init__(self, model: nn.Module, plan: Plan, *, directory: Path, device: torch.device) -> None:
        self.model = model
        self.plan = plan
        self.directory = directory
        self.device = device
        self.optimizers = optimizers_of(model, plan)
        self.step = 0
        self.steps = plan.steps
        self.elapsed_s = 0.0
        torch.manual_seed(plan.seed)
        if _newest(directory) is not None:
            self._restore()

    @property
    def is_done(self) -> bool:
        return self.step == self.steps > 0

    def run(self, rows_of: RowsOf, loss_of: LossOf, *, console: Console) -> None:
        """Train to the last step. Ctrl-C and SIGTERM save a checkpoint first; calling again goes on from it."""
        self.model.train()
        started = logged = saved = time.monotonic()
        before_s = self.elapsed_s
        num_tokens = 0
        with _progress(console) as progress, _terminate_as_interrupt():
            task = progress.add_task("", total=self.steps or None, completed=self.step, loss=0.0, rate=0.0)
            try:
                while not self.is_done and not 0 < self.plan.stop_at <= self.step:
                    rows = rows_of(self.step)
                    loss = self._update(loss_of(rows))
                    num_tokens += rows.inputs.numel()
                    now = time.monotonic()
                    self.elapsed_s = before_s + now - started
                    self._maybe_end()
                    rate = num_tokens / (now - started)
                    progress.update(task, completed=self.step, total=self.steps or None, loss=loss, rate=rate)
                    if not console.is_terminal and now - logged >= LOG_EVERY_S:
                        logged = now
                        console.print(self._line(loss, rate), highlight=False)
                    if now - saved >= self.plan.checkpoint_every_s:
                        self.save()
                        saved = time.monotonic()
            except KeyboardInterrupt:
                self.save()
                console.print(f"stopped at step {self.step}; the same command goes on from there")
                raise
        self.save()
        self.model.eval()
        if not self.is_done:
            console.print(f"stopped at step {self.step}, as --stop-at says")
            return
        console.print(f"done: {self.step} steps in {self.elapsed_s / 60:.1f} minutes (--steps {self.step})")

    def _update(self, loss: torch.Tensor) -> float:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        share = share_of_rate(self.step, steps=self.steps, warmup=self.plan.warmup)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["highest_rate"] * share
            optimizer.step()
        self.step += 1
        return float(loss.detach())

    def _maybe_end(self) -> None:
        """Fix the number of steps once the constant part of the time is used up."""
        if self.steps == 0 and self.elapsed_s >= (1 - COOLDOWN) * self.plan.minutes * 60:
            self.steps = round(self.step / (1 - COOLDOWN))

    def _line(self, loss: float, rate: float) -> str:
        left = "?"
        if self.steps:
            left = f"{self.elapsed_s / self.step * (self.steps - self.step) / 60:.1f} min"
        return f"step {self.step}/{self.steps or '?'}  loss {loss:.3f}  {rate:.0f} tokens/s  left {left}"

    def save(self) -> None:
        """Write a checkpoint; a kill at any moment leaves the old one or the new one whole."""
        fresh = self.directory.with_name(self.directory.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        weights = {name: p.detach().cpu().contiguous() for name, p in self.model.named_parameters()}
        save_file(weights, fresh / "model.safetensors")
        save_file(self._optimizer_tensors(), fresh / "optimizer.safetensors")
        save_file(_random_state(self.device), fresh / "random.safetensors")
        state = {
            "step": self.step,
            "steps": self.steps,
            "elapsed_s": self.elapsed_s,
            "plan": asdict(self.plan),
        }
        (fresh / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        replace_directory(fresh, self.directory)

    def _restore(self) -> None:
        directory = _newest(self.directory)
        assert directory is not None
        state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        self._check_plan(state["plan"])
        weights = load_file(directory / "model.safetensors")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
        self._load_optimizer_tensors(load_file(directory / "optimizer.safetensors"))
        _set_random_state(load_file(directory / "random.safetensors"), self.device)
        self.step, self.elapsed_s = int(state["step"]), float(state["elapsed_s"])
        self._keep_steps(int(state["steps"]))

    def _check_plan(self, saved: dict[str, float]) -> None:
        mine = asdict(self.plan)
        for field in ("learning_rate", "warmup", "weight_decay", "seed"):
            if saved[field] != mine[field]:
                raise InputError(
                    f"--{field.replace('_', '-')} {mine[field]}: the checkpoint {self.directory} was made with "
                    f"{saved[field]}; use that value, or remove the checkpoint to start again"
                )

    def _keep_steps(self, saved_steps: int) -> None:
        """Take the new number of steps, unless the rate would already be falling towards its end.

        A run may also be made longer while its rate falls: the rate then rises again at once.
        """
        if self.steps == 0:
            self.steps = saved_steps
        if self.steps < saved_steps and self.step > (1 - COOLDOWN) * self.steps:
            raise InputError(
                f"--steps {self.steps}: the checkpoint {self.directory} is at step {self.step}, too far for this "
                f"end; use --steps {saved_steps} as before, or more"
            )

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{index}.{parameter}.{name}": value.detach().cpu().contiguous()
            for index, optimizer in enumerate(self.optimizers)
            for parameter, entries in optimizer.state_dict()["state"].items()
            for name, value in entries.items()
        }

    def _load_optimizer_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in self.optimizers]
        for key, value in tensors.items():
            index, parameter, name = key.split(".", 2)
            states[int(index)].setdefault(int(parameter), {})[name] = value
        for optimizer, state in zip(self.optimizers, states, strict=True):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})


def replace_directory(fresh: Path, target: Path) -> None:
    """Move a finished directory to its place; the old one stays beside it until the new one is there."""
    old = target.with_name(target.name + ".old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    os.replace(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def _newest(directory: Path) -> Path | None:
    """The checkpoint to resume from: a kill between two renames leaves only the `.old` one."""
    for candidate in (directory, directory.with_name(directory.name + ".old")):
        if (candidate / "state.json").exists():
            return candidate
    return None


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[rate]:.0f} tokens/s"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, which schedulers send, end a run as cleanly as Ctrl-C does."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # Only the main thread may set a handler; elsewhere the default must do.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
