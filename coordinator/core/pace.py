"""What a drafter's requests have measured of it and of their verifiers, and what follows from it.

Exponential means, so that a change of load shows within a few rounds. Nothing here is assumed flat or known
beforehand; before the first measurement the answers are the cautious ones.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    acceptance: float = 0.7  # accepted / tested

    def verified(self, verify_s: float, num_accepted: int, num_tested: int) -> None:
        if verify_s:
            self.verify_s = _mean(self.verify_s, verify_s)
        for i in range(num_tested):
            self.acceptance += 0.05 * ((i < num_accepted) - self.acceptance)

    def turned_around(self, turnaround_s: float) -> None:
        self.turnaround_s = _mean(self.turnaround_s, turnaround_s)

    def preverify_pays(self) -> bool:
        """Whether to forward a recovered token while its redraft is awaited (Liu et al. 2024, PEARL, pre-verify).

        It saves a turnaround whenever the next draft fails at once, and costs the rest of the pass whenever the
        draft arrives, and would have been right, before the pass ends.
        """
        if self.verify_s is None or self.turnaround_s is None:
            return True
        late_s = max(0.0, self.verify_s - self.turnaround_s)
        return (1 - self.acceptance) * self.turnaround_s >= self.acceptance * late_s

    @property
    def answers_fast(self) -> bool:
        """Whether the drafter answers a commit within a small part of the verifier's forward pass."""
        if self.verify_s is None or self.turnaround_s is None:
            return True  # one token more, and it is known
        return self.turnaround_s <= _FAST * self.verify_s

    def wait_s(self, longest_s: float) -> float:
        """How long to wait for a draft, `longest_s` at most, before the verifier decodes by itself."""
        if self.turnaround_s is None:
            return longest_s
        return min(longest_s, max(_LEAST_WAIT_S, _PATIENCE * self.turnaround_s))


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
