"""What a drafter is worth beside a verifier: tokens a second with it, over those that the verifier decodes alone.

Pure, and rougher than the controller's promises: it compares drafters for a request that has none yet, so it must be
cheap. The formula is that of streamed overlap (Liu et al. 2024, PEARL): from one rejection to the next there are
1 / (1 - a) tokens, the first draft waits for the way to the drafter and back, and every further one is made behind a
pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.core.passes import PassTimes

_LENGTHS = (1, 2, 4, 8, 16)  # tokens a draft; between two of these the gain hardly differs
_HIGHEST_ACCEPTANCE = 0.98
_LEAST = 1e-9  # of a gain, so that whoever divides by it may
STRETCH = 256  # tokens: over so many an admitted drafter must be able to save time, its first draft awaited


@dataclass(frozen=True, slots=True)
class Speed:
    """A drafter's, measured where it has been and else as it has registered. Seconds."""

    draft_s: float  # a drafted token
    delay_s: float  # what the first draft of a run waits for beside drafting: the way there and back
    acceptance: float  # accepted / tested


def gain(speed: Speed, passes: PassTimes) -> float:
    """How many times as fast as alone; 1 while nothing is known of the verifier. Example: 0.5 = half as fast."""
    plain_s = passes.seconds(1)
    if not plain_s:
        return 1.0
    accepted = min(speed.acceptance, _HIGHEST_ACCEPTANCE)
    cycles_s = []
    for length in _LENGTHS:
        drafting_s = length * speed.draft_s
        pass_s = passes.seconds(length + 1) or plain_s
        cycles_s.append(drafting_s + max(pass_s, drafting_s) / (1 - accepted**length))
    return max(_LEAST, plain_s / ((1 - accepted) * (speed.delay_s + min(cycles_s))))


def best_s(speed: Speed, passes: PassTimes) -> float | None:
    """Seconds for `STRETCH` tokens if each that is drafted were accepted; None while nothing is known."""
    if not passes.seconds(1):
        return None
    rounds_s = (
        max(passes.seconds(length + 1) or 0.0, length * speed.draft_s) * STRETCH / length for length in _LENGTHS
    )
    return speed.delay_s + min(rounds_s)


def plain_s(passes: PassTimes) -> float | None:
    """Seconds for `STRETCH` tokens without a drafter; None while nothing is known."""
    pass_s = passes.seconds(1)
    return STRETCH * pass_s if pass_s else None
