"""What a request's drafter has been told, what is wanted of it, and whether it is worth waiting for.

A drafter that is to rest is spared the news, and told all that it has missed when it is wanted again.
"""

from __future__ import annotations

import math

from coordinator.core.asks import open_draft
from coordinator.core.events import RequestSpec
from coordinator.core.flight import Begun
from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from coordinator.core.planner import Planner
from paceline.types import Commit, Draft, Mode, OpenDraft, Pass, Rule

# Within a run the next draft is on its way, unless the drafter's window is full: the verifier decodes meanwhile only
# where that would cost more passes than this.
_LONG_GAP = 3


class Briefing:
    """See the top of the file. `committed` is the request's, and grows under it."""

    def __init__(self, spec: RequestSpec, rule: Rule, committed: list[int]) -> None:
        self.pace = Pace()  # of the drafter, once there is one
        self.planner = Planner(spec, rule)
        self._spec, self._rule, self._committed = spec, rule, committed
        self._told = 0  # it knows the committed tokens up to here
        self._begun = Begun()
        self._heard_s = math.inf  # when it was heard, or when the verifier went on without waiting for it

    @property
    def rests(self) -> bool:
        """Whether it is not worth asking."""
        return self.planner.rests

    @property
    def expects(self) -> bool:
        """Whether a draft is worth waiting for."""
        return self.planner.waits and not self.pace.is_silent

    def may_decode_meanwhile(self, *, is_redraft: bool) -> bool:
        """Whether the verifier gains by decoding while the next draft, which begins a new run or not, is awaited.

        By rules that need rows it does not decode then: which draft comes before which token would choose between
        two tests. By the others a late draft is held against those tokens, and what still fits of it is judged. In
        mode sequential it never does: drafting and verifying take turns, which is what whoever asks for it wants.
        """
        passes = self.pace.num_meanwhile()
        if not passes or self._rule.needs_rows or not self.planner.mode.streams:
            return False
        return is_redraft or passes > _LONG_GAP

    @property
    def preverifies(self) -> bool:
        """Whether the verifier forwards the recovered token of its own accord, before anything is known of a redraft.

        Where a branch may be there at once it would be in vain, so by rules that need no rows it is asked afterwards.
        """
        mode = self.planner.mode
        if mode is Mode.BRANCH:
            return self._rule.needs_rows and self.pace.preverify_pays(by_branch=True)
        return mode.streams and self.pace.preverify_pays()

    @property
    def decodes_after_miss(self) -> bool:
        """Whether the recovered token is forwarded as soon as it is known that no branch is there for it."""
        return self.planner.mode is Mode.BRANCH and not self._rule.needs_rows and self.pace.preverify_pays()

    def wait_s(self, longest_s: float) -> float:
        return self.pace.wait_s(self.planner.policy.max_length, longest_s)

    # --- asks

    def attach(self, pace: Pace) -> None:
        """Another drafter takes the request."""
        self.pace = pace
        self.planner.resume(pace)

    def detach(self) -> None:
        """The drafter is left, be it that the request has ended."""
        self._begun.clear()
        self.planner.leave(self.pace)

    def open(self, epoch: int) -> OpenDraft:
        """Draft after all that is committed, as the run `epoch`."""
        self._told = len(self._committed)
        return open_draft(self._spec, self._rule, self.planner.plan, epoch, self._committed)

    def commit(self, epoch: int, passes: PassTimes, num_seqs: int, now_s: float, *, ends_run: bool) -> Commit | None:
        """What is committed, and how to draft from here on; None for a drafter that rests."""
        plan = self.planner.replan(self.pace, passes, num_seqs, now_s, len(self._committed))
        if self.rests and plan is None:
            return None
        if ends_run:
            self._begun.tell(epoch, now_s)
        start, self._told = self._told, len(self._committed)
        return Commit(self._spec.request_id, epoch, start, tuple(self._committed[start:]), plan)

    def ended(self, passes: PassTimes, num_seqs: int) -> None:
        """The request has ended with this drafter: the next one learns from it."""
        self.planner.ended(self.pace, passes, num_seqs)

    # --- answers

    def heard(self, now_s: float) -> None:
        self.pace.heard()
        self._heard_s = now_s

    def has_fallen_silent(self, now_s: float) -> bool:
        """Whether nobody waits for it, and yet it has not been heard of for as long as anybody would."""
        return now_s > self._heard_s + self.wait_s(math.inf)

    def went_on_without(self, now_s: float) -> None:
        """The verifier decodes meanwhile: from now on it is to be heard."""
        self._heard_s = now_s

    def missed(self, now_s: float) -> None:
        """It is late."""
        self.pace.is_silent = True
        self.pace.breaker.late(now_s)

    def drafted(self, draft: Draft, now_s: float, *, is_measured: bool) -> bool:
        """A draft has come. Whether it is its run's first; then it tells how long that took, if `is_measured`."""
        begun_s = self._begun.drafted(draft.epoch)
        if begun_s is not None and is_measured:
            self.pace.turned_around(now_s - begun_s, draft, branches=self.planner.mode is Mode.BRANCH)
        return begun_s is not None

    def promoted(self, draft: Draft) -> None:
        """That run is told to begin, and has begun: no turnaround to measure."""
        self._begun.drafted(draft.epoch)

    def passed(self, passed: Pass, now_s: float) -> None:
        self.pace.breaker.heard()
        if (begun_s := self._begun.answered(passed.epoch)) is not None:
            self.pace.turned_around(now_s - begun_s, None)
