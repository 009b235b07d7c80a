"""What has been sent for one request and not been answered yet: to the verifier, and to the drafter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from paceline.types import Draft

_MAX_BEGUN = 64  # far more than fit into a round trip


@dataclass(slots=True)
class Verifications:
    """How the drafts in flight were sent to the verifier, by their start."""

    _preverify: dict[int, bool] = field(default_factory=dict)
    _asked_s: dict[int, float] = field(default_factory=dict)  # of those that waited for no pass of their own request

    def asked(self, draft: Draft, now_s: float, *, preverify: bool, is_alone: bool) -> None:
        self._preverify[draft.start] = preverify
        if is_alone:  # else it waits for the pass of those before it, which is no network
            self._asked_s[draft.start] = now_s

    def keep(self, drafts: Iterable[Draft]) -> None:
        """Forget all others."""
        self._preverify = {draft.start: self.preverifies(draft) for draft in drafts}
        self._asked_s = {start: at_s for start, at_s in self._asked_s.items() if start in self._preverify}

    def preverifies(self, draft: Draft) -> bool:
        return self._preverify.get(draft.start, False)

    def asked_s(self, start: int) -> float | None:
        return self._asked_s.get(start)


@dataclass(slots=True)
class Begun:
    """Runs that the drafter was told to begin, until their first draft is there, and when it was told."""

    _told_s: dict[int, float] = field(default_factory=dict)  # by epoch

    def tell(self, epoch: int, now_s: float) -> None:
        if len(self._told_s) >= _MAX_BEGUN:  # the oldest never became a run
            del self._told_s[next(iter(self._told_s))]
        self._told_s[epoch] = now_s

    def answered(self, epoch: int) -> float | None:
        """When the run was told to begin, if this is the first that is heard of it."""
        return self._told_s.pop(epoch, None)

    def drafted(self, epoch: int) -> float | None:
        """Likewise, of a draft: the runs before it have been given up."""
        told_s = self.answered(epoch)
        while self._told_s and (oldest := next(iter(self._told_s))) < epoch:
            del self._told_s[oldest]
        return told_s

    def clear(self) -> None:
        self._told_s.clear()
