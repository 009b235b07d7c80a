"""The modes of one running server side by side: each round of prompts in every mode, in an order that moves on.

A round is as many prompts as run at a time. Its modes follow one another within seconds, so a noisy minute falls on all
of them alike, and the ratios of a round are paired. A server that does not say in which mode it worked has ignored the
question, which is an error: its ratios would be those of noise.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from bench.row import quartiles
from bench.serving.call import Caller, Outcome
from bench.serving.datasets import Ask
from bench.serving.figures import percentile, times_ms
from paceline.errors import Unavailable


@dataclass(slots=True)
class Side:
    """One mode, over all rounds."""

    mode: str
    rounds: list[list[Outcome]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each round

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for outcomes in self.rounds for outcome in outcomes]

    @property
    def speeds(self) -> list[float]:
        """Output tokens a second of each round."""
        counts = [sum(outcome.num_output_tokens for outcome in outcomes) for outcomes in self.rounds]
        return [count / seconds for count, seconds in zip(counts, self.seconds, strict=True)]

    @property
    def ran_in(self) -> Counter[str]:
        """Requests by the mode in which the server says that they ended."""
        return Counter(str(outcome.metrics["mode"]) for outcome in self.outcomes)

    def figures(self, base: Side) -> dict[str, Any]:
        """Beside `base`: the ratio of speeds is the median of the rounds', with the quartiles."""
        ratios = [own / other for own, other in zip(self.speeds, base.speeds, strict=True)]
        first, median, third = quartiles(ratios)
        times = times_ms(self.outcomes)
        totals = {name: self._total(name) for name in ("num_accepted_tokens", "num_tested_tokens")}
        texts = zip(self.outcomes, base.outcomes, strict=True)
        return {
            "mode": self.mode,
            "output_throughput": sum(outcome.num_output_tokens for outcome in self.outcomes) / sum(self.seconds),
            "ratio": median,
            "ratio_quartiles": [first, third],
            **{f"median_{name}_ms": percentile(values, 50) for name, values in times.items()},
            **{f"p99_{name}_ms": percentile(values, 99) for name, values in times.items()},
            **totals,
            "num_drafts": self._total("num_drafts"),
            "num_by_mode": dict(self.ran_in),
            "overlap_share": self._mean("overlap_share"),
            "num_same_text": sum(own.text == other.text for own, other in texts),
            "num_prompts": len(self.outcomes),
            "ratios": ratios,
        }

    def _total(self, name: str) -> int:
        return sum(outcome.metrics[name] for outcome in self.outcomes)

    def _mean(self, name: str) -> float:
        return float(sum(outcome.metrics[name] for outcome in self.outcomes)) / len(self.outcomes)


async def compare(
    caller: Caller, asks: Sequence[Ask], modes: Sequence[str], concurrency: int, advance: Callable[[], None]
) -> list[Side]:
    """Every mode on every prompt, after one round that only warms up. Raises Unavailable for a request that fails."""
    sides = [Side(mode) for mode in modes]
    groups = [asks[at : at + concurrency] for at in range(0, len(asks), concurrency)]
    for number, group in enumerate([groups[0], *groups]):
        first = number % len(sides)
        order = [*sides[first:], *sides[:first]]
        for side in order if number % 2 == 0 else reversed(order):
            begun_s = time.perf_counter()
            outcomes = await asyncio.gather(*(caller.call(ask, speculative={"mode": side.mode}) for ask in group))
            seconds = time.perf_counter() - begun_s
            _check(outcomes, side.mode)
            if number:
                side.rounds.append(outcomes)
                side.seconds.append(seconds)
            advance()
    return sides


def _check(outcomes: Sequence[Outcome], mode: str) -> None:
    for outcome in outcomes:
        if outcome.error:
            raise Unavailable(f"--compare: a request in mode {mode} failed: {outcome.error}")
        if "mode" not in outcome.metrics:
            raise Unavailable("--compare: the server does not say in which mode it worked, so it has none to compare")


def doubts(sides: Sequence[Side]) -> Iterator[str]:
    """Why a side's figures may not be those of its mode: it was another that ran, or nothing was drafted."""
    for side in sides:
        others = {mode: count for mode, count in side.ran_in.items() if mode != side.mode}
        if side.mode == "auto":
            chosen = ", ".join(f"{mode} for {count}" for mode, count in side.ran_in.most_common())
            yield f"auto chose, of {len(side.outcomes)} requests: {chosen}"
            continue
        if others:
            told = ", ".join(f"{count} as {mode}" for mode, count in others.items())
            yield f"{side.mode}: of {len(side.outcomes)} requests the server ran {told}; the row is not that mode's"
        if side.mode != "off" and not sum(outcome.metrics["num_tested_tokens"] for outcome in side.outcomes):
            yield f"{side.mode}: no draft was tested, so this was plain decoding; is a drafter connected?"


def table(sides: Sequence[Side], base: Side) -> Table:
    about = f"tokens/s over {base.mode}'s: the median of paired rounds, with quartiles"
    shown = Table(title=about)
    for column in (
        "mode",
        "tokens/s",
        "ratio",
        "TTFT ms",
        "TPOT ms",
        "P99 ITL ms",
        "accepted/tested",
        "overlap",
        "same",
    ):
        shown.add_column(column, justify="left" if column == "mode" else "right", no_wrap=True)
    for side in sides:
        of = side.figures(base)
        low, high = of["ratio_quartiles"]
        tested = of["num_tested_tokens"]
        shown.add_row(
            side.mode,
            f"{of['output_throughput']:.1f}",
            f"{of['ratio']:.2f} ({low:.2f}–{high:.2f})",
            f"{of['median_ttft_ms']:.0f}",
            f"{of['median_tpot_ms']:.1f}",
            f"{of['p99_itl_ms']:.1f}",
            f"{of['num_accepted_tokens'] / tested:.2f}" if tested else "–",
            f"{of['overlap_share']:.2f}" if tested else "–",
            f"{of['num_same_text']}/{of['num_prompts']}",
        )
    return shown
