"""What a drafter's requests have measured of it and of their verifiers, and what follows from it.

Exponential means, so that a change of load shows within a few rounds. Nothing here is assumed flat or known
beforehand; before the first measurement the answers are the cautious ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from coordinator.core.breaker import Breaker
from coordinator.core.choice import FIRST, Choice
from coordinator.core.goodput import MOST_SHARING
from coordinator.core.kin import Kin
from coordinator.core.lease import Lease
from paceline.types import Draft, Mode

_PRIOR_TESTS = 3  # what the acceptance assumed at first is worth
_LEAST_TEST_WEIGHT = 0.015
_KIN_TESTS = 24  # what the tests of drafters of the same kind are worth for one that has had none, at most
_KEPT_TESTS = 6  # what earlier tests are worth when a drafter that rested is tried again
_HOPE, _DOUBT = 1.3, 0.7  # standard deviations
# What a mode keeps of its promises is a mean over about so many tokens, and fades over about so many of other modes. A
# few rejections more or less say nothing of a mode: it is taken to have kept its promises over so many before.
_MEMORY_TOKENS = 512
_FADING_TOKENS = 2048
_PRIOR_REJECTIONS = 20
_CORRECTIONS = (0.1, 1.5)
# Of runs, each of which hits or misses: means that follow the last few would say nothing.
_FIRST_RUNS, _LEAST_RUN_WEIGHT = 4, 0.03
_WEIGHT = 0.2  # of the newest value: about the last ten count
_SLOW_WEIGHT = 0.002  # of one that is above the mean, where the least value is wanted
# A draft may take this many times its usual turnaround before the verifier decodes on without it: an earlier
# self-decode would delay the verification of a draft that is nearly there by up to a whole pass.
_PATIENCE = 3.0
_BRANCHING = 0.5  # of a token more that one takes with branches beside it, before that is measured
_LEAST_WAIT_S = 0.005  # below this the event loop's own jitter would decide
# Passes that a redraft must take before the verifier decodes on meanwhile: a token decoded just before a draft comes
# delays that draft's verification by up to a pass.
_LONG_REDRAFT = 2.0
_SHORT_REDRAFT_S = 0.01  # nor is one worth decoding for that is over before the event loops' jitter is
_FAST = 0.1  # of a pass: asking the drafter after every token costs no more than this, however often it has nothing


@dataclass(slots=True)
class Pace:
    verify_s: float | None = None  # one forward pass
    turnaround_s: float | None = None  # a commit that ended a run, to the first draft of the next, or to a pass
    draft_s: float | None = None  # a drafted token
    delay_s: float | None = None  # of a turnaround, what is not drafting
    wire_s: float | None = None  # a verification's round trip beside its pass
    acceptance: float = 0.7  # accepted / tested
    breaker: Breaker = field(default_factory=Breaker)
    choice: Choice = FIRST  # of the request that chose last; the next one begins with it
    is_silent: bool = False  # it was late, and has not been heard of since
    num_tests: int = 0  # drafted tokens that were held against the target's, as far as they are not forgotten
    hit_rate: float = 0.5  # of runs in mode branch: how many began with a branch
    _kept: dict[Mode, tuple[float, float]] = field(default_factory=dict)  # tokens: what came, what was promised
    can_branch: bool = True
    kin: Kin = field(default_factory=Kin)  # what it and its like have found
    trial: Lease = field(default_factory=Lease)
    num_sharing: int = 1  # requests on the verifier, as far as they count: many test as much in so much less time
    num_heard: int = 0  # whatever it has said
    _branch_draft_s: float | None = None  # a drafted token of the chain while branches ride along, as measured
    _num_runs: int = 0  # in mode branch
    _num_plain_tokens: int = 0  # decoded without it since it was last tried, while it was not worth having

    def verified(self, verify_s: float, num_accepted: int, num_tested: int) -> None:
        if verify_s:
            self.verify_s = _mean(self.verify_s, verify_s)
        self.tested(num_accepted, num_tested)

    def tested(self, num_accepted: int, num_tested: int) -> None:
        """So many drafted tokens in a row were held against the target's: all but perhaps the last one were right."""
        for i in range(num_tested):
            self.num_tests += 1
            weight = max(_LEAST_TEST_WEIGHT / self.num_sharing, 1 / (_PRIOR_TESTS + self.num_tests))
            self.acceptance += weight * ((i < num_accepted) - self.acceptance)
            self.kin.num_tests += 1
            weight = max(_LEAST_TEST_WEIGHT / MOST_SHARING, 1 / self.kin.num_tests)
            self.kin.acceptance += weight * ((i < num_accepted) - self.kin.acceptance)

    def learn(self) -> None:
        """Before it has been tested itself: what its like have found is a first guess."""
        if self.num_tests < _KEPT_TESTS and self.kin.num_tests >= 2 * _KEPT_TESTS:
            self.acceptance, self.choice = self.kin.acceptance, self.kin.choice
            self.num_tests = min(self.kin.num_tests, _KIN_TESTS)

    def chose(self, choice: Choice) -> None:
        """A request has settled on `choice`: the next one begins with it, here or at a drafter of the same kind."""
        self.choice = self.kin.choice = choice

    def heard(self) -> None:
        self.is_silent = False
        self.num_heard += 1

    def turned_around(self, turnaround_s: float, draft: Draft | None, *, branches: bool = False) -> None:
        """The first draft of a run has come, or a pass, so long after the drafter was told to begin it.

        `branches`: its passes hold branches beside the chain, and are charged to the chain.
        """
        self.turnaround_s = _mean(self.turnaround_s, turnaround_s)
        drafting_s = draft.draft_ms / 1e3 if draft else 0.0
        self.delay_s = _mean(self.delay_s, max(0.0, turnaround_s - drafting_s))
        if draft:
            # A drafter that has rested catches up in its first draft: that is not what a token takes.
            token_s = drafting_s / len(draft.token_ids)
            old_s = self._branch_draft_s if branches else self.draft_s
            new_s = _mean(old_s, token_s if old_s is None else min(token_s, 2 * old_s))
            if branches:
                self._branch_draft_s = new_s
            if not branches or self.draft_s is None:  # without branches it takes no longer
                self.draft_s = new_s

    def round_trip(self, beside_pass_s: float) -> None:
        """A verification took so much longer than its pass.

        Some waited for a pass under way, too, which is nobody's figure and no network: the fast ones count.
        """
        if self.wire_s is None:
            self.wire_s = beside_pass_s
        weight = _WEIGHT if beside_pass_s < self.wire_s else _SLOW_WEIGHT
        self.wire_s += weight * (beside_pass_s - self.wire_s)

    @property
    def hoped_acceptance(self) -> float:
        """What the acceptance may well be, by the tests there have been."""
        return self._bound(_HOPE)

    @property
    def doubted_acceptance(self) -> float:
        """What it may be if those tests were lucky."""
        return self._bound(-_DOUBT)

    def _bound(self, deviations: float) -> float:
        """A confidence bound (Wilson 1927)."""
        num, spread = _PRIOR_TESTS + self.num_tests, deviations**2 / (_PRIOR_TESTS + self.num_tests)
        deviation = deviations * math.sqrt(self.acceptance * (1 - self.acceptance) / num + spread / (4 * num))
        return (self.acceptance + spread / 2 + deviation) / (1 + spread)

    def branch_draft_s(self, num_requests: int) -> float:
        """A drafted token of the chain while branches ride along, on a drafter with so many requests."""
        draft_s = self.draft_s or 0.0
        if self._branch_draft_s is None:
            return draft_s * (1 + _BRANCHING / max(1, num_requests))
        return max(draft_s, self._branch_draft_s)

    def correction(self, mode: Mode) -> float:
        """What `mode` has kept of its promises."""
        came, promised = self._kept.get(mode, (0.0, 0.0))
        prior = _PRIOR_REJECTIONS / max(1 - self.acceptance, 0.02)
        share = (came + prior) / (promised + prior)
        low, high = _CORRECTIONS
        return min(max(share, low), high)

    def shared_by(self, num_seqs: int) -> None:
        self.num_sharing = min(num_seqs, MOST_SHARING)

    def kept(self, mode: Mode, num_tokens: float, num_promised: float) -> None:
        """A stretch in `mode` has yielded so many tokens where so many were promised.

        Sums, not a mean of ratios: a stretch ends behind tokens that have come, and a stall must count in full.
        """
        self._kept.setdefault(mode, (0.0, 0.0))
        num_tokens_each = num_tokens / self.num_sharing  # of a crowd many come in no time
        for one, (came, promised) in self._kept.items():
            rest = max(0.0, 1 - num_tokens_each / (_MEMORY_TOKENS if one is mode else _FADING_TOKENS))
            self._kept[one] = (rest * came, rest * promised)
        came, promised = self._kept[mode]
        self._kept[mode] = (came + num_tokens, promised + num_promised)

    def forget(self) -> None:
        """A trial begins: what is known is old, so that what it finds counts for more."""
        self.num_tests = min(self.num_tests, _KEPT_TESTS)

    def did_without(self, num_tokens: int) -> None:
        self._num_plain_tokens += num_tokens

    def may_try(self, every: int) -> bool:
        """Whether it is time to try again a drafter that was not worth having; true once in `every` tokens."""
        if self._num_plain_tokens < every:
            return False
        self._num_plain_tokens = 0
        return True

    def began(self, *, by_branch: bool) -> None:
        """A run in mode branch has its first draft: a branch that waited for it, or one that was drafted anew."""
        self._num_runs += 1
        weight = max(_LEAST_RUN_WEIGHT, 1 / (_FIRST_RUNS + self._num_runs))
        self.hit_rate += weight * (by_branch - self.hit_rate)

    def preverify_pays(self, *, by_branch: bool = False) -> bool:
        """Whether to forward a recovered token while its redraft is awaited (Liu et al. 2024, PEARL, pre-verify).

        It saves a turnaround whenever the next draft fails at once, and costs the rest of the pass whenever the
        draft arrives, and would have been right, before the pass ends: `by_branch`, where a branch may be there at
        once, all of it.
        """
        if self.verify_s is None or self.turnaround_s is None:
            return True
        hit_rate = self.hit_rate if by_branch else 0.0
        late_s = hit_rate * self.verify_s + (1 - hit_rate) * max(0.0, self.verify_s - self.turnaround_s)
        return (1 - hit_rate) * (1 - self.acceptance) * self.turnaround_s >= self.acceptance * late_s

    def num_meanwhile(self) -> int:
        """Tokens to decode while a redraft is on its way, so that a far drafter leaves no verifier idle; 0 = wait."""
        if not self.verify_s or self.turnaround_s is None:
            return 0
        if self.turnaround_s <= max(_SHORT_REDRAFT_S, _LONG_REDRAFT * self.verify_s):
            return 0
        return math.ceil(self.turnaround_s / self.verify_s)

    @property
    def answers_fast(self) -> bool:
        """Whether the drafter answers a commit within a small part of the verifier's forward pass."""
        if self.verify_s is None or self.turnaround_s is None:
            return True  # one token more, and it is known
        return self.turnaround_s <= _FAST * self.verify_s

    def wait_s(self, num_tokens: int, longest_s: float) -> float:
        """How long to wait for a draft of up to `num_tokens`, `longest_s` at most, before the verifier decodes on.

        Its requests may draft in different lengths, so the usual turnaround alone would be too short for some.
        """
        if self.turnaround_s is None:
            return longest_s
        whole_s = (self.delay_s or 0.0) + num_tokens * (self.draft_s or 0.0)
        return min(longest_s, max(_LEAST_WAIT_S, _PATIENCE * max(self.turnaround_s, whole_s)))


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
