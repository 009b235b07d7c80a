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
from coordinator.core.conditions import BUSY, LENGTHS, Conditions
from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from coordinator.core.stretch import Stretch
from paceline.length_policy import LengthPolicy
from paceline.types import Mode

# A choice stands until another promises so much more; a drafter that rests must promise it over plain decoding, too.
MARGIN = 1.05
# Where others share the verifier a drafter must promise so much more to be put to use, and to stay: formulas know least
# of a crowd, and every request that speculates makes the others' passes longer.
_CROWD_MARGIN, _CROWD_STAYS = 1.12, 1.03
_SIMPLER = 1.02
MIN_STRETCH = 16  # tokens between two choices: what was kept of a promise shows in no fewer
_OTHER_LOAD = 1.5  # times as many requests on the verifier, or as few, as there were: a choice is for its load
PROBE_EVERY = 256  # tokens of a request without a drafter: then one request tries it again, for all
MIN_TESTS = 12  # drafted tokens that were held against the target's, before anyone waits for the drafter
_MAX_TESTS = 32  # after which a trial is not prolonged because the drafter might be better than it seems
_LONGEST_TRIAL = 32  # tokens of a request, whether or not anything was heard
_ADAPTIVE_LENGTH = 6
_NUM_BRANCHING = 2  # pearl's offers that are weighed with branches, too


class Controller:
    """One request's."""

    def __init__(
        self, policy: LengthPolicy | None = None, max_length: int | None = None, *, decodes_meanwhile: bool = False
    ) -> None:
        """`policy`: of a request that names one; then only the mode is chosen, for drafts of its usual length.

        `max_length`: tokens in a draft at most, of a request that bounds them. `decodes_meanwhile`: whether its
        verifier goes on while a redraft is on its way, if that takes long.
        """
        lengths = LENGTHS if policy is None else (expected_length(policy),)
        self._max_length = max_length or max(lengths)
        self._lengths = tuple(sorted({min(length, self._max_length) for length in lengths}))
        self._decodes_meanwhile = decodes_meanwhile
        self._choice = FIRST
        self._promised = 0.0  # tokens/s of the choice, uncorrected; 0 = nothing is known to promise
        self._stretch: Stretch | None = None  # since the last choice
        self._trial_end: int | None = None  # position
        self.is_trying = True  # drafts are welcome and nobody waits for them
        self._has_tried = False  # this drafter
        self._has_waited = False  # for another's trial, up to now
        self._num_heard = 0  # of it when the trial began

    def resume(self, pace: Pace) -> Choice:
        """What to begin with at a drafter: what its last request chose, or to wait until it is known."""
        pace.learn()
        self._choice, self._promised, self._stretch, self._trial_end = pace.choice, 0.0, None, None
        if self._choice.length > self._max_length:  # the last request had no such bound
            self._choice = replace(self._choice, length=self._max_length)
        is_known = pace.num_tests >= MIN_TESTS and pace.choice is not FIRST
        self.is_trying = not is_known and pace.trial.take(self)
        self._has_tried, self._num_heard = self.is_trying, pace.num_heard
        if self.is_trying:
            self._choice = self._trial
        elif not is_known:
            self._choice = OFF
        return self._choice

    def leave(self, pace: Pace) -> None:
        """The request has ended, or goes elsewhere: whoever waits for its trial need wait no longer."""
        pace.trial.give_back(self)

    def ended(self, pace: Pace, passes: PassTimes, num_seqs: int) -> None:
        """What its last stretch has kept counts, too, however short: of short requests there is no other."""
        if self._stretch and self._stretch.num_tokens:
            on = Conditions.of(pace, passes, num_seqs, decodes_meanwhile=self._decodes_meanwhile)
            if on:
                self._settle(on, pace)

    def decide(self, pace: Pace, passes: PassTimes, num_seqs: int, now_s: float, position: int) -> Choice:
        """What to do from `position` on; another choice than before at most every `MIN_STRETCH` tokens.

        Except while the drafter is not known, when every test of it may end what it costs, and where the load changes.
        """
        if self._stretch:
            self._stretch.saw(now_s, position, num_seqs)
        pace.learn()
        pace.shared_by(num_seqs)
        if self._waits_for_trial(pace, now_s):
            if self._stretch is None:
                self._stretch = Stretch(now_s, position, num_seqs, passes.goodput.prompts_s)
                self._promised = 1 / (passes.seconds(num_seqs) or 1.0)
            self._has_waited = True
            return self._choice
        is_known = (pace.num_tests >= MIN_TESTS or self._choice is OFF) and not self._has_waited
        self._has_waited = False
        if is_known and self._stands(num_seqs):
            return self._choice
        on = Conditions.of(pace, passes, num_seqs, decodes_meanwhile=self._decodes_meanwhile)
        if on:
            self._settle(on, pace)
        self._stretch = Stretch(now_s, position, num_seqs, passes.goodput.prompts_s)
        self._choose(on, pace, now_s, position)
        if not self.is_trying and pace.num_tests >= MIN_TESTS:
            pace.chose(self._choice)
        return self._choice

    def _stands(self, num_seqs: int) -> bool:
        """Whether it is too early for another choice."""
        if not (self._stretch and self._promised) or self._stretch.num_tokens >= MIN_STRETCH:
            return False
        few, many = sorted((num_seqs, self._stretch.chosen_for))
        return many <= _OTHER_LOAD * few

    def _waits_for_trial(self, pace: Pace, now_s: float) -> bool:
        """Whether another request is finding out what the drafter is worth."""
        is_unknown = pace.num_tests < MIN_TESTS and not self._has_tried
        return is_unknown and self._choice is OFF and not pace.trial.is_free(self, now_s)

    def _settle(self, on: Conditions, pace: Pace) -> None:
        """What the stretch that ends here has kept of what its mode promises.

        Promises now: the stretch's own tests are in them, so that its luck counts less as the mode's merit.
        """
        it = self._stretch
        if it and self._promised:
            goodput, on = on.passes.goodput, replace(on, num_seqs=it.num_seqs)
            promised = on.tokens_per_s(self._choice) * goodput.decoding_s(it.seconds, it.prompts_s)
            goodput.kept(it.num_tokens, promised, it.num_seqs, is_drafted=self._choice is not OFF)
            pace.kept(self._choice.mode, it.num_tokens, promised)

    def _choose(self, on: Conditions | None, pace: Pace, now_s: float, position: int) -> None:
        # A crowd follows one whose tests are still few only if it would pay even if they were lucky.
        follows = on is not None and on.num_seqs > 1 and self._choice is OFF
        expected = on.accepting(pace.doubted_acceptance) if on and follows else on
        best, promised = self._best(expected, pace) if expected else (OFF, 0.0)
        # A rule that draws finds a late draft's tokens other than the target's even where it would keep them. So where
        # drafts come late, a trial may end without a test: then it takes a few waits to know more.
        is_over = self._trial_end is not None and position >= self._trial_end
        if is_over and pace.num_heard == self._num_heard:
            pace.is_silent = True  # nobody has waited for it, so nobody else would notice
            pace.breaker.late(now_s)
        if best is not OFF and (pace.num_tests >= MIN_TESTS or self._is_put_to_use or is_over):
            self._take(best, promised, pace)
        # Never straight from use: drafts of several tokens are on their way, which a trial would judge as they come.
        elif not self._is_put_to_use and self._may_try(on, pace, now_s, position):
            self._choice, self._promised, self.is_trying, self._has_tried = self._trial, 0.0, True, True
        else:
            self._take(OFF, on.tokens_per_s(OFF) if on else 0.0, pace)

    def _take(self, choice: Choice, promised: float, pace: Pace) -> None:
        self._choice, self._promised = choice, promised
        self.is_trying, self._trial_end = False, None
        pace.trial.give_back(self)

    @property
    def _is_put_to_use(self) -> bool:
        return self._choice is not OFF and not self.is_trying

    def _best(self, on: Conditions, pace: Pace) -> tuple[Choice, float]:
        """The best offer and its promise; the present one unless another is better by the margin."""
        promises = self._promises(on, pace)
        worth = {choice: promise * self._kept(choice.mode, on, pace) for choice, promise in promises.items()}
        joins, stays = (MARGIN, 1.0) if on.num_seqs == 1 else (_CROWD_MARGIN, _CROWD_STAYS)
        least = worth.pop(OFF) * (stays if self._is_put_to_use else joins)
        # Nearly as good one after another is better: nothing is drafted and verified in vain.
        rank = {choice: value * (_SIMPLER if choice.mode is Mode.SEQUENTIAL else 1) for choice, value in worth.items()}
        best = max(rank, key=lambda choice: rank[choice])
        if self._is_put_to_use:
            now = (self._choice.mode, self._choice.length)
            same = [choice for choice in rank if (choice.mode, choice.length) == now]
            present = max(same, key=lambda choice: rank[choice], default=best)
            best = best if rank[best] > MARGIN * rank[present] else present
        best = best if worth[best] >= least else OFF
        return best, promises[best]

    def _kept(self, mode: Mode, on: Conditions, pace: Pace) -> float:
        """What `mode` keeps of its promises; in a crowd no more than what all requests of the verifier have seen."""
        goodput = on.passes.goodput
        if mode is Mode.OFF:
            return goodput.plain
        kept = pace.correction(mode)
        return kept if on.num_seqs == 1 else min(kept, goodput.drafted)

    def _promises(self, on: Conditions, pace: Pace) -> dict[Choice, float]:
        promises = {choice: on.tokens_per_s(choice) for choice in self._offers(on)}
        if not pace.can_branch or pace.num_tests < MIN_TESTS or on.num_seqs > BUSY:
            return promises  # branches spare the verifier a wait, and in a crowd it has none
        pearls = {choice: promise for choice, promise in promises.items() if choice.mode is Mode.PEARL}
        bound, most = replace(on, hit_rate=1.0), max(pearls.values())
        # Only the best few: branches change the best length and window little, and every formula costs time.
        for choice in sorted(pearls, key=lambda choice: pearls[choice], reverse=True)[:_NUM_BRANCHING]:
            branching = replace(choice, mode=Mode.BRANCH)
            if bound.tokens_per_s(branching) > MARGIN * most:
                promises[branching] = on.tokens_per_s(branching)
        if self._choice.mode is Mode.BRANCH and self._choice not in promises:
            promises[self._choice] = on.tokens_per_s(self._choice)
        return promises

    def _may_try(self, on: Conditions | None, pace: Pace, now_s: float, position: int) -> bool:
        """Whether drafts are welcome although the drafter is not, or not yet, worth waiting for."""
        if not pace.trial.is_free(self, now_s):
            return False
        if not self.is_trying:
            is_due = not self._has_tried and pace.num_tests < MIN_TESTS  # it has waited for another's trial
            if not is_due:
                if not pace.may_try(PROBE_EVERY * (on.num_seqs if on else 1)):
                    return False
                pace.forget()
            self._num_heard = pace.num_heard
        if self._trial_end is None:
            self._trial_end = position + _LONGEST_TRIAL
        if position >= self._trial_end:
            return False
        if not (on is None or pace.num_tests < MIN_TESTS):
            hoped = self._best(on.accepting(pace.hoped_acceptance), pace)[0]
            if pace.num_tests >= _MAX_TESTS or hoped is OFF:
                return False
        return pace.trial.take(self, now_s)

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


def expected_length(policy: LengthPolicy) -> int:
    """Tokens a draft; of an adaptive policy only a guess."""
    return int(policy["length"]) if policy.name == "fixed" else _ADAPTIVE_LENGTH
