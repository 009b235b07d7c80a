"""What one request did: the numbers the papers talk about, counted where they happen.

Draft and verify intervals are placed on the coordinator's clock by their arrival and the duration the worker reports,
so no two clocks are ever compared; a one-way delay shifts an interval by at most that delay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from paceline.types import Branch, Draft, Source, Verdict


@dataclass(slots=True)
class RequestMetrics:
    """Counts in tokens unless the name says otherwise, times in milliseconds."""

    mode: str
    rule: str
    length_policy: str
    window: int
    num_prompt_tokens: int
    num_drafts: int = 0  # judged
    num_received_drafts: int = 0  # from drafters, judged or not
    num_draft_tokens: int = 0  # in them
    num_judged_tokens: int = 0  # in the drafts judged: what vLLM calls draft tokens
    num_tested_tokens: int = 0
    num_stale_drafts: int = 0
    num_branches: int = 0  # from drafters
    num_branch_tokens: int = 0  # drafted in them
    branch_draft_ms: float = 0.0  # of them all; promoted ones count in `draft_ms`, too
    num_branch_hits: int = 0  # runs that began with a branch
    num_branch_misses: int = 0  # runs in mode branch that waited for a draft of their own
    num_target_passes: int = 0
    tokens_by_mode: Counter[str] = field(default_factory=Counter)  # `off` where no drafter was to be had
    num_promoted_tokens: int = 0  # of branches, and counted as draft tokens since
    sources: Counter[Source] = field(default_factory=Counter)
    accepted_at: Counter[int] = field(default_factory=Counter)  # accepted tokens by their place in their draft, from 0
    drafts_by_accepted: Counter[int] = field(default_factory=Counter)  # judged ones, by their accepted tokens
    longest_draft: int = 0  # received, in tokens
    fallbacks: Counter[str] = field(default_factory=Counter)  # self-decodes by reason
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    wire_ms: float = 0.0  # verify round trips less the verifier's own time, of drafts that waited for no other
    queue_ms: float = 0.0  # arrival to a verifier's taking it
    ttft_ms: float = 0.0
    e2e_ms: float = 0.0
    coordinator_ms: float = 0.0  # added by the shell, which has a clock
    _drafting: list[tuple[float, float]] = field(default_factory=list)
    _verifying: list[tuple[float, float]] = field(default_factory=list)

    def planned(self, mode: str, length_policy: str, window: int) -> None:
        """From now on; the last plan is what is reported."""
        self.mode, self.length_policy, self.window = mode, length_policy, window

    def drafted(self, draft: Draft, now_s: float) -> None:
        self.num_received_drafts += 1
        self.num_draft_tokens += len(draft.token_ids)
        self.longest_draft = max(self.longest_draft, len(draft.token_ids))
        self.draft_ms += draft.draft_ms
        self._drafting.append((now_s - draft.draft_ms / 1e3, now_s))

    def branched(self, branch: Branch) -> None:
        self.num_branches += 1
        self.num_branch_tokens += len(branch.draft.token_ids)
        self.branch_draft_ms += branch.draft.draft_ms

    def promoted(self, draft: Draft, now_s: float) -> None:
        """A branch is a draft from now on."""
        self.num_promoted_tokens += len(draft.token_ids)
        self.drafted(draft, now_s)

    def began(self, *, by_branch: bool) -> None:
        self.num_branch_hits += by_branch
        self.num_branch_misses += not by_branch

    def verified(self, verdict: Verdict, drafts: Iterable[Draft], now_s: float) -> None:
        """Count a verdict that brought something new; repeated ones are not to be counted again.

        `drafts` are those in flight, of which the verdict judged the first ones from its own start on: what was
        committed before a draft's turn came is not judged. A draft that has been forgotten since, with its drafter,
        counts as long as what was looked at.
        """
        self.num_drafts += verdict.num_drafts
        self.num_tested_tokens += verdict.num_tested
        num_judged = sum(draft.end - max(draft.start, verdict.start) for draft in _judged(verdict, drafts))
        self.num_judged_tokens += max(num_judged, verdict.num_tested)
        if verdict.verify_ms:
            self.num_target_passes += 1
            self.verify_ms += verdict.verify_ms
            self._verifying.append((now_s - verdict.verify_ms / 1e3, now_s))

    def settled(self, start: int, sources: Sequence[Source], drafts: Iterable[Draft]) -> None:
        """Count where in their drafts the accepted ones of the new tokens stood, those from `start` on."""
        for draft in drafts:
            for at in range(len(draft.token_ids)):
                i = draft.start + at - start
                if 0 <= i < len(sources) and sources[i] is Source.ACCEPTED:
                    self.accepted_at[at] += 1

    def judged(self, verdict: Verdict, start: int, sources: Sequence[Source], drafts: Iterable[Draft]) -> None:
        """Count how many of the new tokens, those from `start` on, each draft judged has brought.

        What comes of no draft that is remembered is of the first forgotten one.
        """
        accepted = [at for at, source in enumerate(sources, start) if source is Source.ACCEPTED]
        counts = [sum(draft.start <= at < draft.end for at in accepted) for draft in _judged(verdict, drafts)]
        num_forgotten = verdict.num_drafts - len(counts)
        if num_forgotten:
            counts.append(len(accepted) - sum(counts))
            self.drafts_by_accepted[0] += num_forgotten - 1
        self.drafts_by_accepted.update(counts)

    @property
    def num_generated_tokens(self) -> int:
        return self.sources.total()

    @property
    def num_accepted_tokens(self) -> int:
        return self.sources[Source.ACCEPTED]

    @property
    def num_wasted_tokens(self) -> int:
        return self.num_draft_tokens - self.num_accepted_tokens

    @property
    def num_wasted_branch_tokens(self) -> int:
        return self.num_branch_tokens - self.num_promoted_tokens

    @property
    def branch_runs(self) -> dict[str, int]:
        """Runs in mode branch, by whether a branch was there for them."""
        return {"hit": self.num_branch_hits, "miss": self.num_branch_misses}

    @property
    def mean_accepted_length(self) -> float:
        """Tokens a judged draft yields with the target's own token after it (vLLM's mean acceptance length)."""
        return 1 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else 0.0

    @property
    def acceptance_histogram(self) -> list[int]:
        """Drafts judged by their accepted tokens: none, one, and so on, to as many as the longest draft had."""
        longest = max([self.longest_draft, *self.drafts_by_accepted])
        return [self.drafts_by_accepted[num_accepted] for num_accepted in range(longest + 1)]

    @property
    def overlap_share(self) -> float:
        """The share of drafting time during which a verification ran."""
        total_s = sum(end - start for start, end in self._drafting)
        return _overlap_s(self._drafting, self._verifying) / total_s if total_s else 0.0

    def figures(self) -> dict[str, Any]:
        """Everything a client is told, by the names of `RequestMetrics` in coordinator.proto."""
        fields = (
            *("mode", "rule", "length_policy", "window", "num_prompt_tokens", "num_generated_tokens", "num_drafts"),
            "num_received_drafts",
            *("num_draft_tokens", "num_judged_tokens", "num_tested_tokens"),
            *("num_accepted_tokens", "num_wasted_tokens", "num_stale_drafts"),
            *("num_target_passes", "mean_accepted_length", "draft_ms", "verify_ms", "overlap_share", "queue_ms"),
            *("ttft_ms", "e2e_ms", "coordinator_ms", "wire_ms"),
            *("num_branches", "num_branch_tokens", "num_branch_hits", "num_branch_misses", "num_wasted_branch_tokens"),
            "branch_draft_ms",
        )
        return {name: getattr(self, name) for name in fields} | {
            "num_recovered_tokens": self.sources[Source.RECOVERED],
            "num_bonus_tokens": self.sources[Source.BONUS],
            "num_self_decoded_tokens": self.sources[Source.SELF_DECODED],
            "fallbacks": dict(self.fallbacks),
            "tokens_by_mode": dict(self.tokens_by_mode),
        }


def _judged(verdict: Verdict, drafts: Iterable[Draft]) -> Iterable[Draft]:
    """Of those in flight the ones that the verdict judged, without those forgotten."""
    return islice((draft for draft in drafts if draft.epoch == verdict.epoch), verdict.num_drafts)


def _overlap_s(some: Iterable[tuple[float, float]], others: Iterable[tuple[float, float]]) -> float:
    """Seconds of `some` covered by the union of `others`. Example: [(0, 4)], [(1, 2), (3, 9)] → 2."""
    union: list[list[float]] = []
    for start, end in sorted(others):
        if union and start <= union[-1][1]:
            union[-1][1] = max(union[-1][1], end)
        else:
            union.append([start, end])
    covered_s, first = 0.0, 0
    for start, end in sorted(some):
        while first < len(union) and union[first][1] <= start:
            first += 1
        at = first
        while at < len(union) and union[at][0] < end:
            covered_s += max(0.0, min(end, union[at][1]) - max(start, union[at][0]))
            at += 1
    return covered_s
