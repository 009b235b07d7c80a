"""What a request meets, and what each mode and draft length promises under it, in tokens a second.

One formula a mode, each the length of a cycle from one rejection to the next, or of a round, beside what it yields
(Leviathan et al. 2023 for sequential drafting; Liu et al. 2024 for PEARL, here with drafts that are streamed, so that
a pass takes all that has come and the network is paid for only after a rejection). Tokens are taken to be accepted
independently. Requests on the same verifier are taken to decode in the same way and to share its passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from coordinator.core.choice import Choice
from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from paceline.types import Mode

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16)
MAX_WINDOW = 16
BUSY = 4  # requests on a verifier that leave it no time to wait for any
_DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # drafted tokens that a pass may be given
_HIGHEST_ACCEPTANCE = 0.98
# Rounds in which the size of a pass is found. In the second a cycle may still take another shape (`preverifies`) than
# the one that its passes were sized for.
_SETTLING = 3


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a request meets now. Times in seconds."""

    draft_s: float  # a drafted token
    delay_s: float  # what the first draft of a run waits for beside drafting: the round trip to the drafter
    wire_s: float  # a verification's round trip beside its pass
    acceptance: float  # accepted / tested
    passes: PassTimes
    num_seqs: int = 1  # requests on the verifier, this one included
    num_meanwhile: int = 0  # tokens that are decoded while a redraft is on its way
    branch_draft_s: float = 0.0  # a drafted token while branches ride along
    hit_rate: float = 0.0  # of runs in mode branch: how many begin with a branch

    @classmethod
    def of(cls, pace: Pace, passes: PassTimes, num_seqs: int, *, decodes_meanwhile: bool = False) -> Conditions | None:
        """None while something has not been measured yet. `decodes_meanwhile`: whether the rule lets it do so."""
        if pace.draft_s is None or pace.delay_s is None or passes.seconds(1) is None:
            return None
        return cls(
            pace.draft_s,
            pace.delay_s,
            pace.wire_s or 0.0,
            min(pace.acceptance, _HIGHEST_ACCEPTANCE),
            passes,
            max(1, num_seqs),
            num_meanwhile=pace.num_meanwhile() if decodes_meanwhile else 0,
            branch_draft_s=pace.branch_draft_s(num_seqs),
            hit_rate=min(pace.hit_rate, pace.acceptance),  # its other guesses are no better than its first
        )

    def accepting(self, acceptance: float) -> Conditions:
        """The same with another acceptance."""
        return replace(self, acceptance=min(acceptance, _HIGHEST_ACCEPTANCE))

    def tokens_per_s(self, choice: Choice) -> float:
        """What `choice` promises."""
        return _FORMULAS[choice.mode](self, choice)

    def depth(self) -> int:
        """Drafted tokens a pass that yield the most for the verifier's time: a window need not hold more."""
        return max(_DEPTHS, key=lambda depth: _expected(self.acceptance, depth) / self._shared_s(depth + 1))

    def windows(self, length: int, depth: int) -> tuple[int, ...]:
        """Drafts in flight that may pay: a pass full, or two and what a round trip holds.

        A pass is full with `depth` tokens (as `depth()`), or with what is drafted during one, if that is less. One pass
        full is enough where others keep the verifier busy meanwhile, with what a round trip holds: a pass takes all
        that has come during the one before, so more would only be verified in vain.
        """
        pass_s = self._shared_s(length + 1)
        full = min(depth, max(length, pass_s / max(self.draft_s, 1e-6)))
        passes = (1.0, (1 if self.num_seqs > BUSY else 2) + (self.delay_s + self.wire_s) / pass_s)
        return tuple(min(MAX_WINDOW, max(2, math.ceil(full * num / length))) for num in passes)

    def plain(self, _: Choice) -> float:
        """A token a pass."""
        return 1 / self._shared_s(1)

    def sequential(self, choice: Choice) -> float:
        """A round: draft, send, verify; all of it one after the other."""
        length = choice.length
        round_ = _Cycle(self.delay_s + length * self.draft_s + self.wire_s, 1.0, length + 1.0)
        return _expected(self.acceptance, length) / self._seconds(lambda pass_s, wait_s: round_)

    def pearl(self, choice: Choice) -> float:
        """From one rejection to the next: the first draft comes from afar, the others while passes are under way."""
        return 1 / (1 - self.acceptance) / self._seconds(partial(self._streamed, choice))

    def _streamed(self, choice: Choice, pass_s: float, wait_s: float) -> _Cycle:
        """A cycle of `pearl`, where a pass takes `pass_s`, and its first draft waits `wait_s` for the verifier.

        The recovered token may be forwarded while the redraft is awaited (pre-verify, `Pace.preverify_pays`): then the
        draft's first token is judged as it arrives, and costs no pass where it is wrong.
        """
        accepted, length = self.acceptance, choice.length
        drafting_s, away_s = length * self.draft_s, self.delay_s + self.wire_s
        start_s, alone_s = away_s + drafting_s, self._pass_s(1)
        preverifies = max(0.0, alone_s - start_s) <= (1 - accepted) * pass_s
        if preverifies:
            wait_s += max(0.0, alone_s - start_s)
        # The first pass holds what has come until it begins, the others what was drafted during the one before; both as
        # far as the window goes, of which a part is being verified, and another on its way.
        token_s, most = max(self.draft_s, 1e-6), float(choice.window * length)
        first = min(most, length + wait_s / token_s)
        depth = max(float(length), min(most / (2 + away_s / pass_s), pass_s / token_s))
        more = math.pow(accepted, first + 1) / (1 - math.pow(accepted, depth))  # passes behind the first
        start_s += max(0.0, drafting_s - pass_s) * more  # there the verifier waits for a slower drafter
        if self.num_meanwhile:
            # It decodes on meanwhile: all that it decodes was drafted, too, if the redraft is to be of use (salvaged).
            salvaged = math.pow(accepted, self.num_meanwhile)
            num_alone, num_passes = (1 - salvaged) / (1 - accepted), salvaged * (1 + more)
            return _Cycle(
                max(0.0, drafting_s - pass_s) * num_passes, num_alone + num_passes, num_alone + num_passes * (1 + depth)
            )
        if preverifies:
            return _Cycle(max(start_s, alone_s), accepted + more, 1 + accepted * first + more * depth)
        return _Cycle(start_s, 1 + more, 1 + first + more * depth)

    def branch(self, choice: Choice) -> float:
        """Likewise, where a run may begin with a branch that waits for it."""
        rides = replace(self, draft_s=self.branch_draft_s)
        return 1 / (1 - self.acceptance) / self._seconds(partial(rides._branched, choice))

    def _branched(self, choice: Choice, pass_s: float, wait_s: float) -> _Cycle:
        """A cycle of `branch`: after a miss as in `pearl`; after a hit the redraft comes behind a verification."""
        miss, hits = self._streamed(choice, pass_s, wait_s), self.hit_rate
        accepted, length, away_s = self.acceptance, choice.length, self.delay_s + self.wire_s
        most = float(choice.window * length)
        depth = max(float(length), min(most / (2 + away_s / pass_s), pass_s / max(self.draft_s, 1e-6)))
        whole = math.pow(accepted, length + 1)  # all of the branch is right, and the run goes on
        gap_s = whole * max(0.0, self.delay_s + length * self.draft_s - pass_s)
        more = whole / (1 - math.pow(accepted, depth))
        return _Cycle(
            hits * (self.wire_s + gap_s) + (1 - hits) * miss.start_s,
            hits * (1 + more) + (1 - hits) * miss.num_passes,
            hits * (1 + length + more * depth) + (1 - hits) * miss.num_tokens,
        )

    def _seconds(self, cycle: Callable[[float, float], _Cycle]) -> float:
        """How long a cycle takes where all requests on the verifier go through the same, and share its passes.

        `cycle` says what it consists of, given the seconds of a pass, and those that it waits for one to begin.
        """
        pass_s, wait_s, cycle_s = self._shared_s(1), 0.0, 0.0
        for _ in range(_SETTLING):
            it = cycle(pass_s, wait_s)
            passes_s = it.num_passes * pass_s
            is_busy = min(1.0, (self.num_seqs - 1) * passes_s / (it.start_s + passes_s))
            # Whoever comes finds a pass under way: the rest of it, all of it who left with the last one.
            wait_s = is_busy * max(pass_s / 2, pass_s - it.start_s)
            cycle_s = it.start_s + wait_s + passes_s
            # At least its own tokens are in a pass, and at most those of all.
            num_others = (self.num_seqs - 1) * passes_s / cycle_s
            pass_s = self._pass_s(it.num_tokens / it.num_passes * (1 + num_others))
        return cycle_s

    def _shared_s(self, num_tokens: float) -> float:
        """A pass that holds so many tokens of every request."""
        return self._pass_s(num_tokens * self.num_seqs)

    def _pass_s(self, num_tokens: float) -> float:
        return self.passes.seconds(num_tokens) or 1e-3


class _Cycle(NamedTuple):
    """What comes again and again in a mode."""

    start_s: float  # in no pass
    num_passes: float
    num_tokens: float  # in all of them


_FORMULAS: Mapping[Mode, Callable[[Conditions, Choice], float]] = {
    Mode.OFF: Conditions.plain,
    Mode.SEQUENTIAL: Conditions.sequential,
    Mode.PEARL: Conditions.pearl,
    Mode.BRANCH: Conditions.branch,
}


def _expected(accepted: float, length: float) -> float:
    """Tokens that a pass over `length` drafted ones yields."""
    return (1 - math.pow(accepted, length + 1)) / (1 - accepted)
