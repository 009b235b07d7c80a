"""What drafters of one kind have found of themselves, each a prior for those that have not been tried.

They hold the same weights, so they are right equally often. How fast one is, and how far away, it must show by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.core.choice import FIRST, Choice


@dataclass(slots=True)
class Kin:
    """See the top of the file."""

    acceptance: float = 0.0
    num_tests: int = 0
    choice: Choice = FIRST
