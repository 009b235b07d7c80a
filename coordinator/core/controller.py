"""The mode and draft length that promise the most tokens a second, from what has been measured.

A drafter of which too little is known, or which is not worth having, is *on trial* now and then: drafts are welcome and
nobody waits for them, so it costs no more than a few drafted tokens in a pass. It is put to use when its acceptance is
known well enough and the promise (`Conditions`) is above plain decoding, and rests otherwise. Formulas know nothing of
cores that two workers share or of acceptance that clusters, so every mode's promise is corrected by what that mode has
kept.

A choice may depend on anything that is known before the next draft is drawn, so it never bends the output's law.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from coordinator.core.choice import FIRST, OFF, Choice
from coordinator.core.conditions import LENGTHS, Conditions
from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from paceline.length_policy import LengthPolicy
from paceline.types import Mode

# A choice stands until another promises so much more; a drafter that rests must promise it over plain decoding, too.
MARGIN = 1.05
# Where others share the verifier a drafter must promise so much more to be put to use, and to stay: formulas know least
# of a crowd, and every request that speculates makes the others' passes longer.
_CROWD_MARGIN, _CROWD_STAYS = 1.12, 1.03
_SIMPLER = 1.02
MIN_STRETCH = 16  # tokens between two choices: what was kept of a promise shows in no fewer
PROBE_EVERY = 256  # tokens of a request without a drafter: then one request tries it again, for all
MIN_TESTS = 12  # drafted tokens that were held against the target's, before anyone waits for the drafter
_MAX_TESTS = 32  # after which a trial is not prolonged because the drafter might be better than it seems
_LONGEST_TRIAL = 32  # tokens of a request, whether or not anything was heard
_ADAPTIVE_LENGTH = 6


class Controller:
    """One request's."""

    def __init__(self, policy: LengthPolicy | None = None, max_length: int | None = None) -> None:
        """`policy`: of a request that names one; then only the mode is chosen, for drafts of its usual length.

        `max_length`: tokens in a draft at most, of a request that bounds them.
        """
        lengths = LENGTHS if policy is None else (_expected_length(policy),)
        self._max_length = max_length or max(lengths)
        self._lengths = tuple(sorted({min(length, self._max_length) for length in lengths}))
        self._choice = FIRST
        self._promised = 0.0  # tokens/s of the choice, uncorrected; 0 = nothing is known to promise
        self._since: tuple[float, int] | None = None  # when, and at which position, the stretch began
        self._trial_end: int | None = None  # position
        self.is_trying = True  # drafts are welcome and nobody waits for them

    def resume(self, pace: Pace) -> Choice:
        """What to begin with at a drafter: what its last request chose."""
        self._choice, self._promised, self._since, self._trial_end = pace.choice, 0.0, None, None
        if self._choice.length > self._max_length:  # the last request had no such bound
            self._choice = replace(self._choice, length=self._max_length)
        self.is_trying = pace.num_tests < MIN_TESTS or pace.choice is FIRST
        return self._choice

    def decide(self, pace: Pace, passes: PassTimes, num_seqs: int, now_s: float, position: int) -> Choice:
        """What to do from `position` on; another choice than before at most every `MIN_STRETCH` tokens.

        Except while the drafter is not known: every test of it may end what it costs.
        """
        is_known = pace.num_tests >= MIN_TESTS or self._choice is OFF
        if self._since and self._promised and is_known and position - self._since[1] < MIN_STRETCH:
            return self._choice
        on = Conditions.of(pace, passes, num_seqs)
        if on:
            self._settle(on, pace, now_s, position)
        self._since = (now_s, position)
        self._choose(on, pace, position)
        if not self.is_trying:
            pace.choice = self._choice
        return self._choice

    def _settle(self, on: Conditions, pace: Pace, now_s: float, position: int) -> None:
        """What the stretch that ends here has kept of what its mode promises.

        Promises now: the stretch's own tests are in them, so that its luck counts less as the mode's merit.
        """
        if self._since and self._promised:
            since_s, start = self._since
            pace.kept(self._choice.mode, position - start, on.tokens_per_s(self._choice) * (now_s - since_s))

    def _choose(self, on: Conditions | None, pace: Pace, position: int) -> None:
        best, promised = self._best(on, pace) if on else (OFF, 0.0)
        # A rule that draws finds a late draft's tokens other than the target's even where it would keep them. So where
        # drafts come late, a trial may end without a test: then it takes a few waits to know more.
        is_over = self._trial_end is not None and position >= self._trial_end
        if best is not OFF and (pace.num_tests >= MIN_TESTS or self._is_put_to_use or is_over):
            self._take(best, promised)
        elif self._may_try(on, pace, position):
            self._choice, self._promised, self.is_trying = self._trial, 0.0, True
        else:
            self._take(OFF, on.tokens_per_s(OFF) if on else 0.0)

    def _take(self, choice: Choice, promised: float) -> None:
        self._choice, self._promised = choice, promised
        self.is_trying, self._trial_end = False, None

    @property
    def _is_put_to_use(self) -> bool:
        return self._choice is not OFF and not self.is_trying

    def _best(self, on: Conditions, pace: Pace) -> tuple[Choice, float]:
        """The best offer and its promise; the present one unless another is better by the margin."""
        promises = {choice: on.tokens_per_s(choice) for choice in self._offers(on)}
        worth = {choice: promise * pace.correction(choice.mode) for choice, promise in promises.items()}
        # Nearly as good one after another is better: nothing is drafted and verified in vain.
        worth |= {choice: _SIMPLER * value for choice, value in worth.items() if choice.mode is Mode.SEQUENTIAL}
        joins, stays = (MARGIN, 1.0) if on.num_seqs == 1 else (_CROWD_MARGIN, _CROWD_STAYS)
        least = worth.pop(OFF) * (stays if self._is_put_to_use else joins)
        best = max(worth, key=lambda choice: worth[choice])
        if self._is_put_to_use:
            now = (self._choice.mode, self._choice.length)
            same = [choice for choice in worth if (choice.mode, choice.length) == now]
            present = max(same, key=lambda choice: worth[choice], default=best)
            best = best if worth[best] > MARGIN * worth[present] else present
        best = best if worth[best] >= least else OFF
        return best, promises[best]

    def _may_try(self, on: Conditions | None, pace: Pace, position: int) -> bool:
        """Whether drafts are welcome although the drafter is not, or not yet, worth waiting for."""
        if not self.is_trying:
            if not pace.may_try(PROBE_EVERY * (on.num_seqs if on else 1)):
                return False
            pace.forget()
        if self._trial_end is None:
            self._trial_end = position + _LONGEST_TRIAL
        if position >= self._trial_end:
            return False
        if on is None or pace.num_tests < MIN_TESTS:
            return True
        return pace.num_tests < _MAX_TESTS and self._best(on.accepting(pace.hoped_acceptance), pace)[0] is not OFF

    @property
    def _trial(self) -> Choice:
        return FIRST if len(self._lengths) > 1 else replace(FIRST, length=self._lengths[0])

    def _offers(self, on: Conditions) -> Iterable[Choice]:
        depth = on.depth()
        yield OFF
        for length in self._lengths:
            yield Choice(Mode.SEQUENTIAL, length, 1)
            for window in set(on.windows(length, depth)):
                yield Choice(Mode.PEARL, length, window)


def _expected_length(policy: LengthPolicy) -> int:
    """Tokens a draft; of an adaptive policy only a guess."""
    return int(policy["length"]) if policy.name == "fixed" else _ADAPTIVE_LENGTH
