"""The mode and draft length that promise the most tokens a second, from what has been measured.

The formulas are those of streamed overlap (Liu et al. 2024 for PEARL, Leviathan et al. 2023 for sequential drafting),
with a pass that grows with its batch, and a network between drafter and coordinator. They know nothing of cores that
two workers share or of acceptance that clusters, so every mode's promise is corrected by what that mode has kept.

A choice may depend on anything that is known before the next draft is drawn, so it never bends the output's law.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.core.choice import FIRST, OFF, Choice
from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from paceline.length_policy import LengthPolicy
from paceline.types import Mode

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16)
MAX_WINDOW = 16
# A choice stands until another promises so much more; speculation must promise it over plain decoding, too.
MARGIN = 1.05
_ADAPTIVE_LENGTH = 6
MIN_STRETCH = 16  # tokens between two choices: what was kept of a promise shows in no fewer
# After so many tokens without a drafter one request tries it again, for all.
PROBE_EVERY = 256
_HIGHEST_ACCEPTANCE = 0.98
_CORRECTION_WEIGHT = 0.3
_CORRECTIONS = (0.5, 1.5)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a request meets now. Times in seconds."""

    draft_s: float  # a drafted token
    delay_s: float  # what the first draft of a run waits for beside drafting: the round trip to the drafter
    wire_s: float  # a verification's round trip beside its pass
    acceptance: float  # accepted / tested
    passes: PassTimes
    num_seqs: int = 1  # requests on the verifier, this one included; taken to decode in the same way

    @classmethod
    def of(cls, pace: Pace, passes: PassTimes, num_seqs: int) -> Conditions | None:
        """None while something has not been measured yet."""
        if pace.draft_s is None or pace.delay_s is None or passes.seconds(1) is None:
            return None
        return cls(pace.draft_s, pace.delay_s, pace.wire_s, pace.acceptance, passes, max(1, num_seqs))

    def tokens_per_s(self, choice: Choice) -> float:
        """What `choice` promises."""
        if choice.mode is Mode.OFF:
            return 1 / self._pass_s(1)
        length = choice.length
        accepted = min(self.acceptance, _HIGHEST_ACCEPTANCE)
        whole = accepted**length
        drafting_s = length * self.draft_s
        pass_s = self._pass_s(length + 1)
        start_s = self.delay_s + drafting_s + self.wire_s + (pass_s / 2 if self.num_seqs > 1 else 0.0)
        if choice.mode is Mode.SEQUENTIAL:
            return (1 - accepted * whole) / (1 - accepted) / (start_s + pass_s)
        # From one rejection to the next: 1 / (1 - accepted) tokens, in 1 / (1 - whole) passes behind which the next
        # drafts are made.
        return 1 / (1 - accepted) / (start_s + max(pass_s, drafting_s) / (1 - whole))

    def window(self, length: int) -> int:
        """Drafts in flight that keep the verifier busy through a round trip, and one being drafted."""
        in_flight_s = self.delay_s + self.wire_s + self._pass_s(length + 1)
        return min(MAX_WINDOW, 1 + max(1, math.ceil(in_flight_s / max(length * self.draft_s, 1e-6))))

    def _pass_s(self, num_tokens: int) -> float:
        return self.passes.seconds(num_tokens * self.num_seqs) or 1e-3


class Controller:
    """One request's."""

    def __init__(self, policy: LengthPolicy | None = None) -> None:
        """`policy`: of a request that names one; then only the mode is chosen, for drafts of its usual length."""
        self._lengths = LENGTHS if policy is None else (_expected_length(policy),)
        self._choice = FIRST
        self._promised = 0.0  # tokens/s of the choice, uncorrected; 0 = nothing is known to promise
        self._since: tuple[float, int] | None = None  # when, and at which position, the stretch began
        self.is_trying = True  # drafts are welcome and nobody waits for them

    def resume(self, pace: Pace) -> Choice:
        """What to begin with at a drafter: what its last request chose."""
        self._choice, self._promised, self._since = pace.choice, 0.0, None
        self.is_trying = pace.delay_s is None
        return self._choice

    def decide(self, pace: Pace, passes: PassTimes, num_seqs: int, now_s: float, position: int) -> Choice:
        """What to do from `position` on; another choice than before at most every `MIN_STRETCH` tokens."""
        if self._since and self._promised and position - self._since[1] < MIN_STRETCH:
            return self._choice
        self._settle(pace, now_s, position)
        self._since = (now_s, position)
        on = Conditions.of(pace, passes, num_seqs)
        if on:
            self._choice, self._promised = self._best(on, pace)
            pace.choice = self._choice
        return self._choice

    def _settle(self, pace: Pace, now_s: float, position: int) -> None:
        """What the stretch that ends here has kept of its promise."""
        if self._since is None or not self._promised:
            return
        since_s, start = self._since
        if now_s > since_s and position > start:
            kept = (position - start) / (now_s - since_s) / self._promised
            pace.kept(self._choice.mode, min(max(kept, _CORRECTIONS[0]), _CORRECTIONS[1]), _CORRECTION_WEIGHT)

    def _best(self, on: Conditions, pace: Pace) -> tuple[Choice, float]:
        """The best offer and its promise; the present one unless another is better by the margin."""
        promises = {choice: on.tokens_per_s(choice) for choice in self._offers(on)}
        worth = {choice: promise * pace.correction(choice.mode) for choice, promise in promises.items()}
        plain = worth.pop(OFF)
        best = max(worth, key=lambda choice: worth[choice])
        for choice in worth:
            if (choice.mode, choice.length) == (self._choice.mode, self._choice.length):
                best = best if worth[best] > MARGIN * worth[choice] else choice
        is_worse = worth[best] < MARGIN * plain
        self.is_trying = is_worse and pace.may_try(PROBE_EVERY)
        if is_worse and not self.is_trying:
            best = OFF
        return best, promises[best]

    def _offers(self, on: Conditions) -> Iterable[Choice]:
        yield OFF
        for length in self._lengths:
            yield Choice(Mode.SEQUENTIAL, length, 1)
            yield Choice(Mode.PEARL, length, on.window(length))


def _expected_length(policy: LengthPolicy) -> int:
    """Tokens a draft; of an adaptive policy only a guess."""
    return int(policy["length"]) if policy.name == "fixed" else _ADAPTIVE_LENGTH
