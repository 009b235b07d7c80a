"""Which parameters of each length policy the sweep tries.

A grid spans what the papers use and what suits a pair whose entropies are high; the sweep starts on all points with
few prompts and gives the better half more (`bench/tuning.py`), so a point too many costs little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paceline.errors import InvalidInput
from paceline.length_policy import POLICIES, LengthPolicy

# The parameter that is tuned, by policy, with its values; all others stay at their defaults.
GRIDS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    # Leviathan et al. 2023 and its successors use 2 to 16.
    "fixed": ("length", (2, 4, 6, 8, 12, 16)),
    # The paper's 0.6 nats first; 1.6 nats is what the demo drafter has on average where its tokens are accepted.
    "svip": ("threshold_nats", (0.6, 1.2, 2.0, 3.0, 4.0, 5.0)),
    # The paper moves this one itself while running; where it begins matters on short outputs (swept 0.3 to 0.9). The
    # two lower ones stop above 5 and 3.6 nats, which drafters of high entropy need.
    "adaedl": ("threshold", (0.0, 0.15, 0.3, 0.5, 0.7, 0.9)),
    # The probability that something was rejected; 0.3 and 0.7 are the published defaults, 0 is what was calibrated.
    "specdecpp": ("threshold", (0.0, 0.3, 0.5, 0.7, 0.9)),
    # Hugging Face's default is 0.4.
    "confidence": ("threshold", (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)),
}


def candidates(names: Sequence[str] = ()) -> dict[str, tuple[LengthPolicy, ...]]:
    """Every policy of `names`, or all that exist, with the points of its grid. Raises InvalidInput for one without."""
    for name in names:
        LengthPolicy.of(name, {})
    wanted = tuple(names or POLICIES)
    for name in wanted:
        if name not in GRIDS:
            fix = f"has no grid to sweep; add one to bench/grids.py, or sweep only {', '.join(GRIDS)}"
            raise InvalidInput("--policies", name, fix)
    return {
        name: tuple(LengthPolicy.of(name, {parameter: value}) for value in values)
        for name, (parameter, values) in GRIDS.items()
        if name in wanted
    }


def label(policy: str) -> str:
    """The policy with the parameter that is tuned, for a table: `svip threshold_nats=0.6`."""
    parsed = LengthPolicy.parse(policy)
    parameter = GRIDS[parsed.name][0]
    return f"{parsed.name} {parameter}={parsed[parameter]:g}"
