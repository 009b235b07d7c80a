"""What a drafter's requests have measured of it and of their verifiers, and what follows from it.

Exponential means, so that a change of load shows within a few rounds. Nothing here is assumed flat or known
beforehand; before the first measurement the answers are the cautious ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from coordinator.core.breaker import Breaker
from coordinator.core.choice import FIRST, Choice
from paceline.types import Draft, Mode

_PRIOR_TESTS = 3  # what the acceptance assumed at first is worth
_LEAST_TEST_WEIGHT = 0.03
_WEIGHT = 0.2  # of the newest value: about the last ten count
# A draft may take this many times its usual turnaround before the verifier decodes on without it: an earlier
# self-decode would delay the verification of a draft that is nearly there by up to a whole pass.
_PATIENCE = 3.0
_LEAST_WAIT_S = 0.005  # below this the event loop's own jitter would decide
_FAST = 0.1  # of a pass: asking the drafter after every token costs no more than this, however often it has nothing


@dataclass(slots=True)
class Pace:
    verify_s: float | None = None  # one forward pass
    turnaround_s: float | None = None  # a commit that ended a run, to the first draft of the next, or to a pass
    draft_s: float | None = None  # a drafted token
    delay_s: float | None = None  # of a turnaround, what is not drafting
    wire_s: float = 0.0  # a verification's round trip beside its pass
    acceptance: float = 0.7  # accepted / tested
    breaker: Breaker = field(default_factory=Breaker)
    choice: Choice = FIRST  # of the request that chose last; the next one begins with it
    is_silent: bool = False  # it was late, and has not been heard of since
    hit_rate: float = 0.5  # of runs in mode branch: how many began with a branch
    _num_tests: int = 0
    _corrections: dict[Mode, float] = field(default_factory=dict)
    _num_plain_tokens: int = 0  # decoded without it since it was last tried, while it was not worth having

    def verified(self, verify_s: float, num_accepted: int, num_tested: int) -> None:
        if verify_s:
            self.verify_s = _mean(self.verify_s, verify_s)
        self._tested(num_accepted, num_tested)

    def compared(self, draft: Draft, committed: Sequence[int]) -> None:
        """A draft came too late to be judged; what was committed meanwhile says what would have become of it."""
        known = committed[draft.start : draft.end]
        num_equal = next((i for i, token in enumerate(known) if token != draft.token_ids[i]), len(known))
        self._tested(num_equal, min(num_equal + 1, len(known)))

    def _tested(self, num_accepted: int, num_tested: int) -> None:
        for i in range(num_tested):
            self._num_tests += 1
            weight = max(_LEAST_TEST_WEIGHT, 1 / (_PRIOR_TESTS + self._num_tests))
            self.acceptance += weight * ((i < num_accepted) - self.acceptance)

    def turned_around(self, turnaround_s: float, draft: Draft | None) -> None:
        """The first draft of a run has come, or a pass, so long after the drafter was told to begin it."""
        self.turnaround_s = _mean(self.turnaround_s, turnaround_s)
        drafting_s = draft.draft_ms / 1e3 if draft else 0.0
        self.delay_s = _mean(self.delay_s, max(0.0, turnaround_s - drafting_s))
        if draft:
            self.draft_s = _mean(self.draft_s, drafting_s / len(draft.token_ids))

    def round_trip(self, beside_pass_s: float) -> None:
        """A verification took so much longer than its pass."""
        self.wire_s = _mean(self.wire_s or None, beside_pass_s)

    def correction(self, mode: Mode) -> float:
        """What `mode` has kept of its promises."""
        return self._corrections.get(mode, 1.0)

    def kept(self, mode: Mode, share: float, weight: float) -> None:
        """A stretch in `mode` has yielded this share of what was promised."""
        self._corrections[mode] = self.correction(mode) + weight * (share - self.correction(mode))

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
        self.hit_rate = _mean(self.hit_rate, float(by_branch))

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
