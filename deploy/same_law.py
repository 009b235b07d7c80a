"""Do two samples come from one law? A sequential test with a stated error level, for outcomes that can be counted.

After every look the two samples are compared by the chi-square test of homogeneity, rare outcomes taken together. With
at most `num_looks` looks, each at level `alpha / num_looks`, a sample pair of one law is called different with
probability `alpha` at most (Bonferroni), whenever one stops looking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

from scipy import stats

# Below this expected count a cell's chi-square is too far from its limit to be believed.
LEAST_EXPECTED = 5.0


@dataclass
class SameLaw:
    """Feed both samples, then `look`; `differs` stays true once it is."""

    alpha: float
    num_looks: int
    p_values: list[float] = field(default_factory=list)
    one: Counter[Hashable] = field(default_factory=Counter)
    other: Counter[Hashable] = field(default_factory=Counter)

    def look(self) -> float:
        """The p-value of all that was seen so far."""
        if len(self.p_values) == self.num_looks:
            raise ValueError(f"the test was planned for {self.num_looks} looks")
        self.p_values.append(p_value(self.one, self.other))
        return self.p_values[-1]

    @property
    def differs(self) -> bool:
        return any(p < self.alpha / self.num_looks for p in self.p_values)


def p_value(one: Counter[Hashable], other: Counter[Hashable]) -> float:
    """Chi-square homogeneity of two samples; 1 if too little was seen to compare."""
    share = min(one.total(), other.total()) / max(1, one.total() + other.total())
    cells = [(one[key], other[key]) for key in one | other]
    common = [cell for cell in cells if sum(cell) * share >= LEAST_EXPECTED]
    rare = [cell for cell in cells if sum(cell) * share < LEAST_EXPECTED]
    rest = (sum(a for a, _ in rare), sum(b for _, b in rare))
    if sum(rest) * share >= LEAST_EXPECTED:
        common.append(rest)
    if len(common) < 2:
        return 1.0
    table = [[a for a, _ in common], [b for _, b in common]]
    return float(stats.chi2_contingency(table, correction=False).pvalue)
