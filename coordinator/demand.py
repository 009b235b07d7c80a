"""What the pools are asked for, as far as it says whether more workers would help: read by whoever scales them.

Two things. How much of the output is decoded by verifiers for want of a draft, though its request would have had
drafts: the *stall share*. And how long a verifier's pass takes. Both of late: what is `MEMORY_S` old counts for a
third. A request that asked for plain decoding, or whose drafter rests because drafting does not pay, stalls nobody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from coordinator.core.commands import Ask, Command, Emit, Fail, Finish
from coordinator.core.events import Arrived, Event, Verified
from paceline.types import Commit, DraftPlan, Mode, OpenDraft, Source

MEMORY_S = 5.0


@dataclass(slots=True)
class Demand:
    """See the top of the file. An observer of the coordinator."""

    _num_tokens: float = 0.0  # of requests that would have drafts; fading, as all of these
    _num_stalled: float = 0.0  # those of them that the verifier decoded by itself
    _pass_ms: float = 0.0
    _num_passes: float = 0.0
    _faded_s: float = 0.0  # the counts are as of then
    _speculative: set[str] = field(default_factory=set)  # requests that would have drafts
    _resting: set[str] = field(default_factory=set)  # those of them for which drafting does not pay now

    @property
    def stall_share(self) -> float:
        """0 to 1; 0 while nothing was decoded that would have had drafts."""
        return self._num_stalled / self._num_tokens if self._num_tokens else 0.0

    @property
    def verify_ms(self) -> float:
        """A verifier's pass; 0 before the first."""
        return self._pass_ms / self._num_passes if self._num_passes else 0.0

    @property
    def num_speculative(self) -> int:
        """Requests, running and waiting, that did not ask for plain decoding."""
        return len(self._speculative)

    @property
    def num_resting(self) -> int:
        """Requests whose drafters draft nothing for them, since it does not pay."""
        return len(self._resting)

    def observe(self, event: Event, commands: Sequence[Command], now_s: float) -> None:
        match event:
            case Arrived(spec) if spec.mode is not Mode.OFF:
                self._speculative.add(spec.request_id)
            case Verified(_, verdict) if verdict.verify_ms:
                self._fade(now_s)
                self._pass_ms += verdict.verify_ms
                self._num_passes += 1
        for command in commands:
            match command:
                case Ask(_, OpenDraft(request_id) as ask):
                    self._drafts(request_id, ask.window)
                case Ask(_, Commit(request_id, plan=DraftPlan(window=window))):
                    self._drafts(request_id, window)
                case Emit(request_id, _, sources) if self._may_stall(request_id):
                    self._fade(now_s)
                    self._num_tokens += len(sources)
                    self._num_stalled += sources.count(Source.SELF_DECODED)
                case Finish(request_id) | Fail(request_id):
                    self._speculative.discard(request_id)
                    self._resting.discard(request_id)

    def _drafts(self, request_id: str, window: int) -> None:
        if window:
            self._resting.discard(request_id)
        else:
            self._resting.add(request_id)

    def _may_stall(self, request_id: str) -> bool:
        return request_id in self._speculative and request_id not in self._resting

    def _fade(self, now_s: float) -> None:
        factor = math.exp((self._faded_s - now_s) / MEMORY_S)
        self._faded_s = now_s
        self._num_tokens *= factor
        self._num_stalled *= factor
        self._pass_ms *= factor
        self._num_passes *= factor
