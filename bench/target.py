"""The target at a wanted cost: expanded to a size, or until verifying takes a wanted multiple of drafting.

Times are those of the engines' own cost model (`paceline.engine.cost`), measured here, in this process, one after
another. The served processes add work of their own to both, so what a run really reached is reported with the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.corpus import InputError
from models.expand import expand, parameters, read_shape, shape_near
from paceline.errors import InvalidInput

CONTEXT = 128  # cached tokens: the middle of a usual run of these benchmarks
DRAFT_LENGTH = 6  # of the pass that counts as verifying
CLOSE_ENOUGH = 0.1  # of the wanted ratio
MAX_TRIALS = 4  # expansions for one ratio; each takes some seconds
COST_S = 2.0  # for measuring a model once
NUM_MEASURED = 3  # the fastest counts: what disturbs a measurement only ever makes it slower


@dataclass(frozen=True, slots=True)
class Sized:
    """A target, and what a pass over a draft takes with it."""

    folder: str
    num_parameters: int
    verify_ms: float


def expanded(target: str, size: str, output: Path) -> str:
    """The folder of `target` expanded to about `size` parameters ("90M"); `target` itself for "0"."""
    return target if size == "0" else expand_to(target, parameters(size), output).folder


def expand_to(target: str, num_parameters: int, output: Path) -> Sized:
    """Writes the copy; its time is not measured yet. Raises InvalidInput for a target that cannot grow so."""
    try:
        near = shape_near(read_shape(Path(target))[1], num_parameters)
        sizes = ("hidden_size", "num_layers", "intermediate_size", "num_heads")
        shape = expand(target, output, **{name: getattr(near, name) for name in sizes})
    except InputError as error:
        raise InvalidInput("--target", target, f"cannot be expanded to {num_parameters:,}: {error}") from None
    return Sized(str(output), shape.num_parameters, 0.0)


class Sizer:
    """Finds targets by ratio. What was measured for one ratio helps with the next."""

    def __init__(
        self, target: str, draft_ms: float, folder: Path, verify_ms: Callable[[str], float], *, grow: Grow = expand_to
    ) -> None:
        self._target, self._folder, self._verify_ms, self._grow = target, folder, verify_ms, grow
        self.draft_ms = draft_ms
        try:
            num_parameters = read_shape(Path(target))[1].num_parameters
        except InputError as error:
            raise InvalidInput("--target", target, f"--ratio needs a target that can be expanded: {error}") from None
        self.known = [Sized(target, num_parameters, verify_ms(target))]

    def near(self, ratio: float) -> Sized:
        """The target whose verify time comes nearest to `ratio` drafting times, after `MAX_TRIALS` expansions at most.

        A pass takes about a constant and a part that grows with the parameters, so the line through the two known
        sizes on either side (or the nearest two) says where to look.
        """
        wanted_ms = ratio * self.draft_ms
        for _ in range(MAX_TRIALS):
            best = self._best(wanted_ms)
            if abs(best.verify_ms / wanted_ms - 1) <= CLOSE_ENOUGH:
                return best
            guess = next_size(self.known, wanted_ms)
            if guess is None:
                break
            try:
                grown = self._grow(self._target, guess, self._folder / f"target-{guess}")
            except InvalidInput:
                break  # there are few exact shapes near a small target; what is known must do
            self.known.append(Sized(grown.folder, grown.num_parameters, self._verify_ms(grown.folder)))
        return self._best(wanted_ms)

    def _best(self, wanted_ms: float) -> Sized:
        return min(self.known, key=lambda sized: abs(sized.verify_ms / wanted_ms - 1))


Grow = Callable[[str, int, Path], Sized]


def next_size(known: list[Sized], wanted_ms: float) -> int | None:
    """The number of parameters at which a pass should take `wanted_ms`; None if there is nothing new to try.

    With one size known, time is taken as proportional to the parameters. Nothing smaller than the smallest is made.
    """
    smallest = min(known, key=lambda sized: sized.num_parameters)
    if wanted_ms <= smallest.verify_ms:
        return None
    if len(known) == 1:
        guess = smallest.num_parameters * wanted_ms / smallest.verify_ms
    else:
        a, b = sorted(known, key=lambda sized: abs(sized.verify_ms - wanted_ms))[:2]
        if a.verify_ms == b.verify_ms:
            return None
        slope = (b.num_parameters - a.num_parameters) / (b.verify_ms - a.verify_ms)
        guess = a.num_parameters + slope * (wanted_ms - a.verify_ms)
    # A line through two noisy times may point anywhere.
    guess = min(max(guess, 1.05 * smallest.num_parameters), 4 * max(sized.num_parameters for sized in known))
    rounded = int(float(f"{guess:.3g}"))
    return None if any(abs(sized.num_parameters / rounded - 1) < 0.02 for sized in known) else rounded


def step_ms(model: str, dtype: str, num_tokens: int) -> float:
    """Milliseconds of a pass over `num_tokens` after `CONTEXT` cached ones, by the engine's cost model."""
    from paceline.engine.cost import measure
    from paceline.engine.runner import Runner

    runner = Runner.load(model, dtype=dtype, max_num_tokens=4096)
    try:
        costs = [measure(runner, within_s=COST_S).cost for _ in range(NUM_MEASURED)]
    finally:
        runner.shutdown()
    found = [cost.ms(num_tokens, 1, CONTEXT) for cost in costs if cost]
    if not found:
        raise InvalidInput("model", model, "its passes could not be measured; is its context very short?")
    return min(found)
