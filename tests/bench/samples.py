"""Requests as the benchmarks see them, without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.row import Row, Sample, Setting
from paceline.client import Completion
from paceline.types import FinishReason, Source

METRICS: Mapping[str, Any] = {
    "num_drafts": 2,
    "num_received_drafts": 3,
    "num_draft_tokens": 12,
    "num_tested_tokens": 8,
    "num_accepted_tokens": 6,
    "num_wasted_tokens": 6,
    "num_target_passes": 4,
    "draft_ms": 12.0,
    "verify_ms": 40.0,
    "overlap_share": 0.5,
    "e2e_ms": 100.0,
    "fallbacks": {"late draft": 1},
}


def sample(seconds: float = 0.1, num_tokens: int = 8, sources: Sequence[Source] = (), **metrics: Any) -> Sample:
    completion = Completion(
        text="",
        token_ids=tuple(range(num_tokens)),
        sources=tuple(sources),
        finish_reason=FinishReason.LENGTH,
        metrics={**METRICS, "e2e_ms": 1e3 * seconds, **metrics},
        request_id="",
    )
    return Sample(num_tokens, seconds, completion)


def row(*samples: Sample, name: str = "a", policy: str = "fixed:length=8", mode: str = "sequential") -> Row[Setting]:
    return Row(Setting(name, mode, policy), list(samples))
