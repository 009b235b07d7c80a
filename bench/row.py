"""One setting of the served system over many prompts, and what its runs amount to.

Settings are compared on the same prompts and take turns, in an order that moves on with each prompt: machines are
noisy, their noise comes in stretches, and so a bad minute falls on all of them alike.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from paceline.client import Client, Completion
from paceline.types import Tokens

TIMEOUT_S = 120.0  # of one request: a hundred times what one takes


@dataclass(frozen=True, slots=True)
class Setting:
    """How requests of a row are made."""

    name: str
    mode: str = ""
    policy: str = ""
    window: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt under one setting. `completion` is None where somebody else than Paceline wrote it."""

    num_tokens: int
    seconds: float
    completion: Completion | None = None

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.seconds


S = TypeVar("S", bound=Setting)


@dataclass(slots=True)
class Row(Generic[S]):
    """A setting with its samples, one a prompt."""

    setting: S
    samples: list[Sample] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(sample.num_tokens for sample in self.samples)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / sum(sample.seconds for sample in self.samples)

    def completions(self) -> list[Completion]:
        return [sample.completion for sample in self.samples if sample.completion]

    def total(self, name: str) -> float:
        """The sum of one of the requests' metrics."""
        return float(sum(completion.metrics[name] for completion in self.completions()))

    def figures(self) -> dict[str, Any]:
        """What the papers report, and what it cost. Lengths in tokens; None where nothing was drafted."""
        drafts, drafted = self.total("num_drafts"), self.total("num_draft_tokens")
        tested, passes = self.total("num_tested_tokens"), self.total("num_target_passes")
        accepted, wasted = self.total("num_accepted_tokens"), self.total("num_wasted_tokens")
        return {
            "tokens_per_s": self.tokens_per_s,
            "accepted_per_draft": _share(accepted, drafts),
            "accepted_per_tested": _share(accepted, tested),
            "wasted_tokens": wasted,
            "wasted_per_drafted": _share(wasted, drafted),
            "mean_draft_length": _share(drafted, self.total("num_received_drafts")),
            "passes_per_token": _share(passes, self.num_tokens),
            "overlap_share": statistics.mean(c.metrics["overlap_share"] for c in self.completions()),
            "verify_ms_per_pass": _share(self.total("verify_ms"), passes),
            "draft_ms_per_token": _share(self.total("draft_ms"), drafted),
            "fallbacks": dict(sum((Counter(c.metrics["fallbacks"]) for c in self.completions()), Counter[str]())),
            "num_prompts": len(self.samples),
        }


def ratios(row: Row[S], baseline: Row[S]) -> list[float]:
    """The row's tokens/s over the baseline's, prompt by prompt."""
    return [a.tokens_per_s / b.tokens_per_s for a, b in zip(row.samples, baseline.samples, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of one value, that value."""
    if len(values) < 2:
        return (values[0],) * 3
    first, median, third = statistics.quantiles(values, n=4)
    return first, median, third


def take_turns(
    rows: Sequence[Row[S]], prompt: Tokens, number: int, sample: Callable[[S, Tokens], Sample], *, keep: bool = True
) -> None:
    """One more sample for every row; `number` says which of them begins. `keep=False` only warms up.

    Every second round goes backwards: what a setting leaves behind in the processes, such as how long a draft usually
    takes, must not always fall on the same neighbour.
    """
    first = number % len(rows)
    order = (*rows[first:], *rows[:first])
    for row in order if number % 2 == 0 else reversed(order):
        taken = sample(row.setting, prompt)
        if keep:
            row.samples.append(taken)


def complete(
    client: Client,
    setting: Setting,
    prompt: Tokens,
    *,
    max_tokens: int,
    temperature: float,
    rule: str = "auto",
    seed: int | None = None,
) -> Sample:
    """One request, from its arrival at the coordinator to its last token."""
    answer = client.complete(
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        mode=setting.mode,
        length_policy=setting.policy or None,
        window=setting.window,
        rule=rule,
        seed=seed,
        timeout_s=TIMEOUT_S,
    )
    return Sample(len(answer.token_ids), answer.metrics["e2e_ms"] / 1e3, answer)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
