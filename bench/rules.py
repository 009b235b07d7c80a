"""`block` against `token`: how much more of a draft is accepted when it is judged as a whole (Sun et al. 2024).

Both rules judge drafts of the same lengths on the same prompts and seeds, in mode `sequential`, where each draft is a
block of its own. The seed fixes the verifier's coins; the drafter's noise is fresh. Figures are ratios of sums over all
requests; the interval resamples prompts, each with all its runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.resample import interval
from bench.row import Row, Sample, Setting, take_turns
from bench.tuning import Timer
from paceline.types import Tokens

BASELINE = "token"


@dataclass(frozen=True, slots=True)
class RuleSetting(Setting):
    rule: str = BASELINE
    length: int = 1


Judge = Callable[[RuleSetting, Tokens, int], Sample]  # setting, prompt, seed


@dataclass(slots=True)
class Comparison:
    """By setting, the samples of every prompt: `samples[setting][prompt]` is one a seed."""

    samples: dict[RuleSetting, list[list[Sample]]] = field(default_factory=dict)
    num_left_out: int = 0  # prompts


def settings(rules: Sequence[str], lengths: Sequence[int]) -> list[RuleSetting]:
    return [
        RuleSetting(f"{rule}, {length}", "sequential", f"fixed:length={length}", 0, rule, length)
        for length in lengths
        for rule in rules
    ]


def compare(
    rules: Sequence[str], lengths: Sequence[int], prompts: Sequence[Tokens], num_seeds: int, judge: Judge, timer: Timer
) -> Comparison:
    """All settings in turns on one prompt after another, with each of the seeds, while there is time."""
    found = Comparison({setting: [] for setting in settings(rules, lengths)})
    begun_s = timer.left_s
    for number, prompt in enumerate(prompts):
        if number and timer.left_s < (begun_s - timer.left_s) / number:
            found.num_left_out = len(prompts) - number
            break
        rows = [Row(setting) for setting in found.samples]
        for seed in range(num_seeds):

            def sample(setting: RuleSetting, prompt: Tokens, seed: int = 1 + seed + num_seeds * number) -> Sample:
                return judge(setting, prompt, seed)

            take_turns(rows, prompt, number + seed, sample)
        for row in rows:
            found.samples[row.setting].append(row.samples)
    return found


def figures(found: Comparison) -> list[dict[str, Any]]:
    """One entry a setting; `over_token` compares tokens per pass (the paper's block efficiency) with `token`'s."""
    entries = []
    for setting, per_prompt in found.samples.items():
        counts = [_counts(samples) for samples in per_prompt]
        row = Row(setting, [sample for samples in per_prompt for sample in samples])
        entry: dict[str, Any] = {
            "rule": setting.rule,
            "length": setting.length,
            "accepted_per_draft": efficiency(counts) - 1,
            "accepted_per_tested": row.figures()["accepted_per_tested"],
            "block_efficiency": efficiency(counts),
            "num_prompts": len(per_prompt),
            "num_drafts": row.total("num_drafts"),
            "fallbacks": row.figures()["fallbacks"],
        }
        other = next((of for s, of in found.samples.items() if (s.rule, s.length) == (BASELINE, setting.length)), None)
        if other is not None and setting.rule != BASELINE:
            pairs = list(zip(counts, map(_counts, other), strict=True))
            entry["over_token"] = gain(pairs)
            entry["over_token_interval"] = interval(pairs, gain)
        entries.append(entry)
    return entries


Counts = tuple[float, float]  # accepted tokens, judged drafts


def efficiency(counts: Sequence[Counts]) -> float:
    """Tokens a judged draft yields, with the target's own: 1 + accepted / drafts. Example: (6, 2), (2, 2) → 3."""
    return 1 + sum(accepted for accepted, _ in counts) / max(1.0, sum(drafts for _, drafts in counts))


def gain(pairs: Sequence[tuple[Counts, Counts]]) -> float:
    """How much more the first of each pair yields: 0.08 is 8 % more."""
    return efficiency([mine for mine, _ in pairs]) / efficiency([theirs for _, theirs in pairs]) - 1


def _counts(samples: Sequence[Sample]) -> Counts:
    metrics = [sample.completion.metrics for sample in samples if sample.completion]
    return sum(m["num_accepted_tokens"] for m in metrics), sum(m["num_drafts"] for m in metrics)
