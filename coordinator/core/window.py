"""The drafts of one request that are in flight, and which run of drafting may still be believed.

A *run* is one unbroken chain of drafts from the drafter; it is named by the epoch under which it began. The core
issues a new epoch with every commit that ends a run or may have ended it (the run had not been seen that far). The
drafter, told the committed tokens and that epoch, decides by content: if its own chain agrees it goes on under the
old name, otherwise it starts anew under the new one. Both sides look at the same tokens, so they agree without a
handshake, and a draft that was already on its way when the verdict came is not thrown away.

Rules of this file:
- a draft is admitted only if it continues the trusted run without a gap, or begins a later one; a gap that lies
  within the committed tokens is none, their drafter knows them as well as we do;
- whatever it says about committed positions must equal them; then that part is cut off;
- a run found to disagree is never believed again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline.types import Draft

NO_RUN = -1


@dataclass(slots=True)
class Window:
    epoch: int = 0  # the last one issued; never shrinks
    drafts: deque[Draft] = field(default_factory=deque)  # forwarded, not yet settled; gapless, in order
    _run: int = NO_RUN  # the trusted run
    _tail: int = 0  # where the trusted run has been seen to
    _floor: int = 0  # runs below this are never believed (again)
    _compared: int = 0  # up to where drafts that came late have been held against what was committed meanwhile
    num_late: int = 0  # tokens of the last draft that were
    num_late_right: int = 0  # and what of them was equal

    def admit(self, draft: Draft, committed: Sequence[int]) -> Draft | None:
        """The part of `draft` that is worth judging, now counted as in flight; `None` if it is stale or covered."""
        self.num_late = self.num_late_right = 0
        if draft.epoch == self._run:
            if draft.start < self._tail or draft.start > max(self._tail, len(committed)):
                return None  # sent again, or one before it was lost
        elif not max(self._floor, self._run + 1) <= draft.epoch <= self.epoch or draft.start > len(committed):
            return None
        self._compare(draft, committed)
        if _contradicts(draft, committed):
            self._distrust(draft.epoch)
            return None
        if draft.epoch != self._run:
            self.drafts.clear()
        self._run, self._tail = draft.epoch, draft.end
        if draft.end <= len(committed):
            return None
        draft = draft.drop(max(0, len(committed) - draft.start))
        self.drafts.append(draft)
        return draft

    def _compare(self, draft: Draft, committed: Sequence[int]) -> None:
        """What is committed says what would have become of a draft that comes too late to be judged.

        No position counts twice, since drafts that begin a token later each would all say the same.
        """
        first = max(draft.start, self._compared)
        pairs = zip(draft.token_ids[first - draft.start :], committed[first : draft.end], strict=False)
        for drafted, token in pairs:
            self.num_late += 1
            if drafted != token:
                break
            self.num_late_right += 1
        self._compared = first + self.num_late

    def settle(self, committed: Sequence[int]) -> bool:
        """Take account of newly committed tokens. False if they contradict a draft in flight.

        Issues a new epoch unless the run is known to agree with all of `committed`.
        """
        while self.drafts and self.drafts[0].end <= len(committed):
            if _contradicts(self.drafts[0], committed):
                break
            self.drafts.popleft()
        agrees = not (self.drafts and _contradicts(self.drafts[0], committed))
        if not agrees:
            self._distrust(self.drafts[0].epoch)
        if not agrees or self._run == NO_RUN or self._tail < len(committed):
            self.epoch += 1
        return agrees

    def restart(self) -> int:
        """Believe no run so far (the drafter has changed); returns the epoch for a new one."""
        self.epoch += 1
        self._distrust(self.epoch - 1)
        return self.epoch

    def _distrust(self, run: int) -> None:
        self._floor = max(self._floor, run + 1)
        self._run = NO_RUN
        self.drafts.clear()


def _contradicts(draft: Draft, committed: Sequence[int]) -> bool:
    known = tuple(committed[draft.start : draft.end])
    return draft.token_ids[: len(known)] != known
