"""`fixed`: every draft has the same length (Leviathan et al. 2023, gamma)."""

from __future__ import annotations

from dataclasses import dataclass

from drafter.policies.policy import Policy, Seen


@dataclass(frozen=True, slots=True)
class Fixed(Policy):
    """Stop after `length` tokens."""

    length: int

    def stops_after(self, seen: Seen) -> bool:
        return seen.draft_length >= self.length
