"""How fast each worker is, as its answers tell: what the web page and the metrics show of the pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from coordinator.core.commands import Command
from coordinator.core.events import Drafted, Event, Verified, WorkerDown
from paceline.types import Source

_WEIGHT = 0.1  # of the newest value: about the last twenty count


@dataclass(slots=True)
class WorkerStats:
    """Of one worker, since its first answer."""

    num_answers: int = 0  # drafts of a drafter, passes of a verifier
    num_tokens: int = 0  # drafted, or committed
    ms: float | None = None  # one draft or pass takes this long, of late
    ms_per_token: float | None = None  # of late, while it works
    num_accepted: int = 0  # of a verifier: tokens that a drafter had right

    def answered(self, ms: float, num_tokens: int) -> None:
        self.num_answers += 1
        self.num_tokens += num_tokens
        self.ms = _mean(self.ms, ms)
        if num_tokens:
            self.ms_per_token = _mean(self.ms_per_token, ms / num_tokens)

    @property
    def tokens_per_s(self) -> float | None:
        """While it works on a request, and for one request; None before the first answer."""
        return 1e3 / self.ms_per_token if self.ms_per_token else None


@dataclass(slots=True)
class PoolStats:
    """Of the workers that are here and have answered, by name. An observer of the coordinator."""

    workers: dict[str, WorkerStats] = field(default_factory=dict)

    def observe(self, event: Event, commands: Sequence[Command], now_s: float) -> None:
        match event:
            case WorkerDown(worker):
                self.workers.pop(worker, None)
            case Drafted(worker, draft) if draft.draft_ms:
                self._of(worker).answered(draft.draft_ms, len(draft.token_ids))
            case Verified(worker, verdict) if verdict.verify_ms:
                stats = self._of(worker)
                stats.answered(verdict.verify_ms, len(verdict.token_ids))
                stats.num_accepted += sum(source is Source.ACCEPTED for source in verdict.sources)

    def _of(self, worker: str) -> WorkerStats:
        return self.workers.setdefault(worker, WorkerStats())


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
