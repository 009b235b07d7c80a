"""The same prompts in several modes, side by side: measured in turns, compared prompt by prompt.

Machines are noisy, and their noise comes in stretches. So every prompt runs in all modes one right after the other,
in an order that rotates, and a speed-up is the ratio within a prompt: the median of these says more than the ratio
of two means, and their range says how far to trust it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from paceline.client import AsyncClient, Completion
from paceline.length_policy import LengthPolicy
from paceline.types import Mode

Advance = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """A mode and how it drafts."""

    mode: Mode
    policy: LengthPolicy
    window: int


@dataclass(frozen=True, slots=True)
class Run:
    completion: Completion
    seconds: float  # as the client saw it, prefill included

    @property
    def tokens_per_s(self) -> float:
        return len(self.completion.token_ids) / self.seconds


Runs = Mapping[Mode, Sequence[Run]]  # one run a prompt, in the same order for every mode


@dataclass(frozen=True, slots=True)
class Figures:
    """What a mode did over all prompts. The names are those of `paceline demo --json`."""

    tokens_per_s: float  # all tokens over all time
    speed_up: float  # over `off`: median of the prompts' ratios
    speed_up_min: float
    speed_up_max: float
    accepted_per_tested: float | None  # None where nothing was tested
    mean_accepted_length: float | None
    overlap_share: float  # of drafting time, during which a verification ran
    target_passes_per_token: float
    num_tokens: int
    length_policy: str | None
    window: int | None

    def to_json(self) -> dict[str, object]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


async def measure(
    client: AsyncClient,
    prompts: Sequence[str],
    settings: Sequence[Setting],
    *,
    max_tokens: int,
    within_s: float,
    advance: Advance,
) -> dict[Mode, list[Run]]:
    """Greedy runs of every prompt in every mode; of the first prompts only, if all would take over `within_s`."""
    runs: dict[Mode, list[Run]] = {setting.mode: [] for setting in settings}
    begun_s = time.perf_counter()
    for i, prompt in enumerate(prompts):
        spent_s = time.perf_counter() - begun_s
        if i and spent_s * (i + 1) / i > within_s:
            break
        first = i % len(settings)
        for setting in (*settings[first:], *settings[:first]):
            runs[setting.mode].append(await run(client, prompt, setting, max_tokens=max_tokens))
            advance()
    return runs


async def run(client: AsyncClient, prompt: str, setting: Setting, *, max_tokens: int) -> Run:
    started_s = time.perf_counter()
    completion = await client.complete(
        prompt,
        max_tokens=max_tokens,
        mode=setting.mode,
        length_policy=setting.policy,
        window=setting.window,
        timeout_s=120,
    )
    return Run(completion, time.perf_counter() - started_s)


def figures(runs: Sequence[Run], baseline: Sequence[Run]) -> Figures:
    """What `runs` amount to, against the runs of the same prompts in mode `off`."""

    def total(field: str) -> float:
        return float(sum(run.completion.metrics[field] for run in runs))

    ratios = [run.tokens_per_s / off.tokens_per_s for run, off in zip(runs, baseline, strict=True)]
    num_tokens = sum(len(run.completion.token_ids) for run in runs)
    tested, drafts, draft_ms = total("num_tested_tokens"), total("num_drafts"), total("draft_ms")
    overlap_ms = sum(run.completion.metrics["overlap_share"] * run.completion.metrics["draft_ms"] for run in runs)
    last = runs[-1].completion.metrics
    drafted = last["mode"] != Mode.OFF
    return Figures(
        tokens_per_s=num_tokens / sum(run.seconds for run in runs),
        speed_up=statistics.median(ratios),
        speed_up_min=min(ratios),
        speed_up_max=max(ratios),
        accepted_per_tested=total("num_accepted_tokens") / tested if tested else None,
        mean_accepted_length=1 + total("num_accepted_tokens") / drafts if drafts else None,
        overlap_share=overlap_ms / draft_ms if draft_ms else 0.0,
        target_passes_per_token=total("num_target_passes") / num_tokens,
        num_tokens=num_tokens,
        length_policy=last["length_policy"] if drafted else None,
        window=last["window"] if drafted else None,
    )


def differing(runs: Runs) -> list[int]:
    """The prompts (by index) whose tokens are not the same in all modes."""
    outputs = [[run.completion.token_ids for run in of_mode] for of_mode in runs.values()]
    return [i for i, same_prompt in enumerate(zip(*outputs, strict=True)) if len(set(same_prompt)) > 1]
