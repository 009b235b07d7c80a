"""One request at the drafter: the chain it drafts, how far that is committed, what is in flight. No tensors, no clock.

The drafter streams: it goes on as if everything were accepted until `window` drafts are unverified. A commit tells it
the truth. While its chain agrees it goes on under the epoch it began with; where it disagrees, or where the commit
reaches beyond it, a new run begins after the committed tokens under the commit's epoch. Drafts are kept until they are
covered, so that one which got lost can be sent again.

Where a branch was drafted for what is committed instead of the chain, the new run begins with it: the coordinator has
it too, or gets it before anything else of that run, and finds by the same comparison that it fits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from drafter.branches import Branches, Offshoot
from drafter.chain import Chain
from paceline.types import Commit, Draft, OpenDraft, Pass, Rows

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a commit tells of drafted tokens: how many the verifier looked at, and how many of these it kept.

    Told from the tokens alone. What agrees with the chain was kept, the first that does not was looked at, and nothing
    beyond it was; a draft that was not sent yet was not looked at. What tokens do not tell: whether the target decoded
    a token by itself while the draft was on its way. Such a token counts as a test of the draft's first one, which
    under `match` and `coupled` is the same test, and under `token` and `block` is a stricter one than theirs.
    """

    num_tested: int = 0
    num_accepted: int = 0


class Session(Chain[Row]):
    """See the top of the file."""

    def __init__(self, ask: OpenDraft) -> None:
        super().__init__(ask, ask.token_ids, ask.epoch)  # `tokens`: committed ones, then the chain
        self.branches = Branches[Row]()
        self._committed = len(self.tokens)
        self._sent: deque[Draft] = deque()  # unverified
        self._is_exhausted = False  # there is nothing to propose until all of the chain is committed, or another one
        self._outcome = Outcome()
        self._has_new_policy = False

    @property
    def num_committed(self) -> int:
        """How many of `tokens` will not change any more."""
        return self._committed

    def wants_token(self) -> bool:
        """Whether there is anything to draft: room in the window and before the end."""
        return self._may_go_on and len(self._sent) < self.ask.window

    @property
    def _may_go_on(self) -> bool:
        return not self._is_exhausted and super()._may_go_on

    def next_outcome(self) -> tuple[int, int] | None:
        """The outcome to draft for next in a branch, if any is worth it: a position, and the token there."""
        return self.branches.next(self, range(self._committed, self._start))

    def begin_branch(self, outcome: tuple[int, int]) -> Offshoot[Row]:
        return self.branches.begin(self, outcome)

    def send(self, rows: Rows | None) -> Draft:
        """Close the draft being made and count it as in flight."""
        draft = self._draft(rows)
        self._sent.append(draft)
        self._begin()
        return draft

    def exhaust(self) -> None:
        """There is nothing to propose after the chain. Before `send`: that draft is the last of its run."""
        self._is_exhausted = True

    def passes(self) -> list[Pass]:
        """What to tell the coordinator if it must not wait: nothing is unverified, and nothing will follow."""
        if not self._is_exhausted or len(self.tokens) > self._committed:
            return []
        return [Pass(self.ask.request_id, self.epoch, len(self.tokens))]

    def reopen(self, ask: OpenDraft) -> list[Draft | Pass]:
        """An open that was sent again: take its prefix as a commit, and send again what is still unverified."""
        self._plan(replace(ask, token_ids=self.ask.token_ids))
        self._merge(ask.epoch, 0, ask.token_ids)
        return [*self._sent, *self.passes()]

    def commit(self, ask: Commit) -> None:
        """Take committed tokens. One that leaves a gap is ignored; the coordinator will resynchronise."""
        if ask.plan:
            self._plan(replace(self.ask, policy=ask.plan.policy, window=ask.plan.window, branches=ask.plan.branches))
        if ask.start <= len(self.tokens):
            self._merge(ask.epoch, ask.start, ask.token_ids)

    def _plan(self, ask: OpenDraft) -> None:
        self._has_new_policy = self._has_new_policy or ask.policy != self.ask.policy
        self.ask = ask

    def take_new_policy(self) -> bool:
        """Whether the coordinator has named another policy since the last call. The same one keeps what it learned."""
        is_new, self._has_new_policy = self._has_new_policy, False
        return is_new

    def take_outcome(self) -> Outcome:
        """What commits have told of drafted tokens since the last call."""
        outcome, self._outcome = self._outcome, Outcome()
        return outcome

    def _merge(self, epoch: int, start: int, committed: Sequence[int]) -> None:
        end = start + len(committed)
        if end <= self._committed:
            return  # known already
        self._learn(start, committed)
        if len(self.tokens) > end and tuple(self.tokens[start:end]) == tuple(committed):
            self._committed = end  # agreed, and ahead of it: the run goes on
            self._settle_branches(end)
            while self._sent and self._sent[0].end <= end:
                self._sent.popleft()
            return
        if len(self.tokens) == end and tuple(self.tokens[start:]) == tuple(committed) and not self.rows_pending:
            # Everything drafted was kept and nothing beyond it is known: the run goes on from its own end.
            self._committed = end
            self._settle_branches(end)
            self._sent.clear()
            self._is_exhausted = False  # more is known now than when it was said
            return
        self._restart(epoch, start, committed)

    def _settle_branches(self, end: int) -> None:
        self.choices = {at: choice for at, choice in self.choices.items() if at >= end}
        self.branches.settle(end)

    @property
    def rows_pending(self) -> bool:
        """Whether a draft is being made."""
        return self.draft_length > 0

    def _learn(self, start: int, committed: Sequence[int]) -> None:
        """Hold what is new against the drafts that were sent."""
        first = max(start, self._committed)
        num_tested, num_accepted = self._outcome.num_tested, self._outcome.num_accepted
        for drafted, token in zip(self.tokens[first : self._start], committed[first - start :], strict=False):
            if choice := self.choices.get(first + num_tested - self._outcome.num_tested):
                self.branches.tested(choice, is_rejected=drafted != token)
            num_tested += 1
            if drafted != token:
                break
            num_accepted += 1
        self._outcome = Outcome(num_tested, num_accepted)

    def _restart(self, epoch: int, start: int, committed: Sequence[int]) -> None:
        kept = start
        for mine, theirs in zip(self.tokens[start:], committed, strict=False):
            if mine != theirs:
                break
            kept += 1
        self.computed = min(self.computed, kept)
        self.tokens[start:] = committed
        self._committed = len(self.tokens)
        self._sent.clear()
        self._ended = self._is_exhausted = False
        self.epoch = epoch
        branch = self.branches.matching(self.tokens, self._committed)
        self.branches.clear()
        self.choices.clear()
        self._begin()
        if branch:
            self._promote(branch)

    def _promote(self, branch: Offshoot[Row]) -> None:
        """Go on after what is committed with what was drafted for it, all of it or as far as it has come."""
        self.tokens[branch.position + 1 :] = branch.tokens[branch.position + 1 :]
        self.choices = branch.choices
        self._ended = self.tokens[-1] in self.ask.stop_token_ids
        if branch.draft:
            self._sent.append(replace(branch.draft, epoch=self.epoch))
            self._begin()
        else:
            num_known = self._start - branch.position - 1
            self.rows, self.draft_ms = branch.rows[num_known:], branch.draft_ms

    def _begin(self) -> None:
        self._start = len(self.tokens)
        self.rows = []
        self.draft_ms = 0.0
