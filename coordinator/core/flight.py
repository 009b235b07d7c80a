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
    """Runs that the drafter was told to begin, until their first draft is there: when, and from where on."""

    _told: dict[int, tuple[float, int]] = field(default_factory=dict)  # by epoch

    def tell(self, epoch: int, now_s: float, start: int) -> None:
        if len(self._told) < _MAX_BEGUN:
            self._told[epoch] = now_s, start

    def answered(self, epoch: int) -> tuple[float, int] | None:
        """When and where the run was told to begin, if this is the first that is heard of it."""
        return self._told.pop(epoch, None)

    def drafted(self, epoch: int) -> tuple[float, int] | None:
        """Likewise, of a draft: the runs before it have been given up."""
        told = self.answered(epoch)
        if told:
            self._told = {later: at for later, at in self._told.items() if later > epoch}
        return told

    def clear(self) -> None:
        self._told.clear()
