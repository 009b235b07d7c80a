"""What came of a world: sums and distributions, in virtual time, and nothing of how long it took to simulate."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from bench.simulator.world import Client
from paceline.errors import Overloaded
from paceline.types import Source


@dataclass(slots=True)
class Outcome:
    """Filled while the world runs; `figures` at its end."""

    num_ended: int = 0
    num_refused: int = 0  # told at once to come back later
    num_failed: int = 0  # lost more verifiers than a request may
    num_tokens: int = 0
    num_passes: int = 0
    num_drafted: int = 0
    num_tested: int = 0
    num_branch_tokens: int = 0
    num_promoted_tokens: int = 0  # of them
    num_hits: int = 0  # runs that began with a branch
    num_misses: int = 0  # runs in mode branch that waited for a draft
    num_deaths: int = 0
    num_events: int = 0
    seconds: float = 0.0  # virtual, from the first request to the last answer
    oracle_s: float = 0.0  # what they would take with a free drafter that stops before each rejection, one by one
    busy_s: dict[str, float] = field(default_factory=lambda: {"v": 0.0, "d": 0.0})
    sources: Counter[Source] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)  # that requests ended in
    ttft_s: list[float] = field(default_factory=list)
    e2e_s: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # tokens/s of each request, as its client sees them

    def count(self, client: Client, now_s: float) -> None:
        """Take in a client that has been answered."""
        self.num_ended += 1
        if isinstance(client.error, Overloaded):
            self.num_refused += 1
        elif client.error:
            self.num_failed += 1
        if client.metrics is None:
            return
        metrics = client.metrics
        self.num_tokens += len(client.tokens)
        self.num_passes += metrics.num_target_passes
        self.num_drafted += metrics.num_draft_tokens
        self.num_tested += metrics.num_tested_tokens
        self.num_branch_tokens += metrics.num_branch_tokens
        self.num_promoted_tokens += metrics.num_promoted_tokens
        self.num_hits += metrics.num_branch_hits
        self.num_misses += metrics.num_branch_misses
        self.sources.update(metrics.sources)
        self.fallbacks.update(metrics.fallbacks)
        self.modes[metrics.mode] += 1
        e2e_s = now_s - client.arrived_s
        self.ttft_s.append(client.at_s[0] - client.arrived_s)
        self.e2e_s.append(e2e_s)
        self.rates.append(len(client.tokens) / e2e_s)

    @property
    def tokens_per_s(self) -> float:
        """Of all clients together."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    @property
    def oracle_share(self) -> float | None:
        """The rate as a share of the oracle's; None where requests shared a verifier."""
        return self.oracle_s / self.seconds if self.oracle_s else None

    def figures(self) -> dict[str, Any]:
        """Everything as plain numbers. The same world gives the same figures, digit for digit."""
        accepted = self.sources[Source.ACCEPTED]
        wasted = self.num_branch_tokens - self.num_promoted_tokens
        return {
            "num_requests": self.num_ended,
            "num_refused": self.num_refused,
            "num_failed": self.num_failed,
            "num_tokens": self.num_tokens,
            "seconds": self.seconds,
            "tokens_per_s": self.tokens_per_s,
            "request_tokens_per_s": _median(self.rates),
            "oracle_share": self.oracle_share,
            "ttft_ms": _spread_ms(self.ttft_s),
            "e2e_ms": _spread_ms(self.e2e_s),
            "accepted_per_tested": accepted / self.num_tested if self.num_tested else None,
            "wasted_per_drafted": 1 - accepted / self.num_drafted if self.num_drafted else None,
            "branch_hit_rate": self.num_hits / num_runs if (num_runs := self.num_hits + self.num_misses) else None,
            "branch_tokens_per_token": self.num_branch_tokens / self.num_tokens if self.num_tokens else None,
            "wasted_per_branch_token": wasted / self.num_branch_tokens if self.num_branch_tokens else None,
            "passes_per_token": self.num_passes / self.num_tokens if self.num_tokens else None,
            "verifier_busy_s": self.busy_s["v"],
            "drafter_busy_s": self.busy_s["d"],
            "sources": {source.value: self.sources[source] for source in Source},
            "fallbacks": dict(sorted(self.fallbacks.items())),
            "modes": dict(sorted(self.modes.items())),
            "num_deaths": self.num_deaths,
            "num_events": self.num_events,
        }


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _spread_ms(values_s: list[float]) -> dict[str, float] | None:
    if not values_s:
        return None
    ordered = sorted(values_s)
    return {
        name: 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }
