"""How one request is drafted for: the mode, length policy and window in force, and what changes them."""

from __future__ import annotations

from coordinator.core.choice import FIRST, Choice
from coordinator.core.controller import Controller, expected_length
from coordinator.core.depth import FIRST_WINDOW, Depth
from coordinator.core.events import RequestSpec
from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from paceline.length_policy import LengthPolicy
from paceline.types import DraftPlan, Mode, Rule

# How long it takes to draft a single token says nothing of what it is.
_SINGLE = LengthPolicy.of("fixed", {"length": 1})

NUM_BRANCHES = 32  # of a request that wait for their outcome, in mode branch


class Planner:
    """As the client has asked; where it left the mode open, as the controller chooses."""

    def __init__(self, spec: RequestSpec, rule: Rule) -> None:
        self.mode = spec.mode or FIRST.mode
        self.policy = (spec.policy or LengthPolicy()).capped(spec.max_draft_length)
        self.window = (spec.window or FIRST_WINDOW) if self.mode.streams else 1
        self._named = self.policy if spec.policy else None
        self._needs_rows = rule.needs_rows
        self._controller: Controller | None = None
        self._depth: Depth | None = None
        decodes_meanwhile = not rule.needs_rows
        if spec.mode is None:
            self._controller = Controller(self._named, spec.max_draft_length, decodes_meanwhile=decodes_meanwhile)
        elif self.mode.streams and spec.window is None:
            self._depth = Depth(self.mode, expected_length(self.policy), decodes_meanwhile=decodes_meanwhile)

    @property
    def plan(self) -> DraftPlan:
        """What the drafter is told."""
        return DraftPlan(self.policy, self.window, NUM_BRANCHES if self.mode is Mode.BRANCH else 0)

    @property
    def rests(self) -> bool:
        """Whether a drafter is not worth asking."""
        return self.window == 0

    @property
    def is_trying(self) -> bool:
        """Whether the drafter is only tried out."""
        return self._controller is not None and self._controller.is_trying

    @property
    def waits(self) -> bool:
        """Whether a draft is worth waiting for."""
        return not self.rests and not self.is_trying

    def resume(self, pace: Pace) -> None:
        """Begin at a drafter, with what its last request chose."""
        if self._controller:
            self._adopt(self._controller.resume(pace))

    def leave(self, pace: Pace) -> None:
        """The drafter is left, be it that the request has ended."""
        if self._controller:
            self._controller.leave(pace)

    def ended(self, pace: Pace, passes: PassTimes, num_seqs: int) -> None:
        """The request has ended with this drafter: the next one learns from it."""
        if self._controller:
            self._controller.ended(pace, passes, num_seqs)

    def replan(self, pace: Pace, passes: PassTimes, num_seqs: int, now_s: float, position: int) -> DraftPlan | None:
        """What is wanted from now on; None if that is what is being done."""
        before = self.plan
        if self._controller:
            self._adopt(self._controller.decide(pace, passes, num_seqs, now_s, position))
        elif self._depth:
            self.window = self._depth.decide(pace, passes, num_seqs, position)
        return None if before == self.plan else self.plan

    def _adopt(self, choice: Choice) -> None:
        self.mode, self.window = choice.mode, choice.window
        if self._needs_rows and self.is_trying:
            # Nobody waits for them, so none may come in time because it is short: that depends on what is in it.
            self.policy = _SINGLE
        elif self._named:
            self.policy = self._named
        elif choice.length:
            self.policy = LengthPolicy.of("fixed", {"length": choice.length})
