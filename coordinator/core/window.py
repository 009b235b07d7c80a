"""The drafts of one request that are in flight, and which run of drafting may still be believed.

A *run* is one unbroken chain of drafts from the drafter; it is named by the epoch under which it began. The core
issues a new epoch with every commit that ends a run or may have ended it (the run had not been seen that far). The
drafter, told the committed tokens and that epoch, decides by content: if its own chain agrees it goes on under the
old name, otherwise it starts anew under the new one. Both sides look at the same tokens, so they agree without a
handshake, and a draft that was already on its way when the verdict came is not thrown away.

A *branch* of the trusted run waits here for its outcome. If the run turns out to disagree in its place, and what came
instead is what the branch was made for, then it is the first draft of the next run. The drafter finds the same by the
same comparison, and goes on behind it. A branch that was on its way meanwhile is promoted when it arrives.

Rules of this file:
- a draft is admitted only if it continues the trusted run without a gap, or begins a later one; a gap that lies
  within the committed tokens is none, their drafter knows them as well as we do;
- whatever it says about committed positions must equal them; then that part is cut off;
- a run found to disagree is never believed again, and of its branches only those that leave it where it did so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from paceline.types import MAX_BRANCH_TOKENS, MAX_BRANCHES, Branch, Draft

NO_RUN = -1
_MAX_ISSUED = 64  # epochs remembered since the run began; a branch that is later than so many commits is of no use


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
    _branches: dict[tuple[int, int], Branch] = field(default_factory=dict)  # of the run, by position and outcome
    _left: tuple[int, int] | None = None  # the last run that was found to disagree, and where
    _issued: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_MAX_ISSUED))  # (tokens told, epoch)

    @property
    def awaits_run(self) -> bool:
        """Whether no run is believed: the next draft begins one."""
        return self._run == NO_RUN

    def admit(self, draft: Draft, committed: Sequence[int]) -> Draft | None:
        """The part of `draft` that is worth judging, now counted as in flight; `None` if it is stale or covered."""
        self.num_late = self.num_late_right = 0
        if draft.epoch == self._run:
            if draft.start < self._tail or draft.start > max(self._tail, len(committed)):
                return None  # sent again, or one before it was lost
        elif not max(self._floor, self._run + 1) <= draft.epoch <= self.epoch or draft.start > len(committed):
            return None
        self._compare(draft, committed)
        if (place := _disagreement(draft, committed)) is not None:
            self._distrust(draft.epoch, place)
            return None
        if draft.epoch != self._run:
            self.drafts.clear()
            self._forget_branches()
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

    def admit_branch(self, branch: Branch, committed: Sequence[int]) -> Draft | None:
        """Keep a branch for its outcome. If that has come already: the draft that it is now, counted as in flight."""
        run, position = branch.draft.epoch, branch.position
        if position < len(committed):
            return self._promote(branch, committed) if (run, position) == self._left else None
        if run == self._run and position < self._tail and self._has_room(branch):
            self._branches[position, branch.token_id] = branch
        return None

    def _has_room(self, branch: Branch) -> bool:
        """An honest drafter sends no more than there is room for."""
        num_tokens = sum(len(waiting.draft.token_ids) for waiting in self._branches.values())
        return len(self._branches) < MAX_BRANCHES and num_tokens + len(branch.draft.token_ids) <= MAX_BRANCH_TOKENS

    def promote(self, committed: Sequence[int]) -> Draft | None:
        """The branch that was made for what came where the last run disagreed: a draft now, counted as in flight."""
        if self._left is None:
            return None
        position = self._left[1]
        branch = self._branches.get((position, committed[position]))
        return self._promote(branch, committed) if branch else None

    def _promote(self, branch: Branch, committed: Sequence[int]) -> Draft | None:
        """Under the name that the drafter gives the run: of the first epoch with which it was told of the outcome."""
        epoch = next((epoch for num_told, epoch in self._issued if num_told > branch.position), None)
        if epoch is None or committed[branch.position] != branch.token_id:
            return None
        if _disagreement(branch.draft, committed) is not None:
            return None  # the drafter sees that too; what it begins instead has the same name
        return self.admit(replace(branch.draft, epoch=epoch), committed)

    def settle(self, committed: Sequence[int]) -> bool:
        """Take account of newly committed tokens. False if they contradict a draft in flight.

        Issues a new epoch unless the run is known to agree with all of `committed`.
        """
        while self.drafts and self.drafts[0].end <= len(committed):
            if _disagreement(self.drafts[0], committed) is not None:
                break
            self.drafts.popleft()
        place = _disagreement(self.drafts[0], committed) if self.drafts else None
        if place is not None:
            self._distrust(self.drafts[0].epoch, place)
        else:
            self._branches = {at: branch for at, branch in self._branches.items() if at[0] >= len(committed)}
        if self._run == NO_RUN or self._tail < len(committed):
            self.epoch += 1
            self._issued.append((len(committed), self.epoch))
        return place is None

    def restart(self) -> int:
        """Believe no run so far (the drafter has changed); returns the epoch for a new one."""
        self.epoch += 1
        self._floor, self._run = self.epoch, NO_RUN
        self.drafts.clear()
        self._forget_branches()
        return self.epoch

    def _distrust(self, run: int, place: int) -> None:
        if run != self._run:
            self._branches.clear()  # they are the trusted run's
        self._floor = max(self._floor, run + 1)
        self._run = NO_RUN
        self._left = run, place
        self.drafts.clear()

    def _forget_branches(self) -> None:
        self._branches.clear()
        self._issued.clear()
        self._left = None


def _disagreement(draft: Draft, committed: Sequence[int]) -> int | None:
    """The first position in which `draft` contradicts `committed`; None if it does not."""
    for position in range(draft.start, min(draft.end, len(committed))):
        if draft.token_ids[position - draft.start] != committed[position]:
            return position
    return None
