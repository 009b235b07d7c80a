"""How many drafts are in flight, where the mode is given and the window is not.

Too few, and the verifier waits for what a round trip away has long been drafted; too many, and after every rejection
more has been drafted, sent and verified in vain. Like the controller's, a choice depends on what is known before the
next draft is drawn.
"""

from __future__ import annotations

from coordinator.core.choice import Choice
from coordinator.core.conditions import Conditions
from coordinator.core.controller import MIN_STRETCH
from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from paceline.types import Mode

FIRST_WINDOW = 4  # before anything is measured: two hide the drafting, more also ride out a slow pass or link
_MARGIN = 1.02  # another must promise so much more


class Depth:
    """One request's, for drafts of `length` tokens in `mode`; `decodes_meanwhile` as the controller has it."""

    def __init__(self, mode: Mode, length: int, *, decodes_meanwhile: bool) -> None:
        self._choice = Choice(mode, length, FIRST_WINDOW)
        self._decodes_meanwhile = decodes_meanwhile
        self._due = 0  # position from which on another window may be chosen

    def decide(self, pace: Pace, passes: PassTimes, num_seqs: int, position: int) -> int:
        """The window from `position` on."""
        if position < self._due:
            return self._choice.window
        on = Conditions.of(pace, passes, num_seqs, decodes_meanwhile=self._decodes_meanwhile)
        if on is None:
            return self._choice.window
        self._due = position + MIN_STRETCH
        mode, length = self._choice.mode, self._choice.length
        promises = {
            choice: on.tokens_per_s(choice)
            for choice in (Choice(mode, length, window) for window in on.windows(length, on.depth()))
        }
        best = max(promises, key=lambda choice: promises[choice])
        if promises[best] > _MARGIN * on.tokens_per_s(self._choice):
            self._choice = best
        return self._choice.window
