"""Each length policy at its best: the parameter found on one half of the prompts, reported on the other.

Successive halving: all points of all grids run on a few prompts, the better half of each policy's points on twice as
many, and so on until one is left, the half is used up, or the time is. Policies are not held against one another while
tuning, so every one comes to the report with the best that was found for it. All settings, both modes included, take
turns prompt by prompt. There is no clock in here but the one that is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.row import Row, Setting
from paceline.length_policy import LengthPolicy
from paceline.types import Mode, Tokens

FIRST_RUNG = 2  # prompts on which every point runs
TUNING_SHARE = 0.55  # of the time, the rest is for the report: tuning has five times the settings on fewer prompts
BASELINE = Setting("off", "off")

Group = tuple[str, str]  # mode and policy: what gets one best parameter
Rows = dict[Group, list[Row[Setting]]]
Turn = Callable[[Sequence[Row[Setting]], Tokens, int], None]  # one more sample for every row


@dataclass(frozen=True, slots=True)
class Halves:
    """The prompts: those that choose, and those that are reported."""

    tuning: tuple[Tokens, ...]
    report: tuple[Tokens, ...]

    @classmethod
    def of(cls, prompts: Sequence[Tokens]) -> Halves:
        """Every second prompt, so that a file that is sorted in some way is sorted in both halves."""
        return cls(tuple(prompts[::2]), tuple(prompts[1::2]))


@dataclass(frozen=True, slots=True)
class Timer:
    """When to stop, by a clock that is an argument."""

    clock: Callable[[], float]
    deadline_s: float

    @classmethod
    def lasting(cls, clock: Callable[[], float], seconds: float) -> Timer:
        return cls(clock, clock() + seconds)

    @property
    def left_s(self) -> float:
        return self.deadline_s - self.clock()

    def part(self, share: float) -> Timer:
        """A timer over `share` of what is left."""
        return Timer.lasting(self.clock, share * self.left_s)


@dataclass(slots=True)
class Outcome:
    """What a sweep found. Rows of the report have one sample a prompt, on the same prompts."""

    tuned: Rows = field(default_factory=dict)  # all points, with as many samples as they earned; the best one first
    best: dict[Group, Row[Setting]] = field(default_factory=dict)  # on the other half
    off: Row[Setting] = field(default_factory=lambda: Row(BASELINE))
    long: Row[Setting] | None = None  # long drafts, of which the oracle cuts off what is rejected
    left_out: list[str] = field(default_factory=list)


def groups(policies: Mapping[str, Sequence[LengthPolicy]], modes: Sequence[str], window: int) -> Rows:
    """A row for every point, by mode and policy."""
    return {
        (mode, name): [Row(setting_of(mode, policy, window)) for policy in points]
        for mode in modes
        for name, points in policies.items()
    }


def setting_of(mode: str, policy: LengthPolicy, window: int) -> Setting:
    return Setting(f"{mode} {policy}", mode, str(policy), window if Mode(mode).streams else 0)


def sweep(rows: Rows, long: Setting | None, halves: Halves, turn: Turn, timer: Timer) -> Outcome:
    """Tune, then report."""
    outcome = Outcome(tuned=rows, long=Row(long) if long else None)
    outcome.left_out += tune(rows, halves.tuning, turn, timer.part(TUNING_SHARE))
    outcome.best = {group: Row(points[0].setting) for group, points in rows.items()}
    reported = [outcome.off, *outcome.best.values(), *([outcome.long] if outcome.long else [])]
    num_reported = _run(reported, halves.report, 0, turn, timer)
    if num_reported < len(halves.report):
        outcome.left_out.append(f"the report is on {num_reported} of {len(halves.report)} prompts")
    return outcome


def tune(rows: Rows, prompts: Sequence[Tokens], turn: Turn, timer: Timer) -> list[str]:
    """Puts the best point of every group first; says which groups were still undecided when the time ended.

    A point's samples are on a prefix of the prompts, and those still in the race all have the same ones. At least
    one prompt is always used.
    """
    racing = {group: list(points) for group, points in rows.items()}
    used, rung = 0, FIRST_RUNG
    while used < len(prompts) and (used == 0 or any(len(points) > 1 for points in racing.values())):
        # A group that has found its best need not run on.
        runners = [row for points in racing.values() if used == 0 or len(points) > 1 for row in points]
        part = prompts[used : used + rung]
        num_run = _run(runners, part, used, turn, timer)
        used += num_run
        for points in rows.values():
            # How far a point came says more than how fast it was on the way.
            points.sort(key=lambda row: (-len(row.samples), -row.tokens_per_s))
        if num_run < len(part):
            return [
                f"tuning of {mode} {name} ended with {len(points)} points undecided after {used} prompts: no time"
                for (mode, name), points in racing.items()
                if len(points) > 1
            ]
        racing = {group: points[: (len(racing[group]) + 1) // 2] for group, points in rows.items()}
        rung = used
    return []


def num_runs(rows: Rows, halves: Halves) -> int:
    """How many requests a sweep makes if there is time for all."""
    sizes = [len(points) for points in rows.values()]
    used, rung, total = 0, FIRST_RUNG, 0
    while used < len(halves.tuning) and (used == 0 or any(size > 1 for size in sizes)):
        num_prompts = min(rung, len(halves.tuning) - used)
        total += num_prompts * sum(size for size in sizes if used == 0 or size > 1)
        sizes = [(size + 1) // 2 for size in sizes]
        used += num_prompts
        rung = used
    return total + len(halves.report) * (len(rows) + 2)


def _run(rows: Sequence[Row[Setting]], prompts: Sequence[Tokens], first: int, turn: Turn, timer: Timer) -> int:
    """All rows on prompts until there are none, or the next would not fit into the time; at least on one."""
    for done, prompt in enumerate(prompts):
        # A prompt takes about as long as the one before it did.
        if (done or first) and timer.left_s < sum(row.samples[-1].seconds for row in rows if row.samples):
            return done
        turn(rows, prompt, first + done)
    return len(prompts)
