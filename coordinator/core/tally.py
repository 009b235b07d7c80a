"""What comes of a request, counted: its metrics, and what its verdicts tell of its workers."""

from __future__ import annotations

from collections.abc import Collection

from coordinator.core.metrics import RequestMetrics
from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from coordinator.core.planner import Planner
from paceline.types import Draft, Mode, Rule, Source, Verdict


class Tally:
    """See the top of the file."""

    def __init__(self, planner: Planner, rule: Rule, num_prompt_tokens: int, now_s: float) -> None:
        self.arrived_s = now_s
        self.metrics = RequestMetrics(
            planner.mode, rule, str(planner.policy), planner.window, num_prompt_tokens=num_prompt_tokens
        )

    def taken(self, now_s: float) -> None:
        """The first verifier has taken it."""
        self.metrics.queue_ms = 1e3 * (now_s - self.arrived_s)

    def planned(self, planner: Planner) -> None:
        self.metrics.planned(planner.mode, str(planner.policy), planner.window)

    def began(self, planner: Planner, pace: Pace, *, by_branch: bool) -> None:
        """A new run has its first draft."""
        if planner.mode is Mode.BRANCH:
            pace.began(by_branch=by_branch)
            self.metrics.began(by_branch=by_branch)

    def verified(
        self,
        verdict: Verdict,
        start: int,
        sources: tuple[Source, ...],
        drafts: Collection[Draft],
        mode: Mode,
        now_s: float,
    ) -> None:
        """A verdict has brought tokens from `start` on, while `drafts` were in flight."""
        if not self.metrics.sources:
            self.metrics.ttft_ms = 1e3 * (now_s - self.arrived_s)
        self.metrics.verified(verdict, drafts, now_s)
        self.metrics.sources.update(sources)
        self.metrics.tokens_by_mode[mode] += len(sources)
        self.metrics.settled(start, sources, drafts)
        self.metrics.judged(verdict, start, sources, drafts)

    def measured(
        self,
        verdict: Verdict,
        sources: tuple[Source, ...],
        asked_s: float | None,
        pace: Pace,
        passes: PassTimes,
        now_s: float,
    ) -> None:
        """What it tells of the drafter's pace and the verifier's passes; its draft was sent at `asked_s`."""
        if asked_s is not None and verdict.num_drafts:
            wire_ms = max(0.0, 1e3 * (now_s - asked_s) - verdict.verify_ms - verdict.queue_ms)
            self.metrics.wire_ms += wire_ms
            pace.round_trip(wire_ms / 1e3)
        if verdict.verify_ms and verdict.batch_tokens:
            passes.seen(verdict.batch_tokens, verdict.verify_ms / 1e3)
        num_accepted = sum(source is Source.ACCEPTED for source in sources)
        pace.verified(verdict.verify_ms / 1e3, num_accepted, verdict.num_tested)
        if verdict.num_drafts:
            pace.breaker.judged()

    def ended(self, now_s: float) -> None:
        self.metrics.e2e_ms = 1e3 * (now_s - self.arrived_s)
